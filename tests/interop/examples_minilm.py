"""MiniLM's sentence embeddings equal those of the model in float64 that made tests/fixtures, which was
compared with the transformers library (tests/fixtures/README.md)."""

import os
import unittest

import numpy as np

TEXTS = (
    "The night train crossed the long bridge without slowing down.",
    "An express passed over the viaduct after dark.",
    "Bees remember where clover grows.",
    "Snow melted.",
)
MISSING = os.environ["ATTENTION_PACKAGES_MISSING"]


@unittest.skipIf(MISSING, MISSING)
class MiniLmTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        import minilm

        cls.model = minilm.MiniLM(minilm.packaged_model())
        cls.local = cls.model.embed(TEXTS, minilm.LocalLayers(cls.model).attend)

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
