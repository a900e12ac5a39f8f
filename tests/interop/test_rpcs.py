"""Every RPC but those of sessions and layers, called as a Python program would call it."""

import datetime
import unittest

import grpc
import harness
import numpy as np
from attention.v1 import attention_config_pb2, attention_service_pb2, server_service_pb2
from attention.v1 import tensor_pb2
from attention_client import from_tensor, to_tensor
from harness import FLOAT32, FORMATS, assert_fails, client_for, exercises, make_problem
from harness import random_array

try:
    from grpc_health.v1 import health_pb2, health_pb2_grpc
    from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
except ImportError:
    health_pb2 = None

ATTENTION = "attention.v1.AttentionService."
SESSION = "attention.v1.SessionService."
SERVER = "attention.v1.ServerService."

INVALID_ARGUMENT = grpc.StatusCode.INVALID_ARGUMENT
NOT_FOUND = grpc.StatusCode.NOT_FOUND
RESOURCE_EXHAUSTED = grpc.StatusCode.RESOURCE_EXHAUSTED


def wide_dims(client):
    """Head dims of queries and keys, and of values, that only processors compute."""
    info = client.server.GetServerInfo(server_service_pb2.GetServerInfoRequest())
    is_cuda = any(device.is_used and device.backend == "cuda" for device in info.devices)
    return () if is_cuda else ((576, 512), (257, 300))


# (q_len, kv_len, query heads, KV heads, head_dim_qk, head_dim_v), configuration
VARIANTS = {
    "scaled dot-product": ((19, 19, 1, 1, 64, 64), {}),
    "multi-head": ((33, 33, 8, 8, 32, 32), {}),
    "cross": ((7, 61, 4, 4, 48, 48), {}),
    "causal": ((70, 70, 2, 2, 64, 64), {"is_causal": True}),
    "sliding window": ((90, 90, 2, 2, 40, 40), {"is_causal": True, "window_left": 15}),
    "multi-query": ((21, 45, 8, 1, 64, 64), {"is_causal": True}),
    "grouped-query": ((35, 35, 9, 3, 64, 64), {"is_causal": True}),
}


def random_mask(*shape):
    mask = random_array(*shape) > 0
    mask[..., 0, :] = False  # a row that sees nothing
    return mask


