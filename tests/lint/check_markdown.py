#!/usr/bin/env python3
"""Holds the pages to a width, and their links to something that is there.

Lines are at most 140 wide, rows of tables at most 240: a row cannot be broken. A link into the repository names a
file or folder, and its anchor a heading of that page.
"""

import pathlib
import posixpath
import re
import sys

import pages
import sources

ROOT = sources.repository_root()
MAX_WIDTH = 140
MAX_ROW_WIDTH = 240
LINK = re.compile(r"\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)


def anchor(heading):
    """What a heading is called in links, as GitHub does it."""
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading.strip()).lower()
    return re.sub(r"[^\w\- ]", "", text).replace(" ", "-")


def check_widths(page, text):
    for number, line in enumerate(text.splitlines(), start=1):
        limit = MAX_ROW_WIDTH if line.lstrip().startswith("|") else MAX_WIDTH
        if len(line) > limit:
            yield f"{page}:{number}: {len(line)} wide, at most {limit}"


def check_links(root, page, text):
    for link in LINK.findall(text):
        if re.match(r"\w+:", link):
            continue
        path, _, name = link.partition("#")
        target = posixpath.normpath(posixpath.join(posixpath.dirname(page), path)) if path else page
        file = pathlib.Path(root) / target
        if not file.exists():
            yield f"{page}: there is no {target}"
        elif name and name not in {anchor(heading) for heading in HEADING.findall(file.read_text())}:
            yield f"{page}: {target} has no heading #{name}"


def check_tree(root):
    messages = []
    for page in pages.pages(root):
        text = (pathlib.Path(root) / page).read_text()
        messages += [*check_widths(page, text), *check_links(root, page, text)]
    return messages


def main():
    messages = check_tree(ROOT)
    print("\n".join(messages) if messages else "pages have their width, and links lead somewhere")
    return 1 if messages else 0


if __name__ == "__main__":
    sys.exit(main())
