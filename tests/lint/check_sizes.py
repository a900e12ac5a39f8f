#!/usr/bin/env python3
"""No C++ file over 500 lines, no function over 70 (in kernels/cpu and kernels/cuda: 150).

Lines are those of the text, comments and blank ones included. Functions are found by universal-ctags.
"""

import argparse
import json
import pathlib
import subprocess
import sys

import sources

MAX_FILE_LINES = 500
MAX_FUNCTION_LINES = 70
MAX_KERNEL_FUNCTION_LINES = 150
KERNEL_ROOMS = ("kernels/cpu/", "kernels/cuda/")

# "path" or "path:function" -> why it may be longer.
ALLOWED = {}

SKIPPED = 77


def function_limit(path):
    return MAX_KERNEL_FUNCTION_LINES if path.startswith(KERNEL_ROOMS) else MAX_FUNCTION_LINES


def functions(root, names):
    """(path, function, first line, number of lines) of each function."""
    command = ["ctags", "--options=NONE", "--output-format=json", "--fields=+ne", "--kinds-C++=f",
               "--langmap=C++:.h.cc.cu.cuh.inc", "--languages=C++", "-f", "-", "-L", "-"]
    result = subprocess.run(command, input="\n".join(names), cwd=root, capture_output=True, text=True,
                            check=True)
    for line in result.stdout.splitlines():
        tag = json.loads(line)
        if "end" in tag:
            yield tag["path"], tag["name"], tag["line"], tag["end"] - tag["line"] + 1


def check_files(root, names):
    for name in names:
        count = len((pathlib.Path(root) / name).read_bytes().splitlines())
        if count > MAX_FILE_LINES and name not in ALLOWED:
            yield f"{name}:1: {count} lines, at most {MAX_FILE_LINES}"


def check_functions(root, names):
    for path, function, line, count in functions(root, names):
        if count > function_limit(path) and f"{path}:{function}" not in ALLOWED:
            yield f"{path}:{line}: {function} has {count} lines, at most {function_limit(path)}"


def stale_allowances(names):
    for entry in ALLOWED:
        if entry.split(":")[0] not in names:
            yield f"tests/lint/check_sizes.py: allows {entry}, which is gone"


def check_tree(root):
    names = sources.cxx_files(root)
    return [*check_files(root, names), *check_functions(root, names), *stale_allowances(names)]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("root", nargs="?", default=sources.repository_root(), type=pathlib.Path)
    root = parser.parse_args().root
    try:
        messages = check_tree(root)
    except (OSError, subprocess.CalledProcessError) as error:
        print(f"skipped: universal-ctags does not run: {error}")
        return SKIPPED
    print("\n".join(messages) if messages else "no file or function is too long")
    return 1 if messages else 0


if __name__ == "__main__":
    sys.exit(main())
