#!/usr/bin/env python3
"""A minimal Python client, from generated stubs: causal grouped-query attention over two heads of keys.

    attend.py localhost:7070

Prints the output, one number a line.
"""

import sys

import grpc
import numpy as np
from attention.v1 import attention_service_pb2, attention_service_pb2_grpc, tensor_pb2

NUM_TOKENS, NUM_QUERY_HEADS, NUM_KV_HEADS, HEAD_DIM = 16, 4, 2, 8


def numbers(seed, heads):
    """Stands in for a model's projections: [NUM_TOKENS, heads, HEAD_DIM] between -1 and 1."""
    i = np.arange(NUM_TOKENS * heads * HEAD_DIM)
    return ((i * 37 + seed) % 101 - 50).reshape(NUM_TOKENS, heads, HEAD_DIM) / np.float32(50)


# [attend]
def tensor(array):
    """Float32 numbers as the wire has them: dense, row-major, little-endian."""
    return tensor_pb2.Tensor(
        dtype=tensor_pb2.DTYPE_FLOAT32, shape=array.shape, data=array.astype("<f4").tobytes()
    )


def attend(channel):
    request = attention_service_pb2.AttendRequest(
        q=tensor(numbers(1, NUM_QUERY_HEADS)),
        k=tensor(numbers(2, NUM_KV_HEADS)),
        v=tensor(numbers(3, NUM_KV_HEADS)),
    )
    request.config.is_causal = True
    stub = attention_service_pb2_grpc.AttentionServiceStub(channel)
    return stub.Attend(request, timeout=30).output  # raises grpc.RpcError: code() and details()
# [end]


def main():
    if len(sys.argv) != 2:
        sys.exit("usage: attend.py HOST:PORT")
    with grpc.insecure_channel(sys.argv[1]) as channel:
        output = np.frombuffer(attend(channel).data, "<f4")
    print("\n".join(map(str, output)))


if __name__ == "__main__":
    main()