class AttendTest(unittest.TestCase):
    def setUp(self):
        self.client = client_for(self)

    def check(self, problem):
        response = self.client.attention.Attend(problem.request(lse=True, column_sums=True))
        self.assertTrue(response.HasField("lse") and response.HasField("column_sums"))
        problem.check(self, response)
        return response

    @exercises(ATTENTION + "Attend")
    def test_variants_in_every_dtype(self):
        for name, (shape, options) in VARIANTS.items():
            for form in FORMATS:
                with self.subTest(name, dtype=form.name):
                    self.check(make_problem(*shape, form=form, **options))

    @exercises(ATTENTION + "Attend")
    def test_options(self):
        slopes = np.float32([2.0**-i for i in range(4)])
        cases = {
            "scale": {"softmax_scale": 0.3},
            "soft cap": {"soft_cap": 1.5},
            "alibi": {"alibi_slopes": slopes, "is_causal": True},
            "symmetric window": {"window_left": 6, "window_right": 6},
            "window with sink tokens": {"is_causal": True, "window_left": 5, "sink_tokens": 3},
            "learned sinks": {"sink_logits": np.float32([-1, 0, 0.5, 3])},
            "aligned to the first key": {"is_causal": True, "first_query_position": 0},
            "before the first key": {"is_causal": True, "first_query_position": -4},
            "shared bias": {"bias": random_array(26, 37)},
            "bias per head": {"bias": random_array(4, 26, 37).astype(np.float16)},
            "shared mask": {"mask": random_mask(26, 37)},
            "mask per head": {"mask": random_mask(4, 26, 37)},
            "bias of keys": {"bias": random_array(1, 1, 37)},
            "bias of queries": {"bias": random_array(4, 26, 1)},
            "a bias for each head": {"bias": random_array(4, 1, 1)},
            "mask of keys": {"mask": random_array(1, 37) > 0},
            "mask of queries": {"mask": random_array(26, 1) > 0},
            "many at once": {
                "is_causal": True,
                "window_left": 9,
                "sink_tokens": 2,
                "soft_cap": 4.0,
                "alibi_slopes": slopes,
                "sink_logits": slopes,
                "bias": random_array(1, 26, 37),
            },
        }
        for name, options in cases.items():
            with self.subTest(name):
                self.check(make_problem(26, 37, 4, 2, 24, 17, **options))

    @exercises(ATTENTION + "Attend")
    def test_head_dims_from_1_to_the_largest(self):
        for dims in ((1, 1), (3, 256), (256, 5), (255, 129)) + wide_dims(self.client):
            with self.subTest(dims=dims):
                self.check(make_problem(5, 11, 2, 1, *dims))

    @exercises(ATTENTION + "Attend")
    def test_values_may_be_prefixes_of_their_keys(self):
        if not wide_dims(self.client):
            self.skipTest("the server computes on a GPU")
        q, k = random_array(5, 4, 24), random_array(9, 1, 24)
        given = attention_service_pb2.AttendRequest(q=to_tensor(q), k=to_tensor(k), v=to_tensor(k[:, :, :16].copy()))
        latent = attention_service_pb2.AttendRequest(
            q=to_tensor(q), k=to_tensor(k), value_is_key_prefix=True, head_dim_v=16
        )
        response = self.client.attention.Attend(latent)
        self.assertEqual(response.output, self.client.attention.Attend(given).output)
        latent.v.CopyFrom(given.v)
        with assert_fails(self, INVALID_ARGUMENT, "v is given"):
            self.client.attention.Attend(latent)

    @exercises(ATTENTION + "Attend")
    def test_a_row_that_sees_nothing_is_zero(self):
        problem = make_problem(3, 4, 1, 1, 8, 8, mask=np.zeros((3, 4), bool))
        response = self.check(problem)
        self.assertFalse(from_tensor(response.output).any())
        self.assertTrue(np.isneginf(from_tensor(response.lse)).all())

    @exercises(ATTENTION + "Attend")
    def test_no_keys_at_all(self):
        response = self.check(make_problem(3, 0, 2, 1, 8, 8))
        self.assertFalse(from_tensor(response.output).any())

    @exercises(ATTENTION + "Attend")
    def test_what_is_not_asked_for_is_absent(self):
        response = self.client.attention.Attend(make_problem(2, 2, 1, 1, 4, 4).request())
        self.assertFalse(response.HasField("lse") or response.HasField("column_sums"))
        self.assertGreaterEqual(response.timing.batch_size, 1)
        self.assertGreater(response.timing.compute.ToTimedelta(), datetime.timedelta(0))

    @exercises(ATTENTION + "Attend")
    def test_packed_sequences_have_the_bits_of_each_alone(self):
        lens = [(5, 9), (0, 3), (12, 12), (1, 40)]
        problems = [make_problem(q, kv, 4, 2, 16, 16, is_causal=True) for q, kv in lens]
        request = problems[0].request(lse=True)
        for name in ("q", "k", "v"):
            rows = np.concatenate([getattr(problem, name) for problem in problems])
            getattr(request, name).CopyFrom(to_tensor(rows))
        request.q_lens.extend(q for q, _ in lens)
        request.kv_lens.extend(kv for _, kv in lens)
        response = self.client.attention.Attend(request)
        alone = [self.check(problem) for problem in problems]
        self.assertEqual(response.output.data, b"".join(each.output.data for each in alone))
        self.assertEqual(response.lse.data, b"".join(each.lse.data for each in alone))

    @exercises(ATTENTION + "Attend")
    def test_dense_batch_with_padding(self):
        batch, q_lens, kv_lens = 3, [6, 0, 4], [10, 7, 2]
        q, k, v = (random_array(batch, *rest) for rest in ((6, 2, 8), (10, 2, 8), (10, 2, 5)))
        request = attention_service_pb2.AttendRequest(
            q=to_tensor(q), k=to_tensor(k), v=to_tensor(v), q_lens=q_lens, kv_lens=kv_lens
        )
        request.returns.lse = True
        response = self.client.attention.Attend(request)
        output, lse = from_tensor(response.output), from_tensor(response.lse)
        self.assertEqual(output.shape, (3, 6, 2, 5))
        for i, (q_len, kv_len) in enumerate(zip(q_lens, kv_lens, strict=True)):
            problem = harness.Problem(q[i, :q_len], k[i, :kv_len], v[i, :kv_len], {})
            alone = self.client.attention.Attend(problem.request())
            problem.check(self, alone)
            np.testing.assert_array_equal(output[i, :q_len], from_tensor(alone.output))
            self.assertFalse(output[i, q_len:].any())
            self.assertTrue(np.isneginf(lse[i, q_len:]).all())

    @exercises(ATTENTION + "Attend")
    def test_key_padding_mask_of_a_dense_batch(self):
        q, k, v = (random_array(3, *rest) for rest in ((6, 4, 8), (10, 2, 8), (10, 2, 5)))
        visible = np.arange(10)[None, :] < np.array([10, 7, 2])[:, None]
        mask = visible[:, None, None, :]
        request = attention_service_pb2.AttendRequest(
            q=to_tensor(q), k=to_tensor(k), v=to_tensor(v), mask=to_tensor(mask)
        )
        response = self.client.attention.Attend(request)
        for i, output in enumerate(from_tensor(response.output)):
            problem = harness.Problem(q[i], k[i], v[i], {"mask": visible[i : i + 1]})
            alone = self.client.attention.Attend(problem.request())
            problem.check(self, alone)
            np.testing.assert_array_equal(output, from_tensor(alone.output))

    @exercises(ATTENTION + "Attend")
    def test_nan_stays_in_the_rows_that_see_it(self):
        problem = make_problem(8, 8, 2, 2, 16, 16, is_causal=True)
        clean = from_tensor(self.client.attention.Attend(problem.request()).output)
        problem.v[5] = np.nan
        output = from_tensor(self.client.attention.Attend(problem.request()).output)
        np.testing.assert_array_equal(output[:5], clean[:5])
        self.assertTrue(np.isnan(output[5:]).all())

    @exercises(ATTENTION + "Attend")
    def test_invalid_requests_name_the_field(self):
        def broken(change):
            request = make_problem(4, 6, 4, 2, 8, 8).request()
            change(request)
            return request

        def set_shape(field, shape):
            return lambda request: replace(getattr(request, field).shape, shape)

        def replace(repeated, values):
            repeated[:] = values

        def set_mask(data):
            mask = tensor_pb2.Tensor(dtype=tensor_pb2.DTYPE_BOOL, shape=[4, 6], data=data)
            return lambda request: request.mask.CopyFrom(mask)

        float_mask = to_tensor(random_array(4, 6))
        small_mask = to_tensor(random_mask(4, 5))
        cases = {
            "q": lambda request: request.ClearField("q"),
            "k.data": lambda request: setattr(request.k, "data", request.k.data[:-1]),
            "v.data": lambda request: setattr(request.v, "data", request.v.data + b"\0"),
            "q.shape": set_shape("q", [4, 32]),
            "k.shape": set_shape("k", [6, 16]),
            "v.shape[1]": set_shape("v", [6, -2, 8]),
            "k.dtype": lambda request: setattr(request.k, "dtype", 77),
            "overflow": set_shape("q", [2**62, 2**62, 8]),
            "q_lens": lambda r: r.MergeFrom(type(r)(q_lens=[1, 2], kv_lens=[3, 3])),
            "kv_lens": lambda request: request.q_lens.extend([1, 3]),
            "config.softmax_scale": lambda r: setattr(r.config, "softmax_scale", float("nan")),
            "config.soft_cap": lambda request: setattr(request.config, "soft_cap", -1),
            "config.window_left": lambda request: setattr(request.config, "window_left", -1),
            "config.alibi_slopes": lambda r: r.config.alibi_slopes.CopyFrom(to_tensor(random_array(3))),
            "mask.dtype": lambda request: request.mask.CopyFrom(float_mask),
            "mask.shape": lambda request: request.mask.CopyFrom(small_mask),
            "mask.data[1] is 9, expected 0 or 1": set_mask(bytes([1, 9]) + bytes(22)),
        }
        for text, change in cases.items():
            with self.subTest(text), assert_fails(self, INVALID_ARGUMENT, text):
                self.client.attention.Attend(broken(change))
        self.check(make_problem(4, 6, 4, 2, 8, 8))

    @exercises(ATTENTION + "Attend")
    def test_weights_of_an_answer(self):
        problem = make_problem(4, 6, 4, 2, 8, 8)
        answer = self.client.attention.Attend(problem.request(weights=True))
        problem.check(self, answer)
        [block] = answer.weights
        harness.check_weights(self, problem, from_tensor(block.weights))

    @exercises(ATTENTION + "Attend")
    def test_head_counts_that_do_not_divide(self):
        with assert_fails(self, INVALID_ARGUMENT, "q.shape is [2, 5, 4]", "2 heads of k"):
            self.client.attention.Attend(make_problem(2, 2, 5, 2, 4, 4).request())

    @exercises(ATTENTION + "Attend")
    def test_message_over_the_limit(self):
        problem = make_problem(1, 1, 1, 1, 4, 4)
        request = problem.request()
        request.k.data = bytes(9 << 20)
        with assert_fails(self, RESOURCE_EXHAUSTED):
            self.client.attention.Attend(request)
        self.check(problem)


