"""The minimal clients of client/examples, in the languages that the distribution has gRPC for, compared
with float64. Each prints its output, one number a line."""

import functools
import os
import pathlib
import shutil
import subprocess
import sys
import unittest

import harness
import numpy as np

REPOSITORY = pathlib.Path(__file__).parents[2]
EXAMPLES = REPOSITORY / "client/examples"
JARS = ("grpc-*", "protobuf", "guava", "netty-*", "perfmark-*", "opencensus-api", "geronimo-annotation-*")
JAVA_PLUGIN = "grpc_java_plugin"


def numbers(seed, heads):
    """The tensor that every client sends: [16, heads, 8]."""
    i = np.arange(16 * heads * 8)
    return (((i * 37 + seed) % 101 - 50) / np.float32(50)).astype(np.float32).reshape(16, heads, 8)


def run(*command):
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        raise AssertionError(f"{command[0]}: {result.returncode}\n{result.stdout}{result.stderr}")
    return result.stdout


def check(test, printed):
    """That an example printed the right output."""
    problem = harness.Problem(numbers(1, 4), numbers(2, 2), numbers(3, 2), {"is_causal": True})
    actual = np.array(printed.split(), np.float32).reshape(16, 4, 8)
    exact, plain = problem.exact(), problem.plain()
    epsilon = harness.FLOAT32.epsilon
    least_error = epsilon / 2 * exact.largest_score * np.abs(problem.v).max()
    bound = harness.reference.error_bound(exact.output, plain.output, epsilon, least_error)
    harness.check_close(test, "output", actual, exact.output, bound)


def java_classes(test):
    """The class path of the Java example, compiled once."""
    for command in ("java", "javac", JAVA_PLUGIN):
        if shutil.which(command) is None:
            test.skipTest(f"no {command}, see deploy/packages-test.txt")
    if not pathlib.Path("/usr/share/java/grpc-netty.jar").exists():
        test.skipTest("no grpc-netty.jar, install libgrpc-java")
    return _compile_java(pathlib.Path(os.environ["ATTENTION_WORK"], "java"))


@functools.cache
def _compile_java(folder):
    folder.mkdir()
    protos = [f"attention/v1/{name}.proto"
              for name in ("attention_config", "attention_service", "tensor", "timing")]
    run("protoc", f"-I{REPOSITORY / 'proto'}", f"--java_out={folder}", f"--grpc-java_out={folder}",
        f"--plugin=protoc-gen-grpc-java={shutil.which(JAVA_PLUGIN)}", *protos)
    jars = [path for jar in JARS for path in pathlib.Path("/usr/share/java").glob(f"{jar}.jar")]
    classes = ":".join(map(str, [folder, *jars]))
    stubs = sorted(folder.glob("attention/v1/*.java"))
    run("javac", "-nowarn", "-cp", classes, "-d", str(folder), *map(str, stubs),
        str(EXAMPLES / "java/Attend.java"))
    return classes


class AttendTest(unittest.TestCase):
    def test_python(self):
        printed = run(sys.executable, str(EXAMPLES / "python/attend.py"), harness.address())
        check(self, printed)

    def test_java(self):
        check(self, run("java", "-cp", java_classes(self), "Attend", harness.address()))
