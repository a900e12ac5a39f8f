"""SmolLM2-135M with its attention in the server generates, token by token, what llama.cpp does.

llama.cpp computes on its own from the same weights: a copy of the model with every tensor dequantised to
float32, because with 4-bit weights it rounds activations to 8 bits, which flips tokens. Two likeliest
tokens of these prompts are never closer than 0.02 in log probability; float32 gives 0.0001.

Beam search and verified drafts are held against the same searches with local attention.
"""

import functools
import os
import pathlib
import re
import subprocess
import sys
import unittest

import harness

PROMPTS = (
    "The capital of France is",  # ends before NUM_TOKENS, and leaves the batch
    "Once upon a time there was a lighthouse keeper who",
    "A good way to learn to cook is",
    "def fibonacci(n):\n",
)
NUM_TOKENS = 64
FLAGS = ("--max-tokens", str(NUM_TOKENS), "--print-ids")
EXAMPLES = pathlib.Path(__file__).parents[2] / "client/examples/python"
CPP_PROGRAM = pathlib.Path(os.environ["ATTENTION_BIN"], "attention-smollm2")
WORK = pathlib.Path(os.environ["ATTENTION_WORK"])
MISSING = os.environ["ATTENTION_PACKAGES_MISSING"]
BEAM_PROMPTS = PROMPTS[:3]  # no beam is nearer than 0.009 to being another one
DRAFT_PROMPTS = (
    "def fibonacci(n):\n",
    "Q: cat? A: meow. Q: dog? A: woof. Q: cat? A: meow. Q: dog? A: woof. Q: cat? A:",
    # Here the second of two alternatives proves right once, behind the rows of the first.
    "Tom likes big red apples. Ann likes big red cars. " * 2 + "Tom likes big red",
)
NUM_SEARCHED_TOKENS = 12


def llama_cpp_tokens(path, prompts):
    """The ids that llama.cpp generates greedily, an end of text included; prompts and answers are ids."""
    import xllamacpp

    parameters = xllamacpp.CommonParams()
    parameters.model.path = str(path)
    parameters.n_ctx, parameters.n_parallel, parameters.n_gpu_layers = 256, 1, 0
    parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = 1
    float32 = xllamacpp.ggml_type.GGML_TYPE_F32
    parameters.cache_type_k = parameters.cache_type_v = float32
    parameters.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    parameters.warmup, parameters.verbosity = False, -1
    server = xllamacpp.Server(parameters)
    options = {"max_tokens": NUM_TOKENS, "temperature": 0, "cache_prompt": False, "logprobs": 1}
    answers = [server.handle_completions({"prompt": prompt, **options}) for prompt in prompts]
    steps = [answer["choices"][0]["logprobs"]["content"] for answer in answers]
    return [[step["id"] for step in sequence] for sequence in steps]


@functools.cache
def packaged_model():
    import smollm2

    return smollm2.SmolLM2(smollm2.packaged_model())


def run(command):
    """Runs a program of the examples. Returns its ids of each prompt, and prints what it says of its speed."""
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        raise AssertionError(f"{command[0]} exited with {result.returncode}:\n{result.stderr}")
    ids = re.findall(r"^ids:((?: \d+)*)$", result.stdout, re.MULTILINE)
    print("\n".join(result.stdout.splitlines()[-3:]), flush=True)
    return [[int(token) for token in line.split()] for line in ids]


def run_cpp(*arguments):
    files = ("--model", str(WORK / "smollm2.safetensors"), "--prompts", str(WORK / "prompts.json"))
    return run([str(CPP_PROGRAM), *files, *FLAGS, *arguments])


def run_python(*arguments):
    return run([sys.executable, str(EXAMPLES / "smollm2_generate.py"), *FLAGS, *arguments, *PROMPTS])