class AttendStreamTest(unittest.TestCase):
    def setUp(self):
        self.client = client_for(self)

    def stream(self, requests):
        """The responses of each id, in the order in which they came."""
        answers = {}
        wire = (
            attention_service_pb2.AttendStreamRequest(request_id=key, request=request)
            for key, request in requests.items()
        )
        for response in self.client.attention.AttendStream(wire):
            answers.setdefault(response.request_id, []).append(response)
        self.assertEqual(answers.keys(), requests.keys())
        for responses in answers.values():
            *others, last = (response.is_last for response in responses)
            self.assertTrue(last and not any(others))
        return answers

    @exercises(ATTENTION + "AttendStream", ATTENTION + "Attend")
    def test_pipelined_requests_have_the_bits_of_unary_ones(self):
        problems = {
            2**63 + i: make_problem(1 + i % 7, 8 + i, 4, 2, 16, 16, is_causal=True)
            for i in range(150)  # more than the server reads ahead
        }
        answers = self.stream({key: problem.request() for key, problem in problems.items()})
        for key, problem in problems.items():
            [answer] = answers[key]
            problem.check(self, answer.response)
            unary = self.client.attention.Attend(problem.request())
            self.assertEqual(answer.response.output.data, unary.output.data)

    @exercises(ATTENTION + "AttendStream")
    def test_weights_come_in_blocks(self):
        problem = make_problem(200, 300, 9, 3, 16, 16, is_causal=True, sink_logits=np.ones(9, "f4"))
        answers = self.stream({1: problem.request(weights=True, column_sums=True)})[1]
        problem.check(self, answers[0].response)
        blocks = [answer.weights for answer in answers[1:]]
        self.assertGreater(len(blocks), 1)
        self.assertEqual({block.sequence for block in blocks}, {0})
        arrays = [from_tensor(block.weights) for block in blocks]
        starts = np.cumsum([0] + [len(array) for array in arrays])
        self.assertEqual([block.q_begin for block in blocks], list(starts[:-1]))
        harness.check_weights(self, problem, np.concatenate(arrays))

    @exercises(ATTENTION + "AttendStream")
    def test_a_bad_request_leaves_the_others_alone(self):
        good = make_problem(3, 5, 2, 2, 8, 8)
        bad = good.request()
        bad.v.shape[0] = 4
        answers = self.stream({1: good.request(), 2: bad, 3: good.request()})
        error = answers[2][0].error
        self.assertEqual(error.code, INVALID_ARGUMENT.value[0])
        self.assertIn("v.data", error.message)
        for key in (1, 3):
            good.check(self, answers[key][0].response)

    @exercises(ATTENTION + "AttendStream")
    def test_nothing_sent_is_a_good_stream(self):
        self.assertEqual(self.stream({}), {})

    @exercises(ATTENTION + "AttendStream")
    def test_answers_come_before_the_client_has_finished(self):
        problem = make_problem(3, 5, 2, 2, 8, 8)
        is_answered = []

        def requests():
            for key in range(3):
                self.assertEqual(len(is_answered), key)
                yield attention_service_pb2.AttendStreamRequest(
                    request_id=key, request=problem.request()
                )
                harness.await_true(lambda: len(is_answered) > key)

        for response in self.client.attention.AttendStream(requests()):
            is_answered.append(response.request_id)
        self.assertEqual(is_answered, [0, 1, 2])


