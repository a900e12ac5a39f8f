"""Every RPC, called as a Python program would call it."""

import datetime
import queue
import time
import unittest

import grpc
import harness
import numpy as np
from attention.v1 import attention_config_pb2, attention_service_pb2, server_service_pb2
from attention.v1 import session_service_pb2, tensor_pb2
from attention_client import from_tensor, to_tensor
from harness import BFLOAT16, FLOAT32, FORMATS, assert_fails, exercises, make_problem

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


def client_for(test):
    """A client that closes when the test ends."""
    return test.enterContext(harness.RecordedClient(harness.address()))


def random_array(*shape):
    return np.random.default_rng(shape).standard_normal(shape).astype(np.float32)


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
            "returns.weights": lambda request: setattr(request.returns, "weights", True),
        }
        for text, change in cases.items():
            with self.subTest(text), assert_fails(self, INVALID_ARGUMENT, text):
                self.client.attention.Attend(broken(change))
        self.check(make_problem(4, 6, 4, 2, 8, 8))

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
        exact = problem.exact().weights
        bound = harness.reference.error_bound(exact, problem.plain().weights, FLOAT32.epsilon)
        harness.check_close(self, "weights", np.concatenate(arrays), exact, bound)

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


def geometry(num_layers=1, kv_heads=2, dim_qk=16, dim_v=16, dtype=tensor_pb2.DTYPE_FLOAT32):
    return session_service_pb2.SessionGeometry(
        num_layers=num_layers,
        num_kv_heads=kv_heads,
        head_dim_qk=dim_qk,
        head_dim_v=dim_v,
        kv_dtype=dtype,
    )


class SessionTestCase(unittest.TestCase):
    """Sessions of a tenant of the test's own, deleted at its end."""

    def setUp(self):
        self.client = client_for(self)
        self.metadata = [("attention-tenant", self.id())]

    def create(self, **fields):
        request = session_service_pb2.CreateSessionRequest(**fields)
        response = self.client.sessions.CreateSession(request, metadata=self.metadata)
        handle = response.session.handle
        self.addCleanup(self.delete, handle)
        return response.session

    def delete(self, handle):
        request = session_service_pb2.DeleteSessionRequest(handle=handle)
        self.client.sessions.DeleteSession(request, metadata=self.metadata)

    def get(self, handle, metadata=None):
        request = session_service_pb2.GetSessionRequest(handle=handle)
        call = self.client.sessions.GetSession
        return call(request, metadata=metadata or self.metadata).session

    def step(self, *steps, metadata=None):
        request = session_service_pb2.StepRequest(steps=steps)
        response = self.client.sessions.Step(request, metadata=metadata or self.metadata)
        self.assertEqual(len(response.results), len(steps))
        return list(response.results)


def make_step(handle, problem, begin, end, **fields):
    """Appends the rows [begin, end) of the problem and attends with its same rows of q."""
    rows = slice(begin, end)
    return session_service_pb2.SessionStep(
        handle=handle,
        expected_position=begin,
        q=problem.tensor("q", rows),
        k=problem.tensor("k", rows),
        v=problem.tensor("v", rows),
        config=harness.make_config(problem.options),
        returns=attention_config_pb2.ReturnOptions(lse=True),
        **fields,
    )


