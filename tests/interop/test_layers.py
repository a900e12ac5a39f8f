"""Whole layers, uploaded and called as a Python program would, beside numpy in float64."""

import hashlib
import unittest

import grpc
import harness
import numpy as np
from attention.v1 import attention_config_pb2, layer_service_pb2, session_service_pb2, tensor_pb2
from attention_client import from_tensor, to_tensor
from harness import assert_fails, exercises

LAYER = "attention.v1.LayerService."
NAMES = ("W_Q", "W_K", "W_V", "W_O", "B_Q", "B_K", "B_V", "B_O")
MODEL_DIM, Q_HEADS, KV_HEADS, HEAD_DIM = 24, 4, 2, 8
CHUNK_BYTES = 100


def make_weights(seed=1):
    random = np.random.default_rng(seed)
    q, kv = Q_HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM
    shapes = [(q, MODEL_DIM), (kv, MODEL_DIM), (kv, MODEL_DIM), (MODEL_DIM, q), q, kv, kv, MODEL_DIM]
    return [(random.standard_normal(shape) / 5).astype(np.float32) for shape in shapes]


def make_config(rotary=None):
    return layer_service_pb2.LayerConfig(
        dtype=tensor_pb2.DTYPE_FLOAT32,
        model_dim=MODEL_DIM,
        num_q_heads=Q_HEADS,
        num_kv_heads=KV_HEADS,
        head_dim_qk=HEAD_DIM,
        attention=attention_config_pb2.AttentionConfig(is_causal=True),
        rotary=rotary or layer_service_pb2.RotaryConfig(theta=100),
    )


def upload(layer_id, weights, sha256=b"", rotary=None):
    """The messages of an upload, each tensor in chunks."""
    request = layer_service_pb2.CreateLayerRequest
    new_layer = layer_service_pb2.NewLayer(
        layer_id=layer_id, config=make_config(rotary), sha256=sha256
    )
    yield request(layer=new_layer)
    for number, array in enumerate(weights, start=1):
        header = to_tensor(array)
        data, header.data = header.data, b""
        yield request(tensor=layer_service_pb2.LayerTensor(name=number, tensor=header))
        for begin in range(0, len(data), CHUNK_BYTES):
            yield request(chunk=data[begin : begin + CHUNK_BYTES])


def plain_frequencies(theta):
    half = HEAD_DIM // 2
    return theta ** (-np.arange(half) / half)


