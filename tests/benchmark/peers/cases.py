"""One shape in one element type: its tensors, its work, and what is right."""

import numpy as np

# Twice the last-level cache of the largest processors seen, as in bench_case.cc.
COLD_BYTES = 536e6

# Largest error over a row's largest element. bfloat16 keeps 8 bits: 2^-9 for the output, and about as much
# again for weights and scores that a contender rounds on the way.
TOLERANCES = {"float32": 1e-4, "float16": 1e-2, "bfloat16": 5e-2}

SLICE_ROWS = 12


def aligned_empty(shape, dtype):
    """An array that begins at a cache line, as tensors of the server and of the peers do."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    room = np.empty(size + 64, np.uint8)
    begin = -room.ctypes.data % 64
    return room[begin : begin + size].view(dtype).reshape(shape)


def aligned(values):
    copy = aligned_empty(values.shape, values.dtype)
    copy[...] = values
    return copy


def to_bfloat16(values):
    """float32 to its nearest bfloat16, as uint16. Finite values only."""
    bits = values.view(np.uint32)
    return ((bits + (np.uint32(0x7FFF) + ((bits >> 16) & 1))) >> 16).astype(np.uint16)


def to_float32(values):
    """Converts float32, float16, or bfloat16 kept as uint16."""
    if values.dtype == np.uint16:
        return (values.astype(np.uint32) << 16).view(np.float32)
    return values.astype(np.float32)


class Case:
    """Tensors q [batch, q_len, q heads, dim], k and v [batch, kv_len, KV heads, dim]. bfloat16 is kept
    as uint16. Decode has copies of its cache, so that a walk through all of them leaves nothing in the
    processor's caches; k and v are what each of them holds."""

    def __init__(self, shape, dtype):
        self.shape = shape
        self.dtype = dtype
        self.name = shape.name.decode()
        self.is_decode = shape.q_len == 1
        self.is_masked = shape.is_causal and not self.is_decode
        self.has_window = shape.window_left >= 0
        self.is_memory_bound = bool(shape.is_memory_bound)
        self.group = shape.num_q_heads // shape.num_kv_heads
        elements = shape.batch_size * shape.kv_len * shape.num_kv_heads * shape.head_dim
        self.kv_bytes = 2 * elements * (2 if dtype == "bfloat16" else 4)
        self.copies = max(1, int(COLD_BYTES / self.kv_bytes + 0.5)) if self.is_decode else 1
        self._cold = None
        self._make_tensors()

    def _make_tensors(self):
        random = np.random.default_rng(1)

        def tensor(tokens, heads):
            values = random.standard_normal(
                (self.shape.batch_size, tokens, heads, self.shape.head_dim), np.float32)
            return aligned(to_bfloat16(values) if self.dtype == "bfloat16" else values)

        self.q = tensor(self.shape.q_len, self.shape.num_q_heads)
        self.k = tensor(self.shape.kv_len, self.shape.num_kv_heads)
        self.v = tensor(self.shape.kv_len, self.shape.num_kv_heads)

    @property
    def work(self):
        """The unit of a rate: bytes of keys and values read once, or needed multiply-adds."""
        return self.kv_bytes if self.is_memory_bound else self.shape.flops

    def cold(self):
        """Keys and values as the peers share them, [copies, batch, KV heads, kv_len, dim] each."""
        if self._cold is None:
            self._cold = self._copies_of(self.k), self._copies_of(self.v)
        return self._cold

    def _copies_of(self, rows):
        by_head = rows.swapaxes(1, 2)
        out = aligned_empty((self.copies, *by_head.shape), rows.dtype)
        out[:] = by_head
        return out

    def as_float16(self):
        """The same values for a peer without bfloat16."""
        other = object.__new__(Case)
        other.__dict__.update(self.__dict__, dtype="float16", _cold=None)
        for name in ("q", "k", "v"):
            setattr(other, name, aligned(to_float32(getattr(self, name)).astype(np.float16)))
        return other

    def visible_keys(self, row):
        """(first, past the last) key of a query row."""
        position = self.shape.kv_len - self.shape.q_len + row
        first = max(0, position - self.shape.window_left) if self.has_window else 0
        return first, position + 1 if self.shape.is_causal else self.shape.kv_len

    def _slice(self):
        """(sequence, row, head) of some query rows: the corners, and others at random."""
        sizes = (self.shape.batch_size, self.shape.q_len, self.shape.num_q_heads)
        random = np.random.default_rng(2)
        corners = [(0, 0, 0), tuple(size - 1 for size in sizes)]
        return corners + [tuple(random.integers(sizes)) for _ in range(SLICE_ROWS - len(corners))]

    def _reference_row(self, sequence, row, head, is_masked):
        keys = slice(*self.visible_keys(row)) if is_masked else slice(None)
        kv_head = head // self.group
        q = to_float32(self.q[sequence, row, head]).astype(np.float64)
        k = to_float32(self.k[sequence, keys, kv_head]).astype(np.float64)
        v = to_float32(self.v[sequence, keys, kv_head]).astype(np.float64)
        scores = k @ q / np.sqrt(self.shape.head_dim)
        weights = np.exp(scores - scores.max())
        return weights @ v / weights.sum()

    def error(self, output, is_masked=True):
        """The largest difference from float64 in the slice, by each row's largest element. `is_masked`
        False: what a contender has to give that leaves the mask out."""
        errors = []
        for sequence, row, head in self._slice():
            want = self._reference_row(sequence, row, head, is_masked)
            got = to_float32(output[sequence, row, head])
            errors.append(np.abs(got - want).max() / np.abs(want).max())
        return float(np.max(errors))  # NaN if any is
