"""MiniLM's sentence embeddings equal those of the model in float64 that made tests/fixtures, which was
compared with the transformers library (tests/fixtures/README.md), with its attention layers in this
process and in the server."""

import contextlib
import os
import pathlib
import re
import subprocess
import sys
import types
import unittest

import connection
import grpc
import harness
import numpy as np
from attention.v1 import layer_service_pb2

TEXTS = (
    "The night train crossed the long bridge without slowing down.",
    "An express passed over the viaduct after dark.",
    "Bees remember where clover grows.",
    "Snow melted.",
)
# Measured: 9e-8. The server and numpy add in different orders.
TOLERANCE = 5e-7
REPOSITORY = pathlib.Path(__file__).parents[2]
PROGRAM = REPOSITORY / "client/examples/python/minilm_embed.py"
WORK = pathlib.Path(os.environ["ATTENTION_WORK"])
MISSING = os.environ["ATTENTION_PACKAGES_MISSING"]


def load_model():
    import minilm  # from PyPI, in part

    return minilm.MiniLM(minilm.packaged_model())


def embed_local(model):
    import minilm

    return model.embed(TEXTS, minilm.LocalLayers(model).attend)


@unittest.skipIf(MISSING, MISSING)
class MiniLmTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.model = load_model()
        cls.local = embed_local(cls.model)

    def test_local_layers_give_the_reference_embeddings(self):
        import make_fixtures

        reference = make_fixtures.MiniLM(make_fixtures.minilm_path())
        ids, lengths = reference.tokenize(TEXTS)
        hidden, _ = reference.forward(ids, lengths)
        means = np.stack([rows[:length].mean(axis=0) for rows, length in zip(hidden, lengths)])
        expected = means / np.linalg.norm(means, axis=1, keepdims=True)
        np.testing.assert_allclose(self.local, expected, atol=2e-6)

    def test_texts_of_like_meaning_are_near(self):
        similarity = self.local @ self.local.T
        self.assertEqual(np.argsort(-similarity[0])[1], 1)
        self.assertGreater(similarity[0, 1], 0.5)
        self.assertLess(similarity[0, 2], 0.3)

    def test_layer_weights_have_the_service_s_shapes(self):
        for weight, bias in self.model.layer_weights(0).values():
            self.assertEqual(weight.shape, (self.model.width, self.model.width))
            self.assertEqual(bias.shape, (self.model.width,))


class Recorder:
    """Layers whose calls are kept: (layer, x, lengths, y) each."""

    def __init__(self, layers):
        self._layers = layers
        self.calls = []

    def attend(self, layer, x, lengths):
        y = self._layers.attend(layer, x, lengths)
        self.calls.append((layer, x, lengths, y))
        return y


@unittest.skipIf(MISSING, MISSING)
class RemoteLayersTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        import remote_layers

        cls.remote_layers = remote_layers
        cls.model = load_model()
        cls.local = embed_local(cls.model)

    def setUp(self):
        self.server = harness.server()
        self.channel = self.enterContext(connection.connect(self.server.address))
        self.service = self.enterContext(harness.RecordedClient(self.server.address)).layers
        self.check_nothing_is_left()

    def upload(self, model=None):
        return self.remote_layers.uploaded(self.channel, model or self.model)

    def listed_ids(self):
        response = self.service.ListLayers(layer_service_pb2.ListLayersRequest())
        return {layer.layer_id for layer in response.layers}

    def check_nothing_is_left(self):
        self.assertEqual(self.listed_ids(), set())
        # A call's hold on its layer may end after its answer.
        harness.await_true(lambda: self.server.metric("layer_bytes") == 0)

    def test_embeddings_equal_the_local_ones(self):
        with self.upload() as remote:
            embeddings = self.model.embed(TEXTS, remote.attend)
        np.testing.assert_allclose(embeddings, self.local, rtol=0, atol=TOLERANCE)

    def test_a_layer_is_one_call_without_padding(self):
        names = "batch_formation_seconds_count", "query_rows_total"
        before = [self.server.metric(name) for name in names]
        with self.upload() as remote:
            recorder = Recorder(remote)
            self.model.embed(TEXTS, recorder.attend)
        batches, rows = (self.server.metric(name) - old for name, old in zip(names, before))
        self.assertEqual([layer for layer, *_ in recorder.calls], list(range(6)))
        self.assertEqual(batches, 6)
        self.assertEqual(rows, sum(len(x) for _, x, _, _ in recorder.calls))

    def test_all_texts_at_once_give_the_bits_of_each_alone(self):
        with self.upload() as remote:
            recorder = Recorder(remote)
            self.model.embed(TEXTS, recorder.attend)
            for layer, x, lengths, y in recorder.calls:
                texts = np.split(x, np.cumsum(lengths)[:-1])
                alone = [remote.attend(layer, rows, [len(rows)]) for rows in texts]
                self.assertEqual(np.concatenate(alone).tobytes(), y.tobytes(), f"layer {layer}")

    def test_equal_layers_share_their_memory(self):
        with self.upload() as first:
            taken = sum(layer.weight_bytes for layer in first.layers)
            self.assertEqual(self.server.metric("layer_bytes"), taken)
            with self.upload() as second:
                self.assertEqual(self.server.metric("layer_bytes"), taken)
                ids = {layer.layer_id for layer in [*first.layers, *second.layers]}
                self.assertEqual(len(ids), 2 * self.model.num_layers)
                self.assertEqual(self.listed_ids(), ids)
                for one, other in zip(first.layers, second.layers, strict=True):
                    self.assertEqual(one.sha256, other.sha256)
            # The weights stay as long as one of the two does.
            embeddings = self.model.embed(TEXTS, first.attend)
        np.testing.assert_allclose(embeddings, self.local, rtol=0, atol=TOLERANCE)

    def test_layers_are_deleted_at_the_end(self):
        with self.upload() as remote:
            self.model.embed(TEXTS, remote.attend)
        self.check_nothing_is_left()
        request = layer_service_pb2.GetLayerRequest(layer_id=remote.layers[0].layer_id)
        with harness.assert_fails(
            self, grpc.StatusCode.NOT_FOUND, request.layer_id, reason="LAYER_NOT_FOUND"
        ):
            self.service.GetLayer(request)

    def test_layers_are_deleted_after_an_error(self):
        with self.assertRaises(ZeroDivisionError), self.upload():
            _ = 1 / 0
        self.check_nothing_is_left()

    def test_an_upload_that_is_refused_leaves_nothing(self):
        def layer_weights(layer):
            weights = self.model.layer_weights(layer)
            if layer == 3:
                weights["v"] = weights["v"][0][1:], weights["v"][1]
            return weights

        model = types.SimpleNamespace(
            num_layers=6, num_heads=12, width=384, layer_weights=layer_weights
        )
        with (
            harness.assert_fails(self, grpc.StatusCode.INVALID_ARGUMENT, "[383, 384]", "[384, 384]"),
            self.upload(model),
        ):
            self.fail("the upload was not refused")
        self.check_nothing_is_left()


