"""The Python sample of docs/clients.md.

    readme_sample.py [ADDRESS [DTYPE]]
"""

# [sample]
import sys

import grpc
import numpy as np
from attention.v1 import attention_service_pb2 as pb
from attention.v1 import attention_service_pb2_grpc as stubs
from attention.v1 import tensor_pb2

try:
    import ml_dtypes  # gives numpy a bfloat16; nothing else here needs it
except ImportError:
    pass

DTYPES = {"float32": tensor_pb2.DTYPE_FLOAT32, "float16": tensor_pb2.DTYPE_FLOAT16,
          "bfloat16": tensor_pb2.DTYPE_BFLOAT16, "bool": tensor_pb2.DTYPE_BOOL}
NAMES = {dtype: name for name, dtype in DTYPES.items()}

def to_tensor(array):  # row-major, little-endian
    return tensor_pb2.Tensor(dtype=DTYPES[array.dtype.name], shape=array.shape, data=array.tobytes())

def to_array(tensor):
    return np.frombuffer(tensor.data, np.dtype(NAMES[tensor.dtype])).reshape(tensor.shape)

address = sys.argv[1] if len(sys.argv) > 1 else "localhost:7070"
dtype = np.dtype(sys.argv[2] if len(sys.argv) > 2 else "float32")
# Without this gRPC refuses answers above 4 MiB.
channel = grpc.insecure_channel(address, [("grpc.max_receive_message_length", -1)])
attention = stubs.AttentionServiceStub(channel)

q = np.random.randn(2048, 8, 64).astype(dtype)  # tokens, heads, head dim
k, v = np.random.randn(2, 2048, 2, 64).astype(dtype)  # grouped-query: 8 query heads on 2 KV heads
request = pb.AttendRequest(q=to_tensor(q), k=to_tensor(k), v=to_tensor(v))
request.config.is_causal = True
output = to_array(attention.Attend(request, timeout=30).output)  # grpc.RpcError: code() and details()
print(output.shape, output.dtype, output[-1, 0, :4])
# [end]
