#!/usr/bin/env python3
"""No C++ file over 500 lines, no class over 200, no function over 70 (in kernels/cpu and kernels/cuda: 150).

Lines are those of the text, comments and blank ones included. Classes and functions are found by universal-ctags.
"""

import argparse
import json
import pathlib
import subprocess
import sys

import sources

MAX_FILE_LINES = 500
MAX_CLASS_LINES = 200
MAX_FUNCTION_LINES = 70
MAX_KERNEL_FUNCTION_LINES = 150
KERNEL_ROOMS = ("kernels/cpu/", "kernels/cuda/")

# "path", "path:function" or "path:class" -> why it may be longer.
A_KERNEL = "a kernel: its steps share registers and tiles, which are its members"
ALLOWED = {
    "kernels/cuda/kernels/generic/attend_mma.h:AttendMma": A_KERNEL,
    "kernels/cuda/kernels/sm90/attend_wgmma.h:Consumer": A_KERNEL,
    "kernels/cuda/kernels/common/decode_warp.h:DecodeWarp": A_KERNEL,
}

SKIPPED = 77


def function_limit(path):
    return MAX_KERNEL_FUNCTION_LINES if path.startswith(KERNEL_ROOMS) else MAX_FUNCTION_LINES


def definitions(root, names, kinds):
    """(path, name, first line, number of lines) of each definition of these kinds of ctags."""
    command = ["ctags", "--options=NONE", "--output-format=json", "--fields=+ne", f"--kinds-C++={kinds}",
               "--langmap=C++:.h.cc.cu.cuh.inc", "--languages=C++", "-f", "-", "-L", "-"]
    result = subprocess.run(command, input="\n".join(names), cwd=root, capture_output=True, text=True,
                            check=True)
    for line in result.stdout.splitlines():
        tag = json.loads(line)
        if "end" in tag:
            yield tag["path"], tag["name"], tag["line"], tag["end"] - tag["line"] + 1


def too_long(root, names):
    """Entry as in ALLOWED -> message."""
    found = {}
    for name in names:
        count = len((pathlib.Path(root) / name).read_bytes().splitlines())
        if count > MAX_FILE_LINES:
            found[name] = f"{name}:1: {count} lines, at most {MAX_FILE_LINES}"
    for kinds, limit in (("cs", lambda path: MAX_CLASS_LINES), ("f", function_limit)):
        for path, name, line, count in definitions(root, names, kinds):
            if count > limit(path):
                found[f"{path}:{name}"] = f"{path}:{line}: {name} has {count} lines, at most {limit(path)}"
    return found


def check_tree(root, allowed=()):
    """Messages on what is too long and not allowed, and on what is allowed without need."""
    found = too_long(root, sources.cxx_files(root))
    return [message for entry, message in found.items() if entry not in allowed] + [
        f"tests/lint/check_sizes.py: allows {entry}, which is not too long or is gone"
        for entry in allowed if entry not in found]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("root", nargs="?", default=sources.repository_root(), type=pathlib.Path)
    root = parser.parse_args().root
    try:
        messages = check_tree(root, ALLOWED)
    except (OSError, subprocess.CalledProcessError) as error:
        print(f"skipped: universal-ctags does not run: {error}")
        return SKIPPED
    print("\n".join(messages) if messages else "no file, class or function is too long")
    return 1 if messages else 0


if __name__ == "__main__":
    sys.exit(main())
