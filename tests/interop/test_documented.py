"""The .proto files explain every service, RPC, message and enum, a test calls every RPC,
and the Python sample of docs/clients.md runs.

As a program, `test_documented.py DESCRIPTOR-SET` lists everything that has no comment, fields and
enum values included.
"""

import contextlib
import io
import os
import pathlib
import runpy
import sys
import unittest
from unittest import mock

from google.protobuf import descriptor_pb2

# Field numbers in FileDescriptorProto, DescriptorProto and so on: the steps of a location's path.
_CHILDREN = {
    "file": (("message", 4), ("enum", 5), ("service", 6)),
    "message": (("field", 2), ("message", 3), ("enum", 4)),
    "enum": (("value", 2),),
    "service": (("rpc", 2),),
}
_ATTRIBUTES = {
    ("file", "message"): "message_type",
    ("file", "enum"): "enum_type",
    ("message", "message"): "nested_type",
    ("message", "enum"): "enum_type",
    ("service", "rpc"): "method",
}
MUST_BE_DOCUMENTED = ("service", "rpc", "message", "enum")


def elements(kind, proto, name, path=()):
    """(kind, full name, path) of everything within, as it is numbered in SourceCodeInfo."""
    for child_kind, number in _CHILDREN.get(kind, ()):
        attribute = _ATTRIBUTES.get((kind, child_kind), child_kind)
        for index, child in enumerate(getattr(proto, attribute)):
            if child_kind == "message" and child.options.map_entry:
                continue
            child_name = f"{name}.{child.name}"
            child_path = (*path, number, index)
            yield child_kind, child_name, child_path
            yield from elements(child_kind, child, child_name, child_path)


def undocumented(files):
    """(kind, full name) of everything without a comment before or behind it."""
    for file in files:
        documented = {
            tuple(location.path)
            for location in file.source_code_info.location
            if location.leading_comments.strip() or location.trailing_comments.strip()
        }
        for kind, name, path in elements("file", file, file.package):
            if path not in documented:
                yield kind, name


def read_descriptors(path):
    data = pathlib.Path(path).read_bytes()
    return descriptor_pb2.FileDescriptorSet.FromString(data).file


class DocumentedTest(unittest.TestCase):
    def setUp(self):
        self.files = read_descriptors(os.environ["ATTENTION_DESCRIPTORS"])

    def test_comments(self):
        lacking = [item for item in undocumented(self.files) if item[0] in MUST_BE_DOCUMENTED]
        if lacking:
            self.fail("no comment at\n" + "\n".join(f"  {kind} {name}" for kind, name in lacking))

    def test_every_rpc_is_exercised(self):
        # Here, because listing what lacks a comment needs no stubs.
        import test_layers
        import test_rpcs
        import test_session_rows
        import test_session_steps
        import test_sessions

        exercised = set()
        modules = (test_rpcs, test_layers, test_sessions, test_session_steps, test_session_rows)
        for case in [value for module in modules for value in vars(module).values()]:
            if isinstance(case, type) and issubclass(case, unittest.TestCase):
                for test in vars(case).values():
                    exercised.update(getattr(test, "exercised_rpcs", ()))
        offered = {
            name
            for file in self.files
            for kind, name, _ in elements("file", file, file.package)
            if kind == "rpc"
        }
        self.assertEqual(offered - exercised, set(), "no test")
        self.assertEqual(exercised - offered, set(), "not in the .proto files")


class ReadmeTest(unittest.TestCase):
    """The sample's numbers are right in every type that it knows, in an answer that exceeds gRPC's default limit."""

    def run_sample(self, dtype):
        import harness

        sample = pathlib.Path(__file__).parent / "readme_sample.py"
        with mock.patch.object(sys, "argv", [str(sample), harness.address(), dtype]):
            with contextlib.redirect_stdout(io.StringIO()):
                return runpy.run_path(str(sample))

    def check(self, form):
        import harness
        import numpy as np

        names = self.run_sample(form.name)
        numbers = {name: names[name].astype(np.float32) for name in ("q", "k", "v", "output")}
        last = slice(-16, None)  # rows, the newest of all
        problem = harness.Problem(numbers["q"][last], numbers["k"], numbers["v"], {"is_causal": True}, form)
        exact, plain = problem.exact(), problem.plain()
        least_error = harness.FLOAT32.epsilon / 2 * exact.largest_score * np.abs(problem.v).max()
        bound = harness.reference.error_bound(
            exact.output, form.round(plain.output), form.epsilon, least_error
        )
        harness.check_close(self, form.name, numbers["output"][last], exact.output, bound)
        return names["output"]

    def test_float32(self):
        import harness

        self.assertGreaterEqual(self.check(harness.FLOAT32).nbytes, 4 << 20)

    def test_float16(self):
        import harness

        self.check(harness.FLOAT16)

    def test_bfloat16(self):
        import harness

        try:
            import ml_dtypes
        except ImportError:
            self.skipTest("no ml_dtypes, install it from PyPI")
        self.check(harness.BFLOAT16)


if __name__ == "__main__":
    for item in undocumented(read_descriptors(sys.argv[1])):
        print(*item)
