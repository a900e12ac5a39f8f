"""A Python program's needs beside the generated stubs: numpy arrays in and out, and the facts
that come with an error. Small enough to copy."""

import dataclasses
import datetime
import json

import grpc
import numpy as np
from attention.v1 import attention_service_pb2_grpc, errors_pb2, layer_service_pb2_grpc
from attention.v1 import server_service_pb2_grpc, session_service_pb2_grpc, tensor_pb2

# numpy has no bfloat16: its bits travel in a uint16 array.
_NUMPY_TYPES = {
    tensor_pb2.DTYPE_FLOAT32: np.dtype("<f4"),
    tensor_pb2.DTYPE_FLOAT16: np.dtype("<f2"),
    tensor_pb2.DTYPE_BFLOAT16: np.dtype("<u2"),
    tensor_pb2.DTYPE_BOOL: np.dtype(bool),
}
_WIRE_TYPES = {numpy_type: wire_type for wire_type, numpy_type in _NUMPY_TYPES.items()}


def to_tensor(array):
    """A Tensor of a float32, float16, uint16 (the bits of bfloat16) or bool array."""
    return tensor_pb2.Tensor(
        dtype=_WIRE_TYPES[array.dtype], shape=array.shape, data=array.tobytes()
    )


def from_tensor(tensor):
    """The array of a Tensor, as a read-only view of its bytes."""
    return np.frombuffer(tensor.data, _NUMPY_TYPES[tensor.dtype]).reshape(tensor.shape)


def to_bfloat16(array):
    """The bits of float32 numbers rounded to the nearest bfloat16, ties to even."""
    bits = np.asarray(array, np.float32).view(np.uint32)
    rounded = bits + np.uint32(0x7FFF) + ((bits >> 16) & 1)
    return np.where(np.isnan(array), 0x7FC0, rounded >> 16).astype(np.uint16)


def from_bfloat16(bits):
    """The float32 numbers of bfloat16 bits."""
    return (np.asarray(bits, np.uint16).astype(np.uint32) << 16).view(np.float32)


@dataclasses.dataclass
class ErrorDetails:
    """The google.rpc.ErrorInfo and RetryInfo of a failed call; empty where it had none."""

    reason: str = ""
    domain: str = ""
    metadata: dict = dataclasses.field(default_factory=dict)
    retry_delay: datetime.timedelta | None = None


def error_details(error):
    """The ErrorDetails of a grpc.RpcError."""
    details = ErrorDetails()
    trailers = {key: value for key, value in error.trailing_metadata() or ()}
    status = errors_pb2.StatusDetails.FromString(trailers.get("grpc-status-details-bin", b""))
    for detail in status.details:
        if detail.type_url.endswith("/google.rpc.ErrorInfo"):
            info = errors_pb2.ErrorInfo.FromString(detail.value)
            details.reason, details.domain = info.reason, info.domain
            details.metadata = dict(info.metadata)
        elif detail.type_url.endswith("/google.rpc.RetryInfo"):
            retry = errors_pb2.RetryInfo.FromString(detail.value)
            details.retry_delay = retry.retry_delay.ToTimedelta()
    return details


def channel_options(timeout_seconds):
    """Messages of any size, and a deadline for each call that sets none itself."""
    default = {"methodConfig": [{"name": [{}], "timeout": f"{timeout_seconds}s"}]}
    return [
        ("grpc.max_send_message_length", -1),
        ("grpc.max_receive_message_length", -1),
        ("grpc.service_config", json.dumps(default)),
    ]


class Client:
    """A channel with a stub for each service; one may be shared by any number of threads."""

    def __init__(self, target, timeout_seconds=60):
        self.channel = grpc.insecure_channel(target, channel_options(timeout_seconds))
        self.attention = attention_service_pb2_grpc.AttentionServiceStub(self.channel)
        self.sessions = session_service_pb2_grpc.SessionServiceStub(self.channel)
        self.layers = layer_service_pb2_grpc.LayerServiceStub(self.channel)
        self.server = server_service_pb2_grpc.ServerServiceStub(self.channel)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.channel.close()