class ServerServiceTest(unittest.TestCase):
    def setUp(self):
        self.client = client_for(self)

    @exercises(SERVER + "GetServerInfo")
    def test_server_info(self):
        info = self.client.server.GetServerInfo(server_service_pb2.GetServerInfoRequest())
        self.assertTrue(info.version and info.commit and info.server_name and info.server_epoch)
        [device] = [device for device in info.devices if device.is_used]
        self.assertIn(device.backend, ("cpu", "cuda"))
        self.assertTrue(device.name and device.isa)
        self.assertGreater(device.num_threads, 0)
        self.assertEqual(info.limits.max_message_bytes, 8 << 20)
        self.assertEqual(info.limits.kv_capacity_bytes, 64 << 20)
        self.assertEqual((info.limits.max_head_dim_qk, info.limits.max_head_dim_v), (576, 512))
        self.assertLessEqual(info.capacity.kv_free_bytes, info.limits.kv_capacity_bytes)

    def explain(self, **fields):
        shape = {"num_q_heads": 8, "num_kv_heads": 2, "head_dim_qk": 64, "head_dim_v": 32}
        request = server_service_pb2.ExplainRequest(
            dtype=tensor_pb2.DTYPE_FLOAT32, q_len=10, kv_len=100, **{**shape, **fields}
        )
        return self.client.server.Explain(request)

    @exercises(SERVER + "Explain")
    def test_explain(self):
        answer = self.explain()
        self.assertTrue(answer.is_supported, answer.unsupported_reason)
        self.assertTrue(answer.backend and answer.kernel)
        self.assertEqual(answer.flops, 2 * (64 + 32) * 10 * 100 * 8)
        self.assertEqual(answer.kv_bytes, 100 * 2 * (64 + 32) * 4)
        self.assertEqual(answer.io_bytes, 10 * 8 * (64 + 32) * 4)
        self.assertGreater(answer.roofline_seconds, 0)

    @exercises(SERVER + "Explain")
    def test_explain_counts_visible_pairs_only(self):
        config = attention_config_pb2.AttentionConfig(is_causal=True)
        pairs = sum(range(91, 101))
        self.assertEqual(self.explain(config=config).flops, 2 * (64 + 32) * pairs * 8)
        aligned_left = self.explain(config=config, first_query_position=0)
        self.assertEqual(aligned_left.flops, 2 * (64 + 32) * sum(range(1, 11)) * 8)
        halved = self.explain(kv_dtype=tensor_pb2.DTYPE_BFLOAT16)
        self.assertEqual(halved.kv_bytes, 100 * 2 * (64 + 32) * 2)
        for dtype in (tensor_pb2.DTYPE_INT8, tensor_pb2.DTYPE_FLOAT8_E4M3):
            # A float32 scale for each token and head, of keys and of values.
            self.assertEqual(self.explain(kv_dtype=dtype).kv_bytes, 100 * 2 * (64 + 32 + 2 * 4))

    @exercises(SERVER + "Explain")
    def test_explain_names_the_wrong_field(self):
        with assert_fails(self, INVALID_ARGUMENT, "head_dim_qk", "577", "576"):
            self.explain(head_dim_qk=577)
        with assert_fails(self, INVALID_ARGUMENT, "num_q_heads"):
            self.explain(num_q_heads=7)

    @exercises(SERVER + "GetTenantLimits")
    def test_a_tenant_sees_its_limits_and_what_it_uses(self):
        answer = self.client.server.GetTenantLimits(server_service_pb2.GetTenantLimitsRequest())
        self.assertTrue(answer.tenant)
        self.assertFalse(answer.is_listed)
        self.assertEqual(answer.limits.kv_bytes, (64 << 20) - (64 << 20) // 10)
        self.assertFalse(answer.limits.HasField("work_rate"), "there is no such limit")
        self.assertEqual(answer.limits.highest_priority, "high")
        self.assertGreaterEqual(answer.use.sessions, 0)

    @exercises(SERVER + "SetTenantLimits")
    def test_only_administrators_set_limits(self):
        request = server_service_pb2.SetTenantLimitsRequest(tenant="a")
        request.limits.sessions = 1
        with assert_fails(
            self, grpc.StatusCode.PERMISSION_DENIED, reason="ROLE_REQUIRED", metadata={"role": "admin"}
        ):
            self.client.server.SetTenantLimits(request)

    @exercises(SERVER + "Drain")
    def test_only_administrators_drain(self):
        with assert_fails(
            self, grpc.StatusCode.PERMISSION_DENIED, reason="ROLE_REQUIRED", metadata={"role": "admin"}
        ):
            self.client.server.Drain(server_service_pb2.DrainRequest())
        self.client.server.GetServerInfo(server_service_pb2.GetServerInfoRequest())  # it goes on


@unittest.skipIf(health_pb2 is None, "the package grpc-proto is not installed")
class StandardServicesTest(unittest.TestCase):
    def setUp(self):
        self.client = client_for(self)

    def test_health_check_of_each_service(self):
        health = health_pb2_grpc.HealthStub(self.client.channel)
        for service in ("", ATTENTION[:-1], SESSION[:-1], SERVER[:-1]):
            with self.subTest(service):
                answer = health.Check(health_pb2.HealthCheckRequest(service=service))
                self.assertEqual(answer.status, health_pb2.HealthCheckResponse.SERVING)
        with assert_fails(self, NOT_FOUND):
            health.Check(health_pb2.HealthCheckRequest(service="no.such.Service"))

    def test_health_watch(self):
        health = health_pb2_grpc.HealthStub(self.client.channel)
        expected = {
            ATTENTION[:-1]: health_pb2.HealthCheckResponse.SERVING,
            "no.such.Service": health_pb2.HealthCheckResponse.SERVICE_UNKNOWN,
        }
        for service, status in expected.items():
            with self.subTest(service):
                watch = health.Watch(health_pb2.HealthCheckRequest(service=service))
                self.assertEqual(next(watch).status, status)
                watch.cancel()

    def reflect(self, **query):
        stub = reflection_pb2_grpc.ServerReflectionStub(self.client.channel)
        [answer] = stub.ServerReflectionInfo(
            iter([reflection_pb2.ServerReflectionRequest(**query)])
        )
        return answer

    def test_reflection_lists_the_services(self):
        answer = self.reflect(list_services="")
        names = {service.name for service in answer.list_services_response.service}
        expected = {ATTENTION[:-1], SESSION[:-1], SERVER[:-1], "grpc.health.v1.Health"}
        self.assertLessEqual(expected, names)

    def test_reflection_gives_the_file_of_a_method(self):
        answer = self.reflect(file_containing_symbol=ATTENTION + "Attend")
        descriptor = attention_service_pb2.DESCRIPTOR.serialized_pb
        self.assertIn(descriptor, answer.file_descriptor_response.file_descriptor_proto)
