"""PyTorch's scaled_dot_product_attention by the backends that it has kernels for."""

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.bias import causal_lower_right

from bench_c import Absent


def version():
    return f"{torch.__version__}, cuDNN {torch.backends.cudnn.version()}"


class _Memory:
    """Device memory that another library owns, by the CUDA array interface, which has no bfloat16."""

    def __init__(self, address, shape):
        self.__cuda_array_interface__ = {"data": (address, False), "shape": shape, "typestr": "<i2",
                                         "version": 3}


def tensor_at(address, shape, dtype):
    """A 16-bit tensor where the address says."""
    return torch.as_tensor(_Memory(address, shape), device="cuda").view(getattr(torch, dtype))


class Tensors:
    """q [batch, q_len, heads, dim], k and v [batch, kv_len, heads, dim] of a part."""

    def __init__(self, part):
        self.part = part
        self.dtype = part.dtype.decode()
        if self.dtype not in ("bfloat16", "float16"):
            raise Absent(f"rows of {self.dtype}")
        self.q = tensor_at(part.q, part.q_shape, self.dtype)
        self.k = tensor_at(part.k, part.kv_shape, self.dtype)
        self.v = tensor_at(part.v, part.kv_shape, self.dtype)


class Prepared:
    """A case of calls, one for each part, on the benchmark's stream."""

    def __init__(self, case, form, make_call):
        self.form = form
        self._stream = torch.cuda.ExternalStream(case.stream)
        self._tensors = [Tensors(part) for part in case.all_parts()]
        with torch.cuda.stream(self._stream), torch.inference_mode():
            self._calls = [make_call(tensors) for tensors in self._tensors]
        self._stream.synchronize()
        self._outputs = [None] * len(self._calls)

    def launch(self):
        with torch.cuda.stream(self._stream), torch.inference_mode():
            for index, call in enumerate(self._calls):
                self._outputs[index] = call()

    def output(self, index, address):
        """Outputs of calls are [batch, q_len, heads, dim], or reshape to it."""
        tensors = self._tensors[index]
        with torch.cuda.stream(self._stream), torch.inference_mode():
            out = tensor_at(address, tensors.part.q_shape, tensors.dtype)
            out.copy_(self._outputs[index].reshape(tensors.part.q_shape))


class _Sdpa:
    def __init__(self, name, backend):
        self.name = name
        self._backend = backend

    def prepare(self, case):
        return Prepared(case, f"scaled_dot_product_attention, {self._backend.name}", self._call)

    def _call(self, tensors):
        part = tensors.part
        if part.window_left >= 0:
            raise Absent("windows")
        options = {"enable_gqa": part.num_q_heads != part.num_kv_heads}
        if part.is_causal and part.q_len == part.kv_len:
            options["is_causal"] = True
        elif part.is_causal and part.q_len > 1:
            options["attn_mask"] = causal_lower_right(part.q_len, part.kv_len)
        by_head = [rows.transpose(1, 2) for rows in (tensors.q, tensors.k, tensors.v)]

        def call():
            with sdpa_kernel([self._backend]):
                return F.scaled_dot_product_attention(*by_head, **options).transpose(1, 2)

        return call


PEERS = [lambda: _Sdpa("torch flash", SDPBackend.FLASH_ATTENTION),
         lambda: _Sdpa("torch cuDNN", SDPBackend.CUDNN_ATTENTION)]
