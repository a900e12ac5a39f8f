"""FlashAttention: version 3 (flash_attn_interface) where it is installed, else version 2 (flash_attn)."""

from torch_peer import Prepared

try:
    import flash_attn_interface as flash
    _NAME = "FlashAttention 3"
except ImportError:
    import flash_attn as flash
    _NAME = "FlashAttention 2"


def version():
    return f"{_NAME[-1]}, {getattr(flash, '__version__', 'of unknown version')}"


class _FlashAttention:
    name = _NAME

    def prepare(self, case):
        return Prepared(case, f"{flash.__name__}, prefill by flash_attn_func, decode by flash_attn_with_kvcache",
                        self._call)

    @staticmethod
    def _call(tensors):
        part = tensors.part
        window = (part.window_left, 0) if part.window_left >= 0 else (-1, -1)
        options = {"causal": bool(part.is_causal), "window_size": window}
        function = flash.flash_attn_func if part.q_len > 1 else flash.flash_attn_with_kvcache

        def call():
            out = function(tensors.q, tensors.k, tensors.v, **options)
            return out[0] if isinstance(out, tuple) else out

        return call


PEERS = [_FlashAttention]
