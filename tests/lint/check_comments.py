#!/usr/bin/env python3
"""A comment says its subject first.

No comment of a C++ or CUDA file opens with "What", "Of", "Whether", "Who" or "Null when": a reader who
meets the sentence alone could not tell its subject. Only the first line of a comment is looked at.
Prints file:line, a hint and the line; exits with 1 if there is any.
"""

import argparse
import pathlib
import re
import sys

import sources

COMMENT = re.compile(r"\s*(?://|/\*)")
OPENING = re.compile(r"\s*(?:///?|/\*\*?)[!<]?\s*(What|Of|Whether|Who|Null when)\b")
HINTS = {
    "What": "name the thing (\"The bytes that ...\")",
    "Of": "name the thing (\"The index of ...\")",
    "Whether": "say \"True when ...\"",
    "Who": "name the one who acts (\"The caller that ...\")",
    "Null when": "name the thing before the exception (\"The plan; null when ...\")",
}


def findings(text):
    """Triples (line number, opening, line)."""
    is_after_comment = False
    for number, line in enumerate(text.splitlines(), start=1):
        match = None if is_after_comment else OPENING.match(line)
        if match:
            yield number, match.group(1), line.strip()
        is_after_comment = bool(COMMENT.match(line))


def check_tree(root):
    messages = []
    for name in sources.cxx_files(root):
        text = (pathlib.Path(root) / name).read_text(encoding="utf-8")
        messages += [f"{name}:{number}: a comment opens with \"{opening}\", {HINTS[opening]}: {line}"
                     for number, opening, line in findings(text)]
    return messages


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("root", nargs="?", default=sources.repository_root(), type=pathlib.Path)
    messages = check_tree(parser.parse_args().root)
    print("\n".join(messages) if messages else "every comment says its subject first")
    return 1 if messages else 0


if __name__ == "__main__":
    sys.exit(main())
