"""What the tests of sessions have in common."""

import unittest

import harness
from attention.v1 import attention_config_pb2, session_service_pb2, tensor_pb2
from harness import client_for

SESSION = "attention.v1.SessionService."


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