class SessionLifeTest(SessionTestCase):
    @exercises(SESSION + "CreateSession", SESSION + "GetSession", SESSION + "DeleteSession")
    def test_create_get_delete(self):
        ttl = datetime.timedelta(minutes=5)
        shape = geometry(num_layers=3, dim_v=8, dtype=tensor_pb2.DTYPE_BFLOAT16)
        request = session_service_pb2.CreateSessionRequest(geometry=shape, expected_tokens=100)
        request.ttl.FromTimedelta(ttl)
        created = self.client.sessions.CreateSession(request, metadata=self.metadata).session
        found = self.get(created.handle)
        self.assertEqual(found.handle, created.handle)
        self.assertEqual(found.geometry, shape)
        self.assertEqual(list(found.layer_lengths), [0, 0, 0])
        self.assertEqual((found.committed_length, found.kv_bytes), (0, 0))
        self.assertEqual(found.ttl.ToTimedelta(), ttl)
        self.assertGreaterEqual(found.expire_time.ToDatetime(), created.expire_time.ToDatetime())
        for _ in range(2):  # what is gone may be deleted again
            self.delete(created.handle)
        with assert_fails(self, NOT_FOUND, reason="SESSION_NOT_FOUND"):
            self.get(created.handle)

    @exercises(SESSION + "CreateSession")
    def test_a_name_makes_one_session(self):
        first = self.create(geometry=geometry(), name="mine")
        again = self.create(geometry=geometry(), name="mine")
        self.assertEqual((again.handle, again.name), (first.handle, "mine"))
        with assert_fails(self, grpc.StatusCode.ALREADY_EXISTS, "name"):
            self.create(geometry=geometry(num_layers=2), name="mine")

    @exercises(SESSION + "ListSessions", SESSION + "CreateSession")
    def test_list_in_pages(self):
        ids = {self.create(geometry=geometry()).handle.session_id for _ in range(5)}
        pages, token = [], ""
        while not pages or token:
            request = session_service_pb2.ListSessionsRequest(page_size=2, page_token=token)
            response = self.client.sessions.ListSessions(request, metadata=self.metadata)
            pages.append([session.handle.session_id for session in response.sessions])
            token = response.next_page_token
        self.assertEqual([len(page) for page in pages], [2, 2, 1])
        self.assertEqual(set(sum(pages, [])), ids)

    @exercises(SESSION + "ListSessions")
    def test_list_of_none_and_a_bad_page_size(self):
        request = session_service_pb2.ListSessionsRequest()
        response = self.client.sessions.ListSessions(request, metadata=self.metadata)
        self.assertEqual((list(response.sessions), response.next_page_token), ([], ""))
        request.page_size = 1001
        with assert_fails(self, INVALID_ARGUMENT, "page_size", "1001", "1000"):
            self.client.sessions.ListSessions(request, metadata=self.metadata)

    @exercises(SESSION + "GetSession", SESSION + "Step", SESSION + "DeleteSession")
    def test_tenants_do_not_see_each_other(self):
        handle = self.create(geometry=geometry()).handle
        stranger = [("attention-tenant", "stranger")]
        with assert_fails(self, NOT_FOUND, reason="SESSION_NOT_FOUND"):
            self.get(handle, metadata=stranger)
        problem = make_problem(4, 4, 4, 2, 16, 16)
        [result] = self.step(make_step(handle, problem, 0, 4), metadata=stranger)
        self.assertEqual(
            (result.error.code, result.error.reason), (NOT_FOUND.value[0], "SESSION_NOT_FOUND")
        )
        request = session_service_pb2.DeleteSessionRequest(handle=handle)
        self.client.sessions.DeleteSession(request, metadata=stranger)
        self.assertEqual(self.get(handle).committed_length, 0)

    @exercises(SESSION + "CreateSession")
    def test_create_names_the_wrong_field(self):
        cases = {
            "geometry": {},
            "num_layers": {"geometry": geometry(num_layers=0)},
            "num_kv_heads": {"geometry": geometry(kv_heads=-1)},
            "head_dim_qk": {"geometry": geometry(dim_qk=577)},
            "head_dim_v": {"geometry": geometry(dim_v=0)},
            "kv_dtype": {"geometry": geometry(dtype=tensor_pb2.DTYPE_BOOL)},
            "expected_tokens": {"geometry": geometry(), "expected_tokens": -1},
            "ttl": {"geometry": geometry(), "ttl": datetime.timedelta(days=400)},
        }
        for field, values in cases.items():
            with self.subTest(field), assert_fails(self, INVALID_ARGUMENT, field):
                ttl = values.pop("ttl", datetime.timedelta(minutes=1))
                request = session_service_pb2.CreateSessionRequest(**values)
                request.ttl.FromTimedelta(ttl)
                self.client.sessions.CreateSession(request, metadata=self.metadata)

    @exercises(SESSION + "CreateSession")
    def test_quota_of_a_tenant(self):
        limits = self.client.server.GetServerInfo(
            server_service_pb2.GetServerInfoRequest()
        ).limits
        bound = limits.max_sessions_per_tenant
        for _ in range(bound):
            self.create(geometry=geometry())
        told = {"limit": "sessions", "use": str(bound), "bound": str(bound)}
        with assert_fails(self, RESOURCE_EXHAUSTED, reason="QUOTA_EXCEEDED", metadata=told):
            self.create(geometry=geometry())

    @exercises(SESSION + "CreateSession")
    def test_more_tokens_than_the_pool_holds(self):
        with assert_fails(self, RESOURCE_EXHAUSTED, reason="KV_EXHAUSTED"):
            self.create(geometry=geometry(kv_heads=64), expected_tokens=1 << 20)

    @exercises(SESSION + "GetSession")
    def test_handles_of_other_workers(self):
        handle = self.create(geometry=geometry()).handle
        moved = session_service_pb2.SessionHandle(server_name="elsewhere", session_id=handle.session_id)
        code = grpc.StatusCode.FAILED_PRECONDITION
        with assert_fails(self, code, reason="SESSION_MOVED", metadata={"server_name": "elsewhere"}):
            self.get(moved)
        handle.server_epoch += 1
        with assert_fails(self, NOT_FOUND, reason="SESSION_LOST"):
            self.get(handle)
        handle.server_epoch -= 1

    @exercises(SESSION + "GetSession")
    def test_idle_session_expires(self):
        ttl = datetime.timedelta(milliseconds=1)
        handle = self.create(geometry=geometry(), ttl=harness.to_duration(ttl)).handle

        def is_gone():  # asking renews it, unless it had expired
            try:
                self.get(handle)
            except grpc.RpcError as error:
                return harness.error_details(error).reason == "SESSION_EXPIRED"
            return False

        harness.await_true(is_gone)


