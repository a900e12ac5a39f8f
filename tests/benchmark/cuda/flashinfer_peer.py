"""FlashInfer: prefill contiguous, decode over pages of 64 tokens, planned beforehand. It compiles its kernels when
they are first asked for, for which it needs nvcc and ninja."""

import flashinfer
import torch

from torch_peer import Prepared

_PAGE = 64
_WORKSPACE_BYTES = 256 << 20


def version():
    return flashinfer.__version__


class _FlashInfer:
    name = "FlashInfer"

    def prepare(self, case):
        return Prepared(case, "single_prefill_with_kv_cache, BatchDecodeWithPagedKVCacheWrapper",
                        self._call)

    def _call(self, tensors):
        return self._decode(tensors) if tensors.part.q_len == 1 else self._prefill(tensors)

    @staticmethod
    def _prefill(tensors):
        part = tensors.part

        def call():
            outs = [flashinfer.single_prefill_with_kv_cache(
                        tensors.q[i], tensors.k[i], tensors.v[i], causal=bool(part.is_causal),
                        window_left=part.window_left) for i in range(part.batch_size)]
            return torch.stack(outs) if len(outs) > 1 else outs[0]

        return call

    @staticmethod
    def _decode(tensors):
        part = tensors.part
        if part.kv_len % _PAGE != 0:
            raise ValueError(f"kv_len is {part.kv_len}, expected a multiple of {_PAGE}")
        # Dense sequences are pages that lie one after the other.
        pages = part.kv_len // _PAGE
        shape = (part.batch_size * pages, _PAGE, part.num_kv_heads, part.head_dim)
        cache = tensors.k.view(shape), tensors.v.view(shape)
        wrapper = flashinfer.BatchDecodeWithPagedKVCacheWrapper(
            torch.empty(_WORKSPACE_BYTES, dtype=torch.uint8, device="cuda"), "NHD",
            use_tensor_cores=True)
        indptr = torch.arange(part.batch_size + 1, dtype=torch.int32, device="cuda") * pages
        wrapper.plan(indptr, torch.arange(part.batch_size * pages, dtype=torch.int32, device="cuda"),
                     torch.full((part.batch_size,), _PAGE, dtype=torch.int32, device="cuda"),
                     part.num_q_heads, part.num_kv_heads, part.head_dim, _PAGE,
                     window_left=part.window_left, q_data_type=tensors.q.dtype,
                     kv_data_type=tensors.k.dtype)
        q = tensors.q[:, 0]
        return lambda: wrapper.run(q, cache)


PEERS = [_FlashInfer]
