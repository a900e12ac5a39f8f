#!/usr/bin/env python3
"""Holds the subjects of commits to one form: `area: imperative, effect`, the text after the area at most 64 characters.

Looks at what came after BASE. Where there is no history, as in an image or a shallow clone, it says so and exits with 77.
"""

import re
import subprocess
import sys

import sources

ROOT = sources.repository_root()
BASE = "4cdae9d3d4f9c75aec18441ebb127d319f3935ad"
SUBJECT = re.compile(r"[A-Za-z0-9/._-]+: .{1,64}")
SKIPPED = 77


def git(root, *words):
    return subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True, check=False)


def has_history(root, base):
    return git(root, "merge-base", "--is-ancestor", base, "HEAD").returncode == 0


def check_history(root, base):
    """The commits after the base whose subjects have another form; merges are git's own."""
    log = git(root, "log", "--no-merges", "--format=%h %s", f"{base}..HEAD").stdout
    return [f"{line}: expected `area: imperative, effect`, at most 64 characters after the area"
            for line in log.splitlines() if not SUBJECT.fullmatch(line.split(" ", 1)[1])]


def main():
    if not has_history(ROOT, BASE):
        print(f"skipped: no history from {BASE} on")
        return SKIPPED
    messages = check_history(ROOT, BASE)
    print("\n".join(messages) if messages else "commit subjects have their form")
    return 1 if messages else 0


if __name__ == "__main__":
    sys.exit(main())