class StepTest(SessionTestCase):
    @exercises(SESSION + "Step", ATTENTION + "Attend")
    def test_any_chunks_have_the_bits_of_the_whole(self):
        problem = make_problem(70, 70, 6, 2, 16, 16, is_causal=True)
        whole = self.client.attention.Attend(problem.request(lse=True))
        problem.check(self, whole)
        for chunks in ([70], [13, 50, 7], [1] * 70):
            with self.subTest(chunks=chunks):
                handle = self.create(geometry=geometry()).handle
                ends = np.cumsum(chunks)
                results = [
                    self.step(make_step(handle, problem, int(end - size), int(end)))[0]
                    for size, end in zip(chunks, ends, strict=True)
                ]
                self.assertEqual(b"".join(r.output.data for r in results), whole.output.data)
                self.assertEqual(b"".join(r.lse.data for r in results), whole.lse.data)
                self.assertEqual([r.position for r in results], list(ends))

    @exercises(SESSION + "Step", SESSION + "GetSession")
    def test_append_only_then_attend_only(self):
        problem = make_problem(5, 30, 4, 2, 16, 16, is_causal=True)
        handle = self.create(geometry=geometry(num_layers=2)).handle
        append = make_step(handle, problem, 0, 30)
        append.ClearField("q")
        [result] = self.step(append)
        self.assertEqual((result.position, result.HasField("output")), (30, False))
        attend = make_step(handle, problem, 0, 30)
        for field in ("k", "v", "expected_position"):
            attend.ClearField(field)
        attend.returns.column_sums = True
        [result] = self.step(attend)
        problem.check(self, result)
        session = self.get(handle)
        self.assertEqual(list(session.layer_lengths), [30, 0])
        self.assertEqual(session.committed_length, 0)
        self.assertGreater(session.kv_bytes, 0)

    @exercises(SESSION + "Step")
    def test_encoder_keys_serve_every_decode_step(self):
        problem = make_problem(6, 40, 4, 4, 16, 16)
        handle = self.create(geometry=geometry(kv_heads=4)).handle
        append = make_step(handle, problem, 0, 40)
        append.ClearField("q")
        attend = session_service_pb2.SessionStep(handle=handle, q=problem.tensor("q"))
        results = self.step(append, attend, attend)
        for result in results[1:]:
            problem.check(self, result)

    @exercises(SESSION + "Step")
    def test_retry_attends_again_without_appending(self):
        problem = make_problem(9, 9, 4, 2, 16, 16, is_causal=True)
        handle = self.create(geometry=geometry()).handle
        steps = [make_step(handle, problem, 0, 4), make_step(handle, problem, 4, 9)]
        first = self.step(*steps)
        again = self.step(*steps)
        self.assertEqual([result.is_replay for result in first + again], [False] * 2 + [True] * 2)
        for old, new in zip(first, again, strict=True):
            self.assertEqual(old.output.data, new.output.data)
            self.assertEqual(new.position, 9)

    def fork(self, handle, **fields):
        request = session_service_pb2.ForkSessionRequest(handle=handle, **fields)
        copies = self.client.sessions.ForkSession(request, metadata=self.metadata).sessions
        for copy in copies:
            self.addCleanup(self.delete, copy.handle)
        return copies

    @exercises(SESSION + "ForkSession")
    def test_copies_answer_as_the_same_rows_alone(self):
        problem = make_problem(90, 90, 4, 2, 16, 16, is_causal=True)
        source, alone = (self.create(geometry=geometry()).handle for _ in range(2))
        self.step(make_step(source, problem, 0, 70), make_step(alone, problem, 0, 60))
        names = ["fork one", "fork two"]
        copies = self.fork(source, length=60, num_copies=2, names=names)
        self.assertEqual([copy.committed_length for copy in copies], [60, 60])
        self.assertEqual([copy.name for copy in copies], names)
        again = self.fork(source, length=60, num_copies=2, names=names)
        self.assertEqual([copy.handle for copy in again], [copy.handle for copy in copies])
        handles = [alone, *(copy.handle for copy in copies)]
        results = self.step(*(make_step(handle, problem, 60, 90) for handle in handles))
        self.assertEqual({result.output.data for result in results}, {results[0].output.data})
        with assert_fails(
            self,
            grpc.StatusCode.FAILED_PRECONDITION,
            "length is 71, expected at most the committed length 70",
            reason="POSITION_MISMATCH",
            metadata={"actual_position": "70"},
        ):
            self.fork(source, length=71)

    def test_layers_may_differ_and_a_window_lets_go(self):
        options = {"is_causal": True, "window_left": 19, "sink_tokens": 1}
        windowed = make_problem(120, 120, 4, 2, 16, 16, **options)
        wide = make_problem(120, 120, 4, 1, 512, 32, is_causal=True)
        layers = [
            session_service_pb2.LayerShape(
                num_kv_heads=problem.k.shape[1],
                head_dim_qk=problem.k.shape[2],
                head_dim_v=problem.v.shape[2],
                kv_dtype=tensor_pb2.DTYPE_FLOAT32,
                **window,
            )
            for problem, window in ((windowed, {"window_tokens": 20, "sink_tokens": 1}), (wide, {}))
        ]
        shape = session_service_pb2.SessionGeometry(layers=layers)
        session = self.create(geometry=shape)
        self.assertEqual(list(session.geometry.layers), layers)
        handle, whole = session.handle, self.create(geometry=geometry()).handle
        for begin in range(0, 120, 10):
            kept, other, expected = self.step(
                make_step(handle, windowed, begin, begin + 10),
                make_step(handle, wide, begin, begin + 10, layer=1),
                make_step(whole, windowed, begin, begin + 10),
            )
            self.assertFalse(other.HasField("error"), other.error.message)
            self.assertEqual(kept.output.data, expected.output.data)
        [dropped] = self.step(make_step(handle, windowed, 0, 10))
        self.assertEqual(dropped.error.reason, "WINDOW_DROPPED")
        self.assertEqual(dropped.error.metadata["first_position"], "80")

    @exercises(SESSION + "TruncateSession")
    def test_drafts_are_taken_back(self):
        problem = make_problem(12, 12, 4, 2, 16, 16, is_causal=True)
        handle = self.create(geometry=geometry()).handle
        right = make_step(handle, problem, 9, 12)
        drafts = make_step(handle, problem, 9, 12)
        drafts.k.data, drafts.v.data = drafts.v.data, drafts.k.data
        self.step(make_step(handle, problem, 0, 9), drafts)
        [refused] = self.step(right)
        self.assertEqual(refused.error.reason, "POSITION_MISMATCH")
        self.assertIn("TruncateSession", refused.error.message)
        request = session_service_pb2.TruncateSessionRequest(handle=handle, length=9)
        for _ in range(2):
            response = self.client.sessions.TruncateSession(request, metadata=self.metadata)
            self.assertEqual(list(response.session.layer_lengths), [9])
        [result] = self.step(right)
        self.assertFalse(result.HasField("error") or result.is_replay)

    @exercises(SESSION + "AttachSession")
    def test_a_new_writer_fences_the_old_one(self):
        problem = make_problem(12, 12, 4, 2, 16, 16, is_causal=True)
        old = self.create(geometry=geometry()).handle
        self.step(make_step(old, problem, 0, 9))
        request = session_service_pb2.AttachSessionRequest(handle=old)
        session = self.client.sessions.AttachSession(request, metadata=self.metadata).session
        self.assertEqual(list(session.layer_lengths), [9])
        [fenced] = self.step(make_step(old, problem, 9, 12))
        self.assertEqual(fenced.error.reason, "FENCED")
        [result] = self.step(make_step(session.handle, problem, 9, 12))
        self.assertFalse(result.HasField("error"))
        self.delete(session.handle)  # the old writer may not

    @exercises(SESSION + "ReorderSessions")
    def test_beams_swap_and_a_repetition_changes_nothing(self):
        problem = make_problem(20, 20, 4, 2, 16, 16)
        source = self.create(geometry=geometry()).handle
        beams = [copy.handle for copy in self.fork(source, num_copies=2)]
        self.step(make_step(beams[0], problem, 0, 20), make_step(beams[1], problem, 0, 7))
        request = session_service_pb2.ReorderSessionsRequest(
            handles=beams, sources=[1, 0], reorder_id=1
        )
        call = self.client.sessions.ReorderSessions
        for _ in range(2):
            sessions = call(request, metadata=self.metadata).sessions
            self.assertEqual([session.committed_length for session in sessions], [7, 20])
        request.sources[1] = 2
        with assert_fails(self, INVALID_ARGUMENT, "sources[1] is 2, expected 0 to 1"):
            call(request, metadata=self.metadata)

    @exercises(SESSION + "Step")
    def test_a_gap_tells_the_actual_position(self):
        problem = make_problem(9, 9, 4, 2, 16, 16)
        handle = self.create(geometry=geometry()).handle
        good, gap = make_step(handle, problem, 0, 4), make_step(handle, problem, 5, 9)
        [result, failed] = self.step(good, gap)
        self.assertFalse(result.HasField("error"))
        self.assertEqual(failed.error.code, grpc.StatusCode.FAILED_PRECONDITION.value[0])
        self.assertEqual(failed.error.reason, "POSITION_MISMATCH")
        self.assertEqual(failed.error.metadata, {"actual_position": "4"})

    @exercises(SESSION + "Step")
    def test_sessions_of_one_request_are_independent(self):
        problem = make_problem(8, 8, 4, 2, 16, 16, is_causal=True)
        handles = [self.create(geometry=geometry()).handle for _ in range(3)]
        steps = [make_step(handle, problem, 0, 8) for handle in handles]
        steps[1].layer = 1
        results = self.step(*steps)
        self.assertIn("layer", results[1].error.message)
        for result in (results[0], results[2]):
            problem.check(self, result)

    @exercises(SESSION + "Step")
    def test_partial_results_merge_by_lse(self):
        problem = make_problem(4, 50, 4, 2, 16, 16)
        handle = self.create(geometry=geometry()).handle
        append = make_step(handle, problem, 0, 50)
        append.ClearField("q")
        self.step(append)

        def attend(begin, end):
            step = session_service_pb2.SessionStep(
                handle=handle, q=problem.tensor("q"), kv_begin=begin, kv_end=end
            )
            step.returns.lse = True
            [result] = self.step(step)
            return from_tensor(result.output), from_tensor(result.lse)

        (left, left_lse), (right, right_lse) = attend(0, 17), attend(17, 50)
        lse = np.logaddexp(left_lse, right_lse)
        parts = ((left, left_lse), (right, right_lse))
        merged = sum(part * np.exp(part_lse - lse)[..., None] for part, part_lse in parts)
        exact = problem.exact()
        np.testing.assert_allclose(merged, exact.output, atol=2e-6)
        np.testing.assert_allclose(lse, exact.lse, atol=2e-6)

    @exercises(SESSION + "Step")
    def test_rows_of_another_dtype_are_rounded_to_the_cache(self):
        problem = make_problem(6, 6, 4, 2, 16, 16, is_causal=True)
        handle = self.create(geometry=geometry(dtype=tensor_pb2.DTYPE_BFLOAT16)).handle
        [result] = self.step(make_step(handle, problem, 0, 6))
        rounded = harness.Problem(
            problem.q, BFLOAT16.round(problem.k), BFLOAT16.round(problem.v), problem.options
        )
        rounded.check(self, result)

    @exercises(SESSION + "Step")
    def test_pool_exhausted_and_freed_again(self):
        wide = make_problem(1, 1, 64, 64, 256, 256)
        shape = geometry(num_layers=64, kv_heads=64, dim_qk=256, dim_v=256)
        handle = self.create(geometry=shape).handle
        [first, *_] = results = [
            self.step(make_step(handle, wide, 0, 1, layer=layer))[0] for layer in range(64)
        ]
        wide.check(self, first)
        reasons = {result.error.reason for result in results if result.HasField("error")}
        self.assertEqual(reasons, {"QUOTA_EXCEEDED"}, "a tenth is left to other tenants")
        self.delete(handle)
        handle = self.create(geometry=shape).handle
        wide.check(self, self.step(make_step(handle, wide, 0, 1))[0])

    @exercises(SESSION + "Step")
    def test_column_sums_over_no_keys_have_a_shape(self):
        handle = self.create(geometry=geometry()).handle
        step = make_step(handle, make_problem(4, 4, 4, 2, 16, 16), 0, 4, kv_end=0)
        step.returns.column_sums = True
        [result] = self.step(step)
        self.assertTrue(result.HasField("column_sums"))
        self.assertEqual(from_tensor(result.column_sums).shape, (0, 4))

    @exercises(SESSION + "Step")
    def test_invalid_steps_name_the_field(self):
        problem = make_problem(4, 4, 4, 2, 16, 16)
        handle = self.create(geometry=geometry()).handle
        cases = {
            "expected_position": lambda step: step.ClearField("expected_position"),
            "v is missing": lambda step: step.ClearField("v"),
            "layer": lambda step: setattr(step, "layer", -1),
            "steps[0].q.shape": lambda step: step.q.CopyFrom(to_tensor(random_array(4, 4, 15))),
            "k.shape": lambda step: step.k.CopyFrom(to_tensor(random_array(4, 1, 16))),
            "returns.weights": lambda step: setattr(step.returns, "weights", True),
            "kv_end": lambda step: setattr(step, "kv_end", 5),
            "session_id": lambda step: setattr(step.handle, "session_id", ""),
        }
        for text, change in cases.items():
            with self.subTest(text):
                step = make_step(handle, problem, 0, 4)
                change(step)
                [result] = self.step(step)
                self.assertEqual(result.error.code, INVALID_ARGUMENT.value[0])
                self.assertIn(text, result.error.message)
        self.assertEqual(self.get(handle).committed_length, 0)
        problem.check(self, self.step(make_step(handle, problem, 0, 4))[0])

    @exercises(SESSION + "Step")
    def test_no_steps(self):
        with assert_fails(self, INVALID_ARGUMENT, "steps"):
            self.step()


