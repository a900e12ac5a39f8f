#!/usr/bin/env python3
"""Holds every code block of every page to something that compiles it, runs it, or says why not.

A block is fenced. It is `text` (a figure, or what a program prints), or the comment before it says what
stands behind it:

  <!-- sample: PATH NAME -->   the region NAME of a file, marked there by `[NAME]` and `[end]` comments, less
                               its indentation; the file is compiled or run by a test. --write copies it
  <!-- run: WHERE -->          tests/docs/run.sh runs its commands as they stand; WHERE is a setting of that script
  <!-- run by: FILE... -->     each of its commands stands in one of the files, which run it
  <!-- not run: REASON -->     nothing runs it

Of all commands the files that they name are there, and scripts and programs of this repository know the
flags that they are given.
"""

import argparse
import pathlib
import re
import sys
import textwrap

import pages
import sources

ROOT = sources.repository_root()
SETTINGS = ("server", "identity", "python", "java", "quickstart", "install", "preload")  # of tests/docs/run.sh
MADE_BY_USERS = ("build/", "venv/", "path/", "java/", "/")
SAMPLE = re.compile(
    r"(?P<head><!-- sample: (?P<path>\S+) (?P<name>\S+) -->\n```\w+\n)(?P<body>.*?)(?P<tail>```\n)",
    re.DOTALL)


class Mistake(Exception):
    """A fault of a block."""


def region(root, path, name):
    file = pathlib.Path(root) / path
    if not file.is_file():
        raise Mistake(f"there is no {path}")
    lines = file.read_text().splitlines(keepends=True)
    starts = [i for i, line in enumerate(lines) if line.strip() in (f"// [{name}]", f"# [{name}]")]
    if len(starts) != 1:
        raise Mistake(f"{path} has {len(starts)} regions named {name}, expected 1")
    body = []
    for line in lines[starts[0] + 1:]:
        if line.strip() in ("// [end]", "# [end]"):
            return textwrap.dedent("".join(body))
        body.append(line)
    raise Mistake(f"{path}: region {name} has no [end]")


def check_sample(root, block):
    words = block.words.split()
    if len(words) != 2:
        raise Mistake(f"its tag names {len(words)} words, expected a file and a region")
    if block.body != region(root, *words):
        raise Mistake(f"it differs from {words[0]} [{words[1]}]; run tests/lint/check_readme.py --write")


def check_run(_, block):
    if block.words not in SETTINGS:
        raise Mistake(f"its tag names {block.words}, expected one of {', '.join(SETTINGS)}")


def check_run_by(root, block):
    files = [pathlib.Path(root) / name for name in block.words.split()]
    for file in files:
        if not file.is_file():
            raise Mistake(f"there is no {file.relative_to(root)}")
    texts = [" ".join(file.read_text().replace("\\\n", " ").split()) for file in files]
    for command in block.commands():
        if not any(command in text for text in texts):
            raise Mistake(f"`{command}` stands in none of: {block.words}")


def check_commands(root, block):
    for command in block.commands():
        words = pages.words_of(command)
        program = program_of(root, words)
        for word in words:
            if is_path(word):
                check_path(root, word)
            if program and word.startswith("--"):
                check_flag(root, program, word[2:].split("=")[0])


def is_path(word):
    """A word that names something in the repository: a folder, and no flag, assignment or sentence."""
    return re.fullmatch(r"[\w./*-]+/[\w./*-]+", word) and not word.startswith(MADE_BY_USERS + ("-",)) and (
        "." in word.rsplit("/", 1)[1])


def program_of(root, words):
    """The program or script of this repository that the words run, if they do."""
    words = [word for word in words if not re.match(r"\w+=", word)]
    if words and pathlib.Path(words[0]).name.startswith("python"):
        words = words[1:]
    if words and (pathlib.Path(words[0]).name.startswith("attention-") or (pathlib.Path(root) / words[0]).is_file()):
        return words[0]
    return None


def check_path(root, word):
    if not any(pathlib.Path(root).glob(word)):
        raise Mistake(f"there is no {word}")


def check_flag(root, program, flag):
    """A script's folder names the flag; a program's sources do, wherever they are."""
    if pathlib.Path(program).name.startswith("attention-"):
        candidates = [name for name in sources.cxx_files(root)]
    else:
        folder = str(pathlib.Path(program).parent)
        candidates = [name for name in sources.files(root)
                      if name.startswith(folder + "/") and name.endswith((".py", ".sh"))]
    pattern = re.compile(rf"\b{re.escape(flag)}\b")
    if not any(pattern.search((pathlib.Path(root) / name).read_text()) for name in candidates):
        raise Mistake(f"{program} knows no --{flag}")


CHECKS = {"sample": check_sample, "run": check_run, "run by": check_run_by, "not run": lambda *_: None}


def check_block(root, block):
    if block.language == "indented":
        raise Mistake("an indented block; fence it")
    if block.kind:
        CHECKS[block.kind](root, block)
    elif block.language != "text":
        raise Mistake("nothing says what runs it; see tests/lint/check_readme.py")
    if block.language == "sh":
        check_commands(root, block)


def check_tree(root):
    messages = []
    for block in pages.blocks(root):
        try:
            check_block(root, block)
        except Mistake as mistake:
            messages.append(f"{block.place}: {mistake}")
    return messages


def write_samples(root):
    for page in pages.pages(root):
        file = pathlib.Path(root) / page
        file.write_text(SAMPLE.sub(
            lambda m: m["head"] + region(root, m["path"], m["name"]) + m["tail"], file.read_text()))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help="copy the regions into the pages")
    if parser.parse_args().write:
        write_samples(ROOT)
    messages = check_tree(ROOT)
    print("\n".join(messages) if messages else "every block of the pages is accounted for")
    return 1 if messages else 0


if __name__ == "__main__":
    sys.exit(main())
