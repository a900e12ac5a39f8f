"""The shared library of peers_c.h: our kernels, the machine's ceilings, and oneDNN if it is there."""

import ctypes
import statistics

import numpy as np

from cases import aligned_empty


class _Shape(ctypes.Structure):
    _fields_ = [("name", ctypes.c_char_p), ("batch_size", ctypes.c_int64),
                ("num_q_heads", ctypes.c_int64), ("num_kv_heads", ctypes.c_int64),
                ("q_len", ctypes.c_int64), ("kv_len", ctypes.c_int64),
                ("head_dim", ctypes.c_int64), ("is_causal", ctypes.c_int64),
                ("window_left", ctypes.c_int64), ("is_memory_bound", ctypes.c_int64),
                ("flops", ctypes.c_double)]


class _Ceilings(ctypes.Structure):
    _fields_ = [("flops_per_second", ctypes.c_double), ("bf16_flops_per_second", ctypes.c_double),
                ("bytes_per_second", ctypes.c_double)]


class _Tensors(ctypes.Structure):
    _fields_ = [("q", ctypes.c_void_p), ("k", ctypes.c_void_p), ("v", ctypes.c_void_p),
                ("o", ctypes.c_void_p), ("is_bfloat16", ctypes.c_int64)]


class Library:
    def __init__(self, path, threads):
        self._c = ctypes.CDLL(path)
        self.threads = threads
        self.has_onednn = hasattr(self._c, "PeersOneDnnCreate")
        texts = ["PeersError", "PeersDevice"]
        handles = ["PeersKernels"]
        if self.has_onednn:
            texts.append("PeersOneDnnVersion")
            handles.append("PeersOneDnn")
        for name in texts:
            getattr(self._c, name).restype = ctypes.c_char_p
        for name in handles:
            getattr(self._c, name + "Create").restype = ctypes.c_void_p
            getattr(self._c, name + "Run").argtypes = [ctypes.c_void_p]
            getattr(self._c, name + "Destroy").argtypes = [ctypes.c_void_p]

    def shapes(self):
        """The shapes of attention-bench, as C structs with the names of peers_c.h."""
        shapes = [_Shape() for _ in range(self._c.PeersNumShapes())]
        for index, shape in enumerate(shapes):
            self.check(self._c.PeersGetShape(index, ctypes.byref(shape)) == 0)
        return shapes

    def device(self):
        return self._c.PeersDevice().decode()

    def onednn_version(self):
        return self._c.PeersOneDnnVersion().decode()

    def measure_ceilings(self):
        ceilings = _Ceilings()
        self.check(self._c.PeersMeasureCeilings(self.threads, ctypes.byref(ceilings)) == 0)
        return ceilings

    def create(self, prefix, shape, tensors, *numbers):
        handle = getattr(self._c, prefix + "Create")(
            ctypes.byref(shape), ctypes.byref(tensors), *numbers)
        self.check(handle is not None)
        return handle

    def function(self, name):
        return getattr(self._c, name)

    def check(self, is_ok):
        if not is_ok:
            raise RuntimeError(self._c.PeersError().decode())


class _NativeCase:
    """A case behind a handle. Keeps the arrays that it reads."""

    def __init__(self, library, prefix, case, arrays, *numbers):
        self._library = library
        self.out = aligned_empty(arrays[0].shape, arrays[0].dtype)
        self._arrays = (*arrays, self.out)
        tensors = _Tensors(*(array.ctypes.data for array in self._arrays),
                           is_bfloat16=case.dtype == "bfloat16")
        self._destroy = library.function(prefix + "Destroy")
        self._run = library.function(prefix + "Run")
        self._handle = library.create(prefix, case.shape, tensors, *numbers)

    def run(self):
        self._library.check(self._run(self._handle) == 0)

    def close(self):
        self._destroy(self._handle)
        self._arrays = self.out = None


class Kernels(_NativeCase):
    column = "ours"
    form = "pages"

    def __init__(self, library, case):
        self.dtype = case.dtype
        copies = case.copies if case.is_decode else 0
        if not case.is_decode:
            self.form = "contiguous"
        super().__init__(library, "PeersKernels", case, [case.q, case.k, case.v], copies,
                         library.threads)

    def output(self):
        return self.out


class OneDnn(_NativeCase):
    column = "oneDNN"

    def __init__(self, library, case):
        self.dtype = case.dtype
        self.ignores_mask = case.is_masked
        self.form = "unfused, no mask" if case.is_masked else "unfused"
        q = np.ascontiguousarray(case.q.swapaxes(1, 2))
        super().__init__(library, "PeersOneDnn", case, [q, *case.cold()],
                         case.copies)

    def output(self):
        return self.out.swapaxes(1, 2)


def ceiling_of(case, samples):
    """(name, rate) of what bounds the case, the median of the samples; 16-bit arithmetic where it is the
    faster one."""
    def median(name):
        return statistics.median(getattr(sample, name) for sample in samples)

    if case.is_memory_bound:
        return "memory_read", median("bytes_per_second")
    fma, dot = median("flops_per_second"), median("bf16_flops_per_second")
    if case.dtype == "bfloat16" and dot > fma:
        return "bf16_dot", dot
    return "fma", fma