@unittest.skipIf(MISSING, MISSING)
class SmolLm2Test(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        import smollm2
        from verify_forward import write_float32_copy

        path = smollm2.packaged_model()
        cls.model = packaged_model()
        write_float32_copy(path, WORK / "float32.gguf")
        cls.addClassCleanup((WORK / "float32.gguf").unlink)
        prompts = [cls.model.tokenize(prompt) for prompt in PROMPTS]
        generated = llama_cpp_tokens(WORK / "float32.gguf", prompts)
        ends = cls.model.end_tokens
        cls.expected = [[token for token in tokens if token not in ends] for tokens in generated]
        # Each token is fed once, but for the last of each prompt that did not come to its end.
        fed = sum(map(len, prompts)) + sum(len(tokens[:-1]) for tokens in generated)
        cls.rows = fed * cls.model.num_layers

    def check(self, generated):
        self.assertEqual(len(generated), len(PROMPTS))
        for prompt, tokens, expected in zip(PROMPTS, generated, self.expected, strict=True):
            with self.subTest(prompt=prompt):
                self.assertEqual(tokens, expected)

    def test_llama_cpp_generates_enough_to_compare(self):
        lengths = [len(tokens) for tokens in self.expected]
        self.assertGreater(lengths[0], 10)
        self.assertEqual(lengths[1:], [NUM_TOKENS] * 3)

    def check_remote(self, run_program):
        """The tokens, that the cache was the server's, and that the sequences shared batches."""
        server = harness.server()
        names = "tokens_appended_total", "batch_formation_seconds_count"
        before = [server.metric(name) for name in names]
        self.check(run_program())
        rows, batches = (server.metric(name) - old for name, old in zip(names, before, strict=True))
        self.assertEqual(rows, self.rows)
        self.assertLessEqual(batches, NUM_TOKENS * self.model.num_layers)

    def test_python_with_remote_attention(self):
        self.check_remote(lambda: run_python("--target", harness.address()))

    def test_python_with_local_attention(self):
        self.check(run_python("--attention", "local"))

    def test_cpp(self):
        if not CPP_PROGRAM.exists():
            self.skipTest("attention-smollm2 is not built, install libdnnl-dev")
        self.export()
        with self.subTest(attention="remote"):
            self.check_remote(lambda: run_cpp("--target", harness.address()))
        with self.subTest(attention="local"):
            self.check(run_cpp("--attention", "local"))

    def export(self):
        files = ["--model", WORK / "smollm2.safetensors", "--prompts", WORK / "prompts.json"]
        command = [sys.executable, EXAMPLES / "smollm2_export.py", *PROMPTS, *files]
        subprocess.run(command, check=True)
        self.addCleanup((WORK / "smollm2.safetensors").unlink)


@unittest.skipIf(MISSING, MISSING)
class SearchTest(unittest.TestCase):
    """The programs search with sessions of the server as this process does with caches of its own."""

    @classmethod
    def setUpClass(cls):
        from local_attention import LocalAttention

        cls.model = packaged_model()
        cls.attention = LocalAttention(cls.model)

    def run_remote(self, program, prompts, *flags):
        tokens = "--max-tokens", str(NUM_SEARCHED_TOKENS), "--print-ids"
        target = "--target", harness.address()
        return run([sys.executable, str(EXAMPLES / program), *tokens, *target, *flags, *prompts])

    def test_four_beams(self):
        import smollm2_beams

        remote = self.run_remote("smollm2_beams.py", BEAM_PROMPTS, "--beams", "4")
        self.assertEqual(len(remote), 4 * len(BEAM_PROMPTS))
        for index, prompt in enumerate(BEAM_PROMPTS):
            texts = smollm2_beams.search(self.model, self.attention, prompt, 4, NUM_SEARCHED_TOKENS)
            local = [text.tokens for text in texts]
            with self.subTest(prompt=prompt):
                self.assertEqual(len(set(map(tuple, local))), 4)
                self.assertEqual(remote[4 * index : 4 * index + 4], local)

    def test_drafts_change_no_token(self):
        import smollm2_generate

        greedy, *_ = smollm2_generate.generate(
            self.model, self.attention, DRAFT_PROMPTS, NUM_SEARCHED_TOKENS
        )
        flags = "--drafts", "6", "--alternatives", "2"
        before = harness.server().metric("tokens_appended_total")
        remote = self.run_remote("smollm2_drafts.py", DRAFT_PROMPTS, *flags)
        rows = harness.server().metric("tokens_appended_total") - before
        self.assertEqual(remote, greedy)
        counts = self.draft_locally(greedy)
        self.assertGreater(counts.accepted, 0)
        self.assertLess(counts.passes, sum(map(len, greedy)))
        self.assertGreater(counts.side_paths, 0)
        # The server saw the same passes: prompts, and in each other pass the newest token and its drafts.
        prompt_rows = sum(len(self.model.tokenize(prompt)) for prompt in DRAFT_PROMPTS)
        fed = prompt_rows + counts.passes - len(DRAFT_PROMPTS) + counts.drafted
        self.assertEqual(rows, fed * self.model.num_layers)

    def draft_locally(self, greedy):
        import smollm2_drafts

        counts = smollm2_drafts.Passes()
        for prompt, expected in zip(DRAFT_PROMPTS, greedy, strict=True):
            tokens = smollm2_drafts.generate(
                self.model, self.attention, prompt, NUM_SEARCHED_TOKENS, 6, 2, counts
            )
            self.assertEqual(tokens, expected)
        print(f"local drafts: {counts}", flush=True)
        return counts
