"""The Python sample of README.md, run against the server named on the command line."""

import sys

TARGET = sys.argv[1] if len(sys.argv) > 1 else "localhost:7070"

# [sample]
import grpc
import numpy as np
from attention.v1 import attention_service_pb2 as pb
from attention.v1 import attention_service_pb2_grpc as stubs
from attention.v1 import tensor_pb2

def tensor(array):
    return tensor_pb2.Tensor(dtype=tensor_pb2.DTYPE_FLOAT32, shape=array.shape,
                             data=array.astype("<f4").tobytes())

q = np.random.randn(128, 8, 64)  # tokens, heads, head_dim
k, v = np.random.randn(2, 128, 2, 64)  # grouped-query: 8 query heads on 2 KV heads
request = pb.AttendRequest(q=tensor(q), k=tensor(k), v=tensor(v))
request.config.is_causal = True
output = stubs.AttentionServiceStub(grpc.insecure_channel(TARGET)).Attend(request).output
print(np.frombuffer(output.data, "<f4").reshape(tuple(output.shape)))
# [end]
