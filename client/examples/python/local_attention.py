"""The same attention as remote_attention.py in this process, in numpy: to compare with."""

import copy

import numpy as np


class LocalAttention:
    def __init__(self, model):
        self._model = model
        self._caches = {}

    def add(self, sequence):
        self._caches[id(sequence)] = [Cache(self._model) for _ in range(self._model.num_layers)]

    def remove(self, sequence):
        del self._caches[id(sequence)]

    def attend(self, sequences, row_counts, layer, q, k, v):
        output = np.empty_like(q)
        end = 0
        for sequence, count in zip(sequences, row_counts):
            rows = slice(end, end + count)
            end += count
            cache = self._caches[id(sequence)][layer]
            cache.append(k[rows], v[rows])
            output[rows] = attend(q[rows], *cache.keys_and_values())
        return output

    def fork(self, sequence, copies):
        for other in copies:
            self._caches[id(other)] = [cache.copy() for cache in self._caches[id(sequence)]]

    def reorder(self, sequences, sources):
        caches = [self._caches[id(sequences[source])] for source in sources]
        for sequence, layers in zip(sequences, caches):
            self._caches[id(sequence)] = [cache.copy() for cache in layers]

    def attend_tree(self, sequence, layer, q, k, v, ancestors):
        cache = self._caches[id(sequence)][layer]
        cache.append(k, v)
        return attend(q, *cache.keys_and_values(), ancestors)

    def keep(self, sequence, rows):
        for cache in self._caches[id(sequence)]:
            cache.keep(sequence.length, rows)

    def close(self):
        pass


class Cache:
    """Keys and values of one layer, [num_kv_heads, tokens, head_dim] each, in room that doubles."""

    def __init__(self, model):
        self._data = np.empty((2, model.num_kv_heads, 64, model.head_dim), np.float32)
        self._length = 0

    def append(self, k, v):
        end = self._length + len(k)
        while end > self._data.shape[2]:
            self._data = np.concatenate([self._data, np.empty_like(self._data)], axis=2)
        for cache, rows in zip(self._data, (k, v)):
            cache[:, self._length : end] = rows.transpose(1, 0, 2)
        self._length = end

    def keep(self, length, rows):
        """Drops what is behind `length`, but for `rows`, counted from there."""
        kept = self._data[:, :, np.add(length, rows)]
        self._length = length + len(rows)
        self._data[:, :, length : self._length] = kept

    def copy(self):
        return copy.deepcopy(self)

    def keys_and_values(self):
        return self._data[:, :, : self._length]


def attend(q, k, v, ancestors=None):
    """Grouped-query attention; q's last row stands at the last key.

    ancestors, bool [q_len, q_len]: for each row those of the last q_len keys that it sees; default: causal.
    """
    q_len, num_q_heads, head_dim = q.shape
    num_kv_heads, kv_len, _ = k.shape
    # The query heads of a group become rows that share one KV head.
    q = q.reshape(q_len, num_kv_heads, -1, head_dim).transpose(1, 2, 0, 3)
    scores = q.reshape(num_kv_heads, -1, head_dim) @ k.transpose(0, 2, 1) / np.sqrt(head_dim)
    scores = scores.reshape(num_kv_heads, -1, q_len, kv_len)
    if q_len > 1:
        visible = np.ones((q_len, kv_len), bool)
        visible[:, kv_len - q_len :] = np.tri(q_len, dtype=bool) if ancestors is None else ancestors
        scores = np.where(visible, scores, -np.inf)
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True)
    output = weights.reshape(num_kv_heads, -1, kv_len) @ v
    output = output.reshape(num_kv_heads, -1, q_len, head_dim).transpose(2, 0, 1, 3)
    return output.reshape(q_len, num_q_heads, head_dim)