def yarn_frequencies(theta, factor, positions, beta_fast, beta_slow, truncate):
    """Straight from the paper: a ramp between the pairs that turn beta_fast and beta_slow times."""

    def pair_of(turns):
        return HEAD_DIM * np.log(positions / (turns * 2 * np.pi)) / (2 * np.log(theta))

    low, high = pair_of(beta_fast), pair_of(beta_slow)
    if truncate:
        low, high = np.floor(low), np.ceil(high)
    low, high = max(low, 0), min(high, HEAD_DIM - 1)
    divided = np.clip((np.arange(HEAD_DIM // 2) - low) / (high - low), 0, 1)
    return plain_frequencies(theta) * (divided / factor + 1 - divided)


def rotate(rows, frequencies, factor):
    half = HEAD_DIM // 2
    angles = np.arange(len(rows))[:, None] * frequencies
    cos, sin = factor * np.cos(angles)[:, None], factor * np.sin(angles)[:, None]
    a, b = rows[..., :half], rows[..., half:]
    return np.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)


def forward(weights, x, kv_heads=KV_HEADS, frequencies=plain_frequencies(100.0), factor=1.0):
    w_q, w_k, w_v, w_o, b_q, b_k, b_v, b_o = (array.astype(np.float64) for array in weights)
    q = rotate((x @ w_q.T + b_q).reshape(len(x), Q_HEADS, HEAD_DIM), frequencies, factor)
    k = rotate((x @ w_k.T + b_k).reshape(len(x), kv_heads, HEAD_DIM), frequencies, factor)
    v = (x @ w_v.T + b_v).reshape(len(x), kv_heads, HEAD_DIM)
    k, v = (np.repeat(rows, Q_HEADS // kv_heads, axis=1) for rows in (k, v))
    scores = np.einsum("ihd,jhd->hij", q, k) / np.sqrt(HEAD_DIM)
    scores = np.where(np.tri(len(x), dtype=bool), scores, -np.inf)
    weights_of = np.exp(scores - scores.max(axis=-1, keepdims=True))
    weights_of /= weights_of.sum(axis=-1, keepdims=True)
    return np.einsum("hij,jhd->ihd", weights_of, v).reshape(len(x), -1) @ w_o.T + b_o


class LayerTest(unittest.TestCase):
    def setUp(self):
        self.client = self.enterContext(harness.RecordedClient(harness.address()))
        self.layers = self.client.layers
        self.weights = make_weights()
        self.x = np.random.default_rng(2).standard_normal((11, MODEL_DIM)).astype(np.float32)
        self.addCleanup(self.delete, "interop")

    def delete(self, layer_id):
        self.layers.DeleteLayer(layer_service_pb2.DeleteLayerRequest(layer_id=layer_id))

    def create(self):
        digest = hashlib.sha256(b"".join(array.tobytes() for array in self.weights)).digest()
        return self.layers.CreateLayer(upload("interop", self.weights, digest)).layer

    def check(self, response, expected):
        np.testing.assert_allclose(from_tensor(response.output), expected, rtol=1e-4, atol=1e-5)

    @exercises(LAYER + "CreateLayer", LAYER + "Forward")
    def test_a_layer_computes_what_numpy_does(self):
        self.create()
        request = layer_service_pb2.ForwardRequest(layer_id="interop", x=to_tensor(self.x))
        self.check(self.layers.Forward(request), forward(self.weights, self.x))

    @exercises(LAYER + "CreateLayer", LAYER + "Forward")
    def test_rotary_frequencies_are_those_of_the_formula_or_the_clients_own(self):
        yarn = {"factor": 8, "original_max_positions": 64, "beta_fast": 8, "beta_slow": 1}
        formula = (10000.0, 8, 64, 8, 1)
        own = [0.9, 0.31, 0, 0.004]
        message = layer_service_pb2.RotaryConfig
        cases = {
            "yarn": (message(yarn=yarn), yarn_frequencies(*formula, truncate=True)),
            "yarn between pairs": (
                message(yarn=yarn | {"truncate": False}),
                yarn_frequencies(*formula, truncate=False),
            ),
            "custom": (message(custom={"inv_freq": own, "attention_factor": 1.3}), np.array(own)),
        }
        for name, (rotary, frequencies) in cases.items():
            with self.subTest(name):
                self.delete("interop")
                created = self.layers.CreateLayer(upload("interop", self.weights, rotary=rotary))
                kind = rotary.WhichOneof("scaling")
                self.assertEqual(created.layer.config.rotary.WhichOneof("scaling"), kind)
                factor = getattr(created.layer.config.rotary, kind).attention_factor
                self.assertAlmostEqual(factor, 1.3 if kind == "custom" else 0.1 * np.log(8) + 1)
                request = layer_service_pb2.ForwardRequest(layer_id="interop", x=to_tensor(self.x))
                expected = forward(self.weights, self.x, frequencies=frequencies, factor=factor)
                self.check(self.layers.Forward(request), expected)

    @exercises(LAYER + "Forward")
    def test_a_session_decodes_token_by_token(self):
        self.create()
        geometry = session_service_pb2.SessionGeometry(
            num_layers=1,
            num_kv_heads=KV_HEADS,
            head_dim_qk=HEAD_DIM,
            head_dim_v=HEAD_DIM,
            kv_dtype=tensor_pb2.DTYPE_FLOAT32,
        )
        request = session_service_pb2.CreateSessionRequest(geometry=geometry)
        handle = self.client.sessions.CreateSession(request).session.handle
        expected = forward(self.weights, self.x)
        for row in range(len(self.x)):
            session = layer_service_pb2.LayerSession(handle=handle, expected_position=row)
            response = self.layers.Forward(
                layer_service_pb2.ForwardRequest(
                    layer_id="interop", x=to_tensor(self.x[row : row + 1]), sessions=[session]
                )
            )
            self.assertEqual(list(response.positions), [row + 1])
            self.check(response, expected[row : row + 1])

    @exercises(LAYER + "GetLayer", LAYER + "ListLayers", LAYER + "DeleteLayer")
    def test_layers_are_read_listed_and_deleted(self):
        created = self.create()
        request = layer_service_pb2.GetLayerRequest(layer_id="interop")
        self.assertEqual(self.layers.GetLayer(request).layer, created)
        self.assertEqual(created.config.output_dim, MODEL_DIM)
        self.assertGreaterEqual(created.weight_bytes, sum(array.nbytes for array in self.weights))
        listed = self.layers.ListLayers(layer_service_pb2.ListLayersRequest()).layers
        self.assertIn(created, listed)
        self.delete("interop")
        with assert_fails(self, grpc.StatusCode.NOT_FOUND, "interop", reason="LAYER_NOT_FOUND"):
            self.layers.GetLayer(request)

    @exercises(LAYER + "ConvertLayer")
    def test_conversion_averages_heads(self):
        self.create()
        self.addCleanup(self.delete, "interop.mqa")
        request = layer_service_pb2.ConvertLayerRequest(
            source_layer_id="interop", layer_id="interop.mqa", num_kv_heads=1
        )
        self.layers.ConvertLayer(request)
        pooled = list(self.weights)
        for index in (1, 2, 5, 6):  # W_K, W_V, B_K, B_V
            array = self.weights[index]
            pooled[index] = array.reshape(KV_HEADS, HEAD_DIM, *array.shape[1:]).mean(axis=0)
        request = layer_service_pb2.ForwardRequest(layer_id="interop.mqa", x=to_tensor(self.x))
        self.check(self.layers.Forward(request), forward(pooled, self.x, kv_heads=1))

    @exercises(LAYER + "CreateLayer")
    def test_damaged_weights_are_noticed(self):
        with assert_fails(
            self, grpc.StatusCode.INVALID_ARGUMENT, "sha256", reason="HASH_MISMATCH"
        ):
            self.layers.CreateLayer(upload("interop", self.weights, b"x" * 32))


if __name__ == "__main__":
    unittest.main()
