"""The steps of sessions, alone, in streams, and between changes of whole sessions."""

import queue
import time

import grpc
import harness
import numpy as np
from attention.v1 import session_service_pb2, tensor_pb2
from attention_client import from_tensor, to_tensor
from harness import BFLOAT16, assert_fails, exercises, make_problem, random_array
from session_cases import SESSION, SessionTestCase, geometry, make_step

ATTENTION = "attention.v1.AttentionService."

INVALID_ARGUMENT = grpc.StatusCode.INVALID_ARGUMENT
NOT_FOUND = grpc.StatusCode.NOT_FOUND


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
    def test_weights_of_a_step(self):
        problem = make_problem(4, 4, 4, 2, 16, 16)
        step = make_step(self.create(geometry=geometry()).handle, problem, 0, 4)
        step.returns.weights = True
        [result] = self.step(step)
        problem.check(self, result)
        harness.check_weights(self, problem, from_tensor(result.weights))

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
