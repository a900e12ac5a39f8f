#!/usr/bin/env python3
"""A client's text enters a message through Quoted() alone.

Ids, names and metadata are a client's to choose: megabytes, line ends, bytes that are no UTF-8. In the
server's sources, other than its configuration's, no literal may open a quotation that a value is then
put into ("layer_id is '", id). Prints file:line and the line; exits with 1 if there is any.
"""

import argparse
import pathlib
import re
import sys

import sources

# A literal that ends with a single quote and is continued with something else.
OPEN_QUOTE = re.compile(r"""(?<!')'"\s*(?:[,+]|$|<<)""")
ROOT = "server/"
# The helper itself, and what an operator writes into flags and files before there is a log.
EXEMPT = ("server/base/client_text.cc", "server/config/")


def findings(text):
    """Pairs (line number, line)."""
    for number, line in enumerate(text.splitlines(), start=1):
        if OPEN_QUOTE.search(line.split("//")[0]):
            yield number, line.strip()


def check_tree(root):
    messages = []
    for name in sources.cxx_files(root):
        if not name.startswith(ROOT) or name.startswith(EXEMPT):
            continue
        text = (pathlib.Path(root) / name).read_text(encoding="utf-8")
        messages += [f"{name}:{number}: a text between quotes comes from Quoted(): {line}"
                     for number, line in findings(text)]
    return messages


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("root", nargs="?", default=sources.repository_root(), type=pathlib.Path)
    messages = check_tree(parser.parse_args().root)
    print("\n".join(messages) if messages else "every client's text is quoted by Quoted()")
    return 1 if messages else 0


if __name__ == "__main__":
    sys.exit(main())
