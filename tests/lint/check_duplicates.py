#!/usr/bin/env python3
"""No six lines of code stand twice in the C++ of the product (client, kernels, proto, server).

Lines count that hold code of their own: not blank ones, comments, brackets, includes, namespaces, using
declarations, access labels and conditions of the preprocessor. Indentation does not matter. Prints both places
of each run and how long it is; exits with 1 if there is any.
"""

import argparse
import pathlib
import re
import sys

import sources

ROOTS = ("client/", "kernels/", "proto/", "server/")
MIN_LINES = 6
NOT_COUNTED = re.compile(r"(#|//|using\b|namespace\b|template\b.*>$|(public|private|protected):|(else|default:|break;)$|\W*$)")

# "file:file" of a pair -> why both have it.
HOT = "an inner loop, whose speed depends on where its code lies"
ALLOWED = {
    "kernels/api/rotary.h:client/include/attention/client/layer_types.h": "the SDK includes nothing of the kernels",
    "kernels/cpu/dot-inl.h:kernels/cpu/pv-inl.h": HOT,
    "kernels/cpu/weights-inl.h:kernels/cpu/weights-inl.h": HOT,
    "kernels/cuda/kernels/generic/attend_float.h:kernels/cuda/kernels/generic/row_totals.h": HOT,
    "server/rpc/health_service.cc:server/rpc/health_service.cc": "members of two calls, in the order of their end",
    "server/rpc/health_service.cc:server/rpc/reflection_service.cc": "calls that end in ways of their own",
}


def counted_lines(text):
    """Pairs (line number, text) of the lines that count."""
    for number, line in enumerate(text.splitlines(), start=1):
        line = line.split("//")[0].strip()
        if not NOT_COUNTED.match(line):
            yield number, line


def runs(texts):
    """(file, line, file, line, length) of each run that stands twice, longest first; texts by file name."""
    lines = {name: list(counted_lines(text)) for name, text in texts.items()}
    first, covered, found = {}, set(), []
    for name, counted in lines.items():
        for i in range(len(counted) - MIN_LINES + 1):
            key = tuple(line for _, line in counted[i:i + MIN_LINES])
            if key not in first:
                first[key] = name, i
                continue
            other, j = first[key]
            if (name, i, other, j) in covered or (other == name and i < j + MIN_LINES):
                continue
            length = 0
            while (i + length < len(counted) and j + length < len(lines[other])
                   and counted[i + length][1] == lines[other][j + length][1]
                   and (other != name or j + length < i)):
                covered.add((name, i + length, other, j + length))
                length += 1
            found.append((other, lines[other][j][0], name, counted[i][0], length))
    return sorted(found, key=lambda run: (-run[4], run))


def check_texts(texts, allowed=()):
    """Messages on what stands twice and is not allowed, and on what is allowed without need."""
    found = runs(texts)
    pairs = {f"{name}:{other}" for name, _, other, _, _ in found}
    pairs |= {f"{other}:{name}" for name, _, other, _, _ in found}
    return [f"{name}:{line}: {length} lines stand also in {other}:{other_line}"
            for name, line, other, other_line, length in found
            if f"{name}:{other}" not in allowed and f"{other}:{name}" not in allowed] + [
        f"tests/lint/check_duplicates.py: allows {pair}, which stands only once or is gone"
        for pair in allowed if pair not in pairs]


def check_tree(root, allowed=()):
    return check_texts({name: (pathlib.Path(root) / name).read_text(encoding="utf-8")
                        for name in sources.cxx_files(root) if name.startswith(ROOTS)}, allowed)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("root", nargs="?", default=sources.repository_root(), type=pathlib.Path)
    messages = check_tree(parser.parse_args().root, ALLOWED)
    print("\n".join(messages) if messages else "no six lines stand twice")
    return 1 if messages else 0


if __name__ == "__main__":
    sys.exit(main())
