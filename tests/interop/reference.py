"""Attention in numpy, written from the comment of AttentionConfig and from nothing else.

Every sum is added up in order, one term at a time, so that float32 gives the plain low-precision
computation that a kernel's error is measured by, and float64 the exact result.
"""

import dataclasses

import numpy as np


@dataclasses.dataclass
class Result:
    output: np.ndarray  # [q_len, num_q_heads, head_dim_v]
    lse: np.ndarray  # [q_len, num_q_heads]
    weights: np.ndarray  # [q_len, num_q_heads, kv_len]
    largest_score: float  # magnitude, over visible keys

    @property
    def column_sums(self):  # [kv_len, num_q_heads]
        return self.weights.sum(axis=0).T


def attend(q, k, v, precision=np.float64, **options):
    """q [q_len, num_q_heads, head_dim_qk], k and v [kv_len, num_kv_heads, head_dim_qk or _v].

    The options have the names and meanings of AttentionConfig's fields; beside them bias, mask
    and first_query_position.
    """
    group = q.shape[1] // k.shape[1]
    q, k, v = (x.astype(precision).transpose(1, 0, 2) for x in (q, k, v))  # heads first
    k, v = (np.repeat(x, group, axis=0) for x in (k, v))
    scores = _scores(q, k, options)
    visible = _visible(scores.shape, options)
    weights, lse = _softmax(scores, visible, options.get("sink_logits"))
    return Result(
        _matmul(weights, v).transpose(1, 0, 2),
        lse.transpose(1, 0),
        weights.transpose(1, 0, 2),
        float(np.abs(scores[visible]).max(initial=0)),
    )


def error_bound(exact, plain, epsilon, least_error=0.0):
    """Twice the error of the plain computation, plus one epsilon at the largest magnitude.

    In a tensor of few elements the plain computation may be lucky everywhere, so its error counts as
    no less than half an epsilon, the rounding of the result alone, and no less than least_error.
    """
    finite = np.isfinite(exact)
    if not finite.any():
        return 0.0
    ulp = epsilon * np.abs(exact[finite]).max()
    error = np.abs(plain.astype(np.float64)[finite] - exact[finite]).max()
    return 2 * max(error, ulp / 2, least_error) + ulp


def _matmul(a, b):
    total = np.zeros((a.shape[0], a.shape[1], b.shape[2]), a.dtype)
    for i in range(a.shape[2]):
        total += a[:, :, i, None] * b[:, i, None, :]
    return total


def _scores(q, k, options):
    precision = q.dtype.type
    scale = options.get("softmax_scale", 1 / np.sqrt(q.shape[2]))
    scores = precision(scale) * _matmul(q, k.transpose(0, 2, 1))
    if soft_cap := precision(options.get("soft_cap", 0)):
        scores = soft_cap * np.tanh(scores / soft_cap)
    if (slopes := options.get("alibi_slopes")) is not None:
        position, key = _positions(scores.shape, options)
        scores += slopes.astype(precision)[:, None, None] * (key - position).astype(precision)
    if (bias := options.get("bias")) is not None:
        scores += bias.astype(precision)
    return scores


def _positions(shape, options):
    _, q_len, kv_len = shape
    first = options.get("first_query_position", kv_len - q_len)
    return first + np.arange(q_len)[:, None], np.arange(kv_len)[None, :]


def _visible(shape, options):
    position, key = _positions(shape, options)
    visible = np.ones(shape, bool)
    if options.get("is_causal"):
        visible &= key <= position
    if (left := options.get("window_left")) is not None:
        visible &= (key >= position - left) | (key < options.get("sink_tokens", 0))
    if (right := options.get("window_right")) is not None:
        visible &= key <= position + right
    if (mask := options.get("mask")) is not None:
        visible &= mask
    return visible


def _softmax(scores, visible, sink_logits):
    heads, q_len, kv_len = scores.shape
    sink = np.full(heads, -np.inf) if sink_logits is None else sink_logits
    sink = np.broadcast_to(sink.astype(scores.dtype)[:, None], (heads, q_len))
    scores = np.where(visible, scores, -np.inf)
    largest = np.maximum(scores.max(axis=2, initial=-np.inf), sink)
    shift = np.where(np.isneginf(largest), scores.dtype.type(0), largest)
    weights = np.exp(scores - shift[:, :, None])
    denominator = np.exp(sink - shift)
    for key in range(kv_len):
        denominator = denominator + weights[:, :, key]
    is_empty = denominator == 0
    with np.errstate(divide="ignore"):
        lse = shift + np.log(denominator)
    return weights / np.where(is_empty, 1, denominator)[:, :, None], lse
