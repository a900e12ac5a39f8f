"""The rows of sessions: let go, accepted, read back, and moved by archives."""

import queue

import grpc
import numpy as np
from attention.v1 import session_service_pb2
from attention_client import from_tensor
from harness import Problem, assert_fails, exercises, make_problem
from session_cases import SESSION, SessionTestCase, geometry, make_step

FAILED_PRECONDITION = grpc.StatusCode.FAILED_PRECONDITION


def rows_of(problem, tokens):
    """The rows of these tokens as a problem of its own."""
    return Problem(
        problem.q[tokens], problem.k[tokens], problem.v[tokens], problem.options, problem.form
    )


def kept(tokens, num_tokens, **fields):
    bits = np.zeros(num_tokens, np.uint8)
    bits[tokens] = 1
    packed = np.packbits(bits, bitorder="little").tobytes()
    return session_service_pb2.KeptTokens(num_tokens=num_tokens, kept=packed, **fields)


class SessionRowsTest(SessionTestCase):
    def filled(self, problem, length):
        handle = self.create(geometry=geometry()).handle
        append = make_step(handle, problem, 0, length)
        append.ClearField("q")
        append.returns.Clear()
        self.step(append)
        return handle

    @exercises(SESSION + "KeepTokens")
    def test_tokens_that_are_let_go_are_not_attended_to(self):
        problem = make_problem(60, 60, 4, 2, 16, 16, is_causal=True)
        handle = self.filled(problem, 50)
        tokens = [0, 1, 2, 3, *range(30, 50)]
        request = session_service_pb2.KeepTokensRequest(
            handle=handle, keep=[kept(tokens, 50)], change_id=7
        )
        for _ in range(2):  # a repetition changes nothing
            session = self.client.sessions.KeepTokens(request, metadata=self.metadata).session
            self.assertEqual(session.committed_length, 50)
            self.assertEqual(list(session.layer_tokens), [24])
        rest = rows_of(problem, [*tokens, *range(50, 60)])
        alone = self.filled(rest, 24)
        [result] = self.step(make_step(handle, problem, 50, 60))
        [expected] = self.step(make_step(alone, rest, 24, 34))
        self.assertEqual(result.output.data, expected.output.data)
        [refused] = self.step(make_step(handle, problem, 40, 50))
        self.assertEqual(refused.error.reason, "TOKENS_DROPPED")
        request.change_id = 8
        with assert_fails(
            self,
            FAILED_PRECONDITION,
            "keep[0].num_tokens is 50",
            reason="POSITION_MISMATCH",
            metadata={"actual_tokens": "34"},
        ):
            self.client.sessions.KeepTokens(request, metadata=self.metadata)

    @exercises(SESSION + "TruncateSession")
    def test_accepted_drafts_move_together(self):
        problem = make_problem(40, 40, 4, 2, 16, 16, is_causal=True)
        handle = self.filled(problem, 36)
        request = session_service_pb2.TruncateSessionRequest(
            handle=handle, length=30, accepted=[1, 2, 5], change_id=3
        )
        for _ in range(2):
            session = self.client.sessions.TruncateSession(request, metadata=self.metadata).session
            self.assertEqual(session.committed_length, 33)
        path = rows_of(problem, [*range(30), 31, 32, 35, *range(36, 40)])
        [result] = self.step(make_step(handle, path, 33, 37))
        [expected] = self.step(make_step(self.filled(path, 33), path, 33, 37))
        self.assertEqual(result.output.data, expected.output.data)

    @exercises(SESSION + "GetKeysValues")
    def test_rows_come_back(self):
        problem = make_problem(20, 20, 4, 2, 16, 8)
        handle = self.create(geometry=geometry(dim_v=8)).handle
        self.step(make_step(handle, problem, 0, 20))
        request = session_service_pb2.GetKeysValuesRequest(handle=handle, begin=3, end=9)
        rows = self.client.sessions.GetKeysValues(request, metadata=self.metadata)
        np.testing.assert_array_equal(from_tensor(rows.k), problem.k[3:9])
        np.testing.assert_array_equal(from_tensor(rows.v), problem.v[3:9])

    def converse(self, call):
        """A function that sends a request on a stream of `call` and returns its answer."""
        requests = queue.Queue()
        answers = call(iter(requests.get, None), metadata=self.metadata)
        self.addCleanup(requests.put, None)

        def ask(request):
            request.request_id = ask.last_id = ask.last_id + 1
            requests.put(request)
            answer = next(answers)
            self.assertEqual(answer.request_id, request.request_id)
            return answer

        ask.last_id = 0
        return ask

    def export(self, handle):
        """The description of an archive, and its chunks."""
        ask = self.converse(self.client.sessions.ExportSession)
        request = session_service_pb2.ExportSessionRequest
        archive = ask(request(begin={"handle": handle})).archive
        chunks = [ask(request(chunk=index)).chunk for index in range(archive.num_chunks)]
        return archive, chunks

    @exercises(SESSION + "ExportSession", SESSION + "ImportSession")
    def test_an_archive_makes_the_session_again(self):
        problem = make_problem(60, 60, 4, 2, 16, 16, is_causal=True)
        source = self.filled(problem, 50)
        archive, chunks = self.export(source)
        self.assertEqual((archive.format, archive.length), (1, 50))
        request = session_service_pb2.ImportSessionRequest
        ask = self.converse(self.client.sessions.ImportSession)
        ask(request(begin={"archive": archive, "name": "again"}))
        for chunk in chunks:
            self.assertEqual(ask(request(chunk=chunk)).next_chunk, chunk.index + 1)
        session = ask(request(end={})).session
        self.addCleanup(self.delete, session.handle)
        self.assertEqual((session.name, session.committed_length), ("again", 50))
        results = self.step(
            *(make_step(handle, problem, 50, 60) for handle in (source, session.handle)),
            make_step(session.handle, problem, 40, 50),
        )
        self.assertEqual(results[0].output.data, results[1].output.data)
        self.assertTrue(results[2].is_replay, results[2].error.message)

    @exercises(SESSION + "ExportSession", SESSION + "ImportSession")
    def test_a_damaged_chunk_is_refused(self):
        archive, [chunk] = self.export(self.filled(make_problem(8, 8, 4, 2, 16, 16), 8))
        chunk.rows = bytes([chunk.rows[0] ^ 1]) + chunk.rows[1:]
        request = session_service_pb2.ImportSessionRequest
        ask = self.converse(self.client.sessions.ImportSession)
        ask(request(begin={"archive": archive}))
        error = ask(request(chunk=chunk)).error
        self.assertEqual(error.code, grpc.StatusCode.DATA_LOSS.value[0], error.message)
