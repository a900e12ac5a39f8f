#!/usr/bin/env python3
"""bench_c.py against a library whose device the host plays: test_peers.py LIBRARY."""

import ctypes
import json
import math
import pathlib
import struct
import sys
import tempfile
import unittest

import bench_c
import peers


def read_bfloat16(address, count):
    raw = ctypes.string_at(address, 2 * count)
    return [struct.unpack("<f", b"\0\0" + raw[2 * i : 2 * i + 2])[0] for i in range(count)]


def write_bfloat16(values, address):
    def rounded(value):
        bits, = struct.unpack("<I", struct.pack("<f", value))
        return (bits + 0x7FFF + (bits >> 16 & 1)) >> 16
    raw = struct.pack(f"<{len(values)}H", *map(rounded, values))
    ctypes.memmove(address, raw, len(raw))


class PlainLoops:
    """Attention in loops, for single rows that decode; its outputs are multiplied by `factor`."""

    def __init__(self, name, factor=1.0):
        self.name, self._factor = name, factor

    def prepare(self, case):
        parts = case.all_parts()
        if any(part.q_len > 1 for part in parts):
            raise bench_c.Absent("prefill")
        return PreparedLoops(parts, self._factor)


class PreparedLoops:
    form = "loops"

    def __init__(self, parts, factor):
        self._parts, self._factor = parts, factor
        self._outputs = []

    def launch(self):
        self._outputs = [self._attend(part) for part in self._parts]

    def output(self, index, address):
        write_bfloat16(self._outputs[index], address)

    def _attend(self, part):
        dim, group = part.head_dim, part.num_q_heads // part.num_kv_heads
        q = read_bfloat16(part.q, math.prod(part.q_shape))
        k, v = (read_bfloat16(rows, math.prod(part.kv_shape)) for rows in (part.k, part.v))
        out = []
        for sequence in range(part.batch_size):
            for head in range(part.num_q_heads):
                row = q[(sequence * part.num_q_heads + head) * dim :][:dim]
                starts = [((sequence * part.kv_len + key) * part.num_kv_heads + head // group) * dim
                          for key in range(part.kv_len)]
                scores = [sum(map(float.__mul__, row, k[at : at + dim])) / math.sqrt(dim)
                          for at in starts]
                weights = [math.exp(score - max(scores)) for score in scores]
                out += [self._factor * sum(w * v[at + i] for w, at in zip(weights, starts))
                        / sum(weights) for i in range(dim)]
        return out


class Raising:
    name = "raising"

    def prepare(self, case):
        raise RuntimeError("no kernel for this case")


class PeersTest(unittest.TestCase):
    library = None

    def run_bench(self, those):
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder) / "found.json"
            status = bench_c.run(self.library, ["test", "--small", "--filter=shared", "--rounds=1",
                                                "--turn-seconds=0", f"--json={path}"], those)
            record, = json.loads(path.read_text())["records"]
        return status, {one["contender"]: one for one in record["outcomes"]}

    def test_a_right_peer_has_a_figure(self):
        status, outcomes = self.run_bench([PlainLoops("loops")])
        self.assertEqual(status, 0)
        self.assertEqual(outcomes["loops"]["verdict"], "right")
        self.assertEqual(outcomes["loops"]["text"], "loops")
        self.assertGreater(outcomes["loops"]["seconds"], 0)

    def test_a_wrong_peer_has_none(self):
        status, outcomes = self.run_bench([PlainLoops("wrong", factor=1.05)])
        self.assertEqual(status, 1)
        self.assertEqual((outcomes["wrong"]["verdict"], outcomes["wrong"]["seconds"]), ("wrong", 0))

    def test_a_peer_that_raises_is_named_with_its_reason(self):
        status, outcomes = self.run_bench([Raising()])
        self.assertEqual(status, 0)
        self.assertEqual(outcomes["raising"]["verdict"], "failed")
        self.assertEqual(outcomes["raising"]["text"], "no kernel for this case")
        self.assertEqual(outcomes["ours"]["verdict"], "right")

    def test_modules_that_are_not_there_are_skipped_with_a_reason(self):
        found, notes = peers.find_peers({"nobody": "no_such_peer"})
        self.assertEqual(found, [])
        self.assertRegex(notes[0], r"^skipped: nobody: No module named")


if __name__ == "__main__":
    PeersTest.library = ctypes.CDLL(sys.argv.pop(1))
    unittest.main()