class StepStreamTest(SessionTestCase):
    def stream(self, steps):
        """The response of each step, each sent as a request of its own."""
        wire = (
            session_service_pb2.StepStreamRequest(
                request_id=key, request=session_service_pb2.StepRequest(steps=some)
            )
            for key, some in enumerate([step] if step else [] for step in steps)
        )
        responses = list(self.client.sessions.StepStream(wire, metadata=self.metadata))
        self.assertEqual(sorted(r.request_id for r in responses), list(range(len(steps))))
        return sorted(responses, key=lambda response: response.request_id)

    @exercises(SESSION + "StepStream", ATTENTION + "Attend")
    def test_decoding_in_order_without_waiting(self):
        problem = make_problem(100, 100, 6, 2, 16, 16, is_causal=True)
        whole = self.client.attention.Attend(problem.request())
        handle = self.create(geometry=geometry()).handle
        responses = self.stream([make_step(handle, problem, i, i + 1) for i in range(100)])
        rows = [response.response.results[0].output.data for response in responses]
        self.assertEqual(b"".join(rows), whole.output.data)

    @exercises(SESSION + "StepStream", SESSION + "GetSession")
    def test_a_session_created_on_a_stream_ends_with_it(self):
        requests = queue.SimpleQueue()
        call = self.client.sessions.StepStream(iter(requests.get, None), metadata=self.metadata)
        create = session_service_pb2.CreateSessionRequest(geometry=geometry())
        requests.put(session_service_pb2.StepStreamRequest(request_id=1, create_session=create))
        handle = next(call).created_session.session.handle
        problem = make_problem(4, 4, 4, 2, 16, 16, is_causal=True)
        [result] = self.step(make_step(handle, problem, 0, 4))
        problem.check(self, result)
        requests.put(None)
        self.assertEqual(list(call), [])
        for _ in range(1000):
            try:
                self.get(handle)
            except grpc.RpcError as error:
                self.assertEqual(error.code(), NOT_FOUND)
                self.assertIn("ended with the stream", error.details())
                return
            time.sleep(0.01)
        self.fail("the session is still there")

    @exercises(SESSION + "StepStream")
    def test_errors_leave_the_stream_alone(self):
        problem = make_problem(4, 4, 4, 2, 16, 16, is_causal=True)
        handle = self.create(geometry=geometry()).handle
        gap = make_step(handle, problem, 2, 4)
        refused, failed, good = self.stream([None, gap, make_step(handle, problem, 0, 4)])
        self.assertEqual(refused.error.code, INVALID_ARGUMENT.value[0])
        self.assertEqual(failed.response.results[0].error.reason, "POSITION_MISMATCH")
        problem.check(self, good.response.results[0])


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
