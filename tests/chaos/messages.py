"""Requests that the scenarios send, and ways to send bytes as they are."""

import functools

import numpy as np
from attention.v1 import attention_config_pb2, attention_service_pb2, session_service_pb2
from attention_client import to_tensor

ATTEND = "/attention.v1.AttentionService/Attend"
STEP = "/attention.v1.SessionService/Step"
GET_INFO = "/attention.v1.ServerService/GetServerInfo"
MIB = 1 << 20


@functools.cache
def prompt(tokens, heads=8, dim=64):
    """Causal attention over so many tokens."""
    rows = to_tensor(np.zeros((tokens, heads, dim), np.float32))
    config = attention_config_pb2.AttentionConfig(is_causal=True)
    return attention_service_pb2.AttendRequest(q=rows, k=rows, v=rows, config=config)


def create_session(client, kv_heads, dim, layers=1, metadata=()):
    """The handle of a new session of float32."""
    geometry = session_service_pb2.SessionGeometry(
        num_layers=layers, num_kv_heads=kv_heads, head_dim_qk=dim, head_dim_v=dim, kv_dtype="DTYPE_FLOAT32")
    request = session_service_pb2.CreateSessionRequest(geometry=geometry)
    return client.sessions.CreateSession(request, timeout=20, metadata=metadata).session.handle


def append(client, handle, tokens, kv_heads, dim, position=0):
    """Appends so many rows; the result's error is empty when it went well."""
    rows = to_tensor(np.zeros((tokens, kv_heads, dim), np.float32))
    step = session_service_pb2.SessionStep(handle=handle, expected_position=position, k=rows, v=rows)
    return client.sessions.Step(session_service_pb2.StepRequest(steps=[step]), timeout=20).results[0]


def raw(client, path):
    """A call whose request and answer are bytes."""
    return client.channel.unary_unary(path, request_serializer=bytes, response_deserializer=bytes)
