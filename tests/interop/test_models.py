"""Queries, keys and values of real models, through the real server; see tests/fixtures."""

import json
import pathlib
import unittest

import harness
import numpy as np
from attention.v1 import attention_service_pb2, session_service_pb2
from attention_client import from_tensor, to_tensor
from harness import BFLOAT16, FLOAT32

FIXTURES = pathlib.Path(__file__).parent.parent / "fixtures"
NUMPY_TYPES = {"bfloat16": "<u2", "float32": "<f4", "int32": "<i4"}


class Fixture:
    def __init__(self, model):
        self.manifest = json.loads((FIXTURES / model / "manifest.json").read_text())
        self._data = (FIXTURES / model / "tensors.bin").read_bytes()
        self.layers = self.manifest["layers"]

    def array(self, name):
        entry = self.manifest["tensors"][name]
        numbers = np.frombuffer(
            self._data, NUMPY_TYPES[entry["dtype"]], int(np.prod(entry["shape"])), entry["offset"]
        )
        return numbers.reshape(entry["shape"])


class SmolLm2Test(unittest.TestCase):
    """47 tokens, 9 query and 3 KV heads of 64, causal, bfloat16."""

    @classmethod
    def setUpClass(cls):
        cls.fixture = Fixture("smollm2")

    def setUp(self):
        self.client = self.enterContext(harness.RecordedClient(harness.address()))

    def problem(self, layer):
        q, k, v = (BFLOAT16.decode(self.fixture.array(f"layer{layer}.{x}")) for x in "qkv")
        return harness.Problem(q, k, v, {"is_causal": True}, BFLOAT16)

    def check_stored(self, layer, response):
        """As far from the stored float64 results as the type allows."""
        plain = self.problem(layer).plain()
        for name, actual, form in (
            ("output", BFLOAT16.decode(from_tensor(response.output)), BFLOAT16),
            ("lse", from_tensor(response.lse), FLOAT32),
        ):
            stored = self.fixture.array(f"layer{layer}.{name}").astype(np.float64)
            plain_rounded = form.round(getattr(plain, name))
            bound = harness.reference.error_bound(stored, plain_rounded, form.epsilon)
            harness.check_close(self, name, actual, stored, bound)

    def whole(self, layer):
        return self.client.attention.Attend(self.problem(layer).request(lse=True))

    def through_session(self, problems, sizes):
        """Appends and attends in chunks of these sizes, all layers at once; results by layer."""
        geometry = session_service_pb2.SessionGeometry(
            num_layers=len(problems),
            num_kv_heads=3,
            head_dim_qk=64,
            head_dim_v=64,
            kv_dtype=problems[0].tensor("k").dtype,
        )
        create = session_service_pb2.CreateSessionRequest(geometry=geometry)
        handle = self.client.sessions.CreateSession(create).session.handle
        delete = session_service_pb2.DeleteSessionRequest(handle=handle)
        self.addCleanup(self.client.sessions.DeleteSession, delete)
        results, begin = [], 0
        for size in sizes:
            rows = slice(begin, begin + size)
            steps = [make_step(handle, i, problem, rows) for i, problem in enumerate(problems)]
            answer = self.client.sessions.Step(session_service_pb2.StepRequest(steps=steps))
            results.append(answer.results)
            begin += size
        return list(zip(*results, strict=True))

    def test_whole_prompt(self):
        for layer in self.fixture.layers:
            with self.subTest(layer=layer):
                self.check_stored(layer, self.whole(layer))

    def test_float32_copy_of_the_prompt(self):
        for layer in self.fixture.layers:
            with self.subTest(layer=layer):
                problem = self.problem(layer)
                problem.form = FLOAT32
                response = self.client.attention.Attend(problem.request(lse=True))
                problem.check(self, response)
                stored = self.fixture.array(f"layer{layer}.output")
                np.testing.assert_allclose(from_tensor(response.output), stored, atol=2e-5)

    def test_chunks_and_single_tokens_have_the_bits_of_the_whole(self):
        problems = [self.problem(layer) for layer in self.fixture.layers]
        wholes = [self.whole(layer) for layer in self.fixture.layers]
        for sizes in ([47], [16, 16, 15], [1, 40, 6], [1] * 47):
            layers = self.through_session(problems, sizes)
            for layer, whole, results in zip(self.fixture.layers, wholes, layers, strict=True):
                with self.subTest(sizes=sizes, layer=layer):
                    self.assertEqual(b"".join(r.output.data for r in results), whole.output.data)
                    self.assertEqual(b"".join(r.lse.data for r in results), whole.lse.data)


def make_step(handle, layer, problem, rows):
    step = session_service_pb2.SessionStep(
        handle=handle,
        layer=layer,
        expected_position=rows.start,
        q=problem.tensor("q", rows),
        k=problem.tensor("k", rows),
        v=problem.tensor("v", rows),
        config=harness.make_config(problem.options),
    )
    step.returns.lse = True
    return step


class MiniLmTest(unittest.TestCase):
    """A padded batch of three sentences, 12 heads of 32, bidirectional, float32."""

    def test_padded_batch(self):
        fixture = Fixture("minilm")
        lengths = fixture.array("lengths")
        with harness.RecordedClient(harness.address()) as client:
            for layer in fixture.layers:
                with self.subTest(layer=layer):
                    q, k, v = (to_tensor(fixture.array(f"layer{layer}.{x}")) for x in "qkv")
                    request = attention_service_pb2.AttendRequest(
                        q=q, k=k, v=v, q_lens=lengths, kv_lens=lengths
                    )
                    request.returns.lse = True
                    response = client.attention.Attend(request)
                    for name in ("output", "lse"):
                        stored = fixture.array(f"layer{layer}.{name}")
                        actual = from_tensor(getattr(response, name))
                        np.testing.assert_allclose(actual, stored, rtol=1e-5, atol=1e-5)
