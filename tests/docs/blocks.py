"""Writes the blocks of the pages that tests/docs/run.sh runs into a folder: for each setting and page one file,
the page's blocks of that setting one after another.

    blocks.py FOLDER
"""

import pathlib
import sys

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPOSITORY / "tests/lint"))

import pages


def main():
    for block in pages.blocks(REPOSITORY):
        if block.kind != "run":
            continue
        file = pathlib.Path(sys.argv[1], block.words, block.page.replace("/", "+"))
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("a") as out:
            out.write(block.body)


if __name__ == "__main__":
    main()
