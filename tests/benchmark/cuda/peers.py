#!/usr/bin/env python3
"""The CUDA kernels beside other attention on the same GPU, in turns. See README.md.

Takes the options of attention-bench-cuda, and exits as it does: 1 when a result is wrong, 77 when there is no GPU.
"""

import argparse
import ctypes
import importlib
import pathlib
import sys

import bench_c

# Modules of this folder; each has version() and PEERS, a list of classes (torch_peer.py).
MODULES = {"torch": "torch_peer", "flash-attn": "flash_attn_peer", "FlashInfer": "flashinfer_peer"}
ROOT = pathlib.Path(__file__).resolve().parents[3]


def find_peers(modules):
    """Classes of the peers that are there, and a line about each module."""
    peers, notes = [], []
    for name, module in modules.items():
        try:
            found = importlib.import_module(module)
            peers.extend(found.PEERS)
            notes.append(f"peer: {name} {found.version()}")
        except Exception as error:  # a broken installation may raise anything
            reason = (str(error) or type(error).__name__).splitlines()[0]
            notes.append(f"skipped: {name}: {reason}")
    return peers, notes


def main():
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--library", default=ROOT / "build/cuda/lib/libattention_bench_cuda.so")
    parser.add_argument("--peers", default=",".join(MODULES), help="modules to look for")
    options, rest = parser.parse_known_args()
    names = [name for name in options.peers.split(",") if name]
    peers, notes = find_peers({name: MODULES[name] for name in names})
    library = ctypes.CDLL(str(options.library))
    arguments = ["peers.py", *(f"--note={note}" for note in notes), *rest]
    return bench_c.run(library, arguments, [peer() for peer in peers])


if __name__ == "__main__":
    sys.exit(main())
