"""The cross-attention examples: each compares what it got with float64 and fails when it differs."""

import os
import pathlib
import subprocess
import sys
import unittest

import harness

PYTHON_PROGRAM = pathlib.Path(__file__).parents[2] / "client/examples/python/cross_attention.py"


class CrossAttentionTest(unittest.TestCase):
    def check(self, *command):
        command = [*command, "--target", harness.address()]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        self.assertEqual(result.returncode, 0, result.stdout + result.stderr)
        self.assertIn("patches in the session: 196", result.stdout)
        self.assertIn("largest error against float64: ", result.stdout)

    def test_python(self):
        self.check(sys.executable, str(PYTHON_PROGRAM))

    def test_cpp(self):
        self.check(str(pathlib.Path(os.environ["ATTENTION_BIN"], "attention-cross-attention")))