@contextlib.contextmanager
def server_with_layers(model_file):
    """A server that has MiniLM's six layers from its start, as docs/layers.md's example has the first."""
    page = (REPOSITORY / "docs/layers.md").read_text(encoding="utf-8")
    (sample,) = re.findall(r'```json\n\{"layers": \[(.*?)\]\}\n```', page, re.DOTALL)
    layers = [
        sample.replace("minilm.0", f"minilm.{layer}").replace(".layer.0.", f".layer.{layer}.")
        for layer in range(6)
    ]
    config, link = WORK / "layers.json", WORK / "model.safetensors"
    config.write_text('{"layers": [' + ",\n".join(layers) + "]}", encoding="utf-8")
    link.symlink_to(model_file)
    try:
        with harness.ServerProcess(f"--preload-layers={config}") as server:
            yield server
    finally:
        config.unlink()
        link.unlink()


@unittest.skipIf(MISSING, MISSING)
class PreloadedLayersTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        import minilm
        import remote_layers

        cls.remote_layers = remote_layers
        cls.model = load_model()
        model_file = minilm.packaged_model() / "model.safetensors"
        cls.server = cls.enterClassContext(server_with_layers(model_file))
        cls.channel = cls.enterClassContext(connection.connect(cls.server.address))

    def test_embeddings_equal_the_local_ones(self):
        with self.remote_layers.preloaded(self.channel, self.model, "minilm") as layers:
            embeddings = self.model.embed(TEXTS, layers.attend)
        np.testing.assert_allclose(embeddings, embed_local(self.model), rtol=0, atol=TOLERANCE)

    def test_they_compute_the_bits_of_uploaded_layers(self):
        other = self.enterContext(connection.connect(harness.address()))
        with self.remote_layers.uploaded(other, self.model) as layers:
            uploaded = Recorder(layers)
            self.model.embed(TEXTS, uploaded.attend)
        with self.remote_layers.preloaded(self.channel, self.model, "minilm") as layers:
            for layer, x, lengths, y in uploaded.calls:
                self.assertEqual(layers.attend(layer, x, lengths).tobytes(), y.tobytes())

    def test_an_upload_of_what_is_preloaded_has_memory_of_its_own(self):
        """Weights are shared within a tenant alone: their bytes would tell what others have."""
        before = self.server.metric("layer_bytes")
        self.assertGreater(before, 0)
        with self.remote_layers.uploaded(self.channel, self.model):
            self.assertEqual(self.server.metric("layer_bytes"), 2 * before)
        self.assertEqual(self.server.metric("layer_bytes"), before)

    def test_other_weights_under_the_name_are_noticed(self):
        weights = [self.model.layer_weights(layer) for layer in reversed(range(6))]
        model = types.SimpleNamespace(num_layers=6, layer_weights=weights.__getitem__)
        with self.assertRaisesRegex(ValueError, "minilm.0 has other weights"):
            with self.remote_layers.preloaded(self.channel, model, "minilm"):
                self.fail("nothing was noticed")

    def test_program(self):
        check_program(self, "--target", self.server.address, "--preloaded", "minilm")


def check_program(test, *arguments):
    """The program finds the three pairs among its six texts."""
    command = [sys.executable, str(PROGRAM), *arguments]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    test.assertEqual(result.returncode, 0, result.stderr)
    rows = re.findall(r"^ +(\d)(?: +-?[01]\.\d\d){6} +(\d)  \w", result.stdout, re.MULTILINE)
    nearest = {int(number): int(other) for number, other in rows}
    test.assertEqual(nearest, {1: 2, 2: 1, 3: 4, 4: 3, 5: 6, 6: 5}, result.stdout)
    test.assertIn("embeddings: 6 in ", result.stdout)


@unittest.skipIf(MISSING, MISSING)
class ProgramTest(unittest.TestCase):
    def test_remote(self):
        server = harness.server()
        before = server.metric("query_rows_total")
        check_program(self, "--target", server.address)
        self.assertGreater(server.metric("query_rows_total"), before)
        self.assertEqual(server.metric("layers"), 0)

    def test_local(self):
        check_program(self, "--attention", "local")
