"""SmolLM2-135M with its attention in the server generates, token by token, what llama.cpp does.

llama.cpp computes on its own from the same weights: a copy of the model with every tensor dequantised to
float32, because with 4-bit weights it rounds activations to 8 bits, which flips tokens. Two likeliest
tokens of these prompts are never closer than 0.02 in log probability; float32 gives 0.0001.
"""

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


def run(command):
    """Runs a program of the examples; its ids of each prompt, and what it says of its speed."""
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
        cls.model = smollm2.SmolLM2(path)
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
