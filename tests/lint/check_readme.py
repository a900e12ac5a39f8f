#!/usr/bin/env python3
"""Holds the samples of README.md to code that is compiled or run by a test.

A comment `<!-- sample: PATH NAME -->` before a fenced block names a file and a region of it, marked by
`[NAME]` and `[end]` comments. The block must be that region, less its indentation. `--write` copies the
regions into the README.
"""

import argparse
import pathlib
import re
import sys
import textwrap

ROOT = pathlib.Path(__file__).resolve().parents[2]
SAMPLE = re.compile(
    r"(?P<head><!-- sample: (?P<path>\S+) (?P<name>\S+) -->\n```\w+\n)(?P<body>.*?)(?P<tail>```\n)",
    re.DOTALL)


def region(path: str, name: str) -> str:
    lines = (ROOT / path).read_text().splitlines(keepends=True)
    starts = [i for i, line in enumerate(lines) if line.strip() in (f"// [{name}]", f"# [{name}]")]
    if len(starts) != 1:
        raise SystemExit(f"{path}: {len(starts)} regions named {name}, expected 1")
    body = []
    for line in lines[starts[0] + 1:]:
        if line.strip() in ("// [end]", "# [end]"):
            return textwrap.dedent("".join(body))
        body.append(line)
    raise SystemExit(f"{path}: region {name} has no [end]")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="copy the regions into README.md")
    arguments = parser.parse_args()
    readme = ROOT / "README.md"
    text = readme.read_text()
    samples = list(SAMPLE.finditer(text))
    if not samples:
        print("README.md: no samples found, expected some")
        return 1
    if arguments.write:
        readme.write_text(SAMPLE.sub(
            lambda m: m["head"] + region(m["path"], m["name"]) + m["tail"], text))
        return 0
    stale = [m for m in samples if m["body"] != region(m["path"], m["name"])]
    for match in stale:
        line = text.count("\n", 0, match.start()) + 1
        print(f"README.md:{line}: sample differs from {match['path']} [{match['name']}]; "
              "run tests/lint/check_readme.py --write")
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
