"""The code blocks of the pages: where they are, what they hold, and what is said about them.

A comment `<!-- KIND: WORDS -->` before a block is its tag.
"""

import dataclasses
import pathlib
import re
import shlex

import sources

TAG = re.compile(r"^\s*<!-- (?P<kind>sample|run by|run|not run): (?P<words>.+?) -->\s*$")
FENCE = re.compile(r"^(?P<indent> *)(?P<ticks>`{3,})(?P<language>\w*)\s*$")
LIST_ITEM = re.compile(r"^ {0,3}([-*+]|\d+[.)]) ")


@dataclasses.dataclass
class Block:
    page: str
    line: int  # of its fence, from 1
    language: str  # empty: none is named; "indented": no fence
    kind: str  # of its tag; empty: it has none
    words: str
    body: str

    @property
    def place(self):
        return f"{self.page}:{self.line}"

    def commands(self):
        """The command lines of a shell block: continued lines joined, comments and blank lines left out."""
        lines = self.body.replace("\\\n", " ").splitlines()
        stripped = (" ".join(re.sub(r"(^|\s)#\s.*", "", line).split()) for line in lines)
        return [line for line in stripped if line]


def pages(root):
    return [name for name in sources.files(root) if name.endswith(".md")]


def blocks(root):
    for page in pages(root):
        yield from blocks_of(page, (pathlib.Path(root) / page).read_text())


def blocks_of(page, text):
    lines = text.splitlines()
    in_list = False
    number = 0
    while number < len(lines):
        line = lines[number]
        if line and not line[0].isspace():
            in_list = LIST_ITEM.match(line) is not None or (in_list and bool(lines[number - 1].strip()))
        fence = FENCE.match(line)
        if fence:
            end = _end_of_fence(lines, number, fence["ticks"])
            yield _block(page, lines, number, end, fence["language"])
            number = end
        elif line.startswith("    ") and line.strip() and not in_list and number > 0 and not lines[number - 1].strip():
            end = number
            while end < len(lines) and (lines[end].startswith("    ") or not lines[end].strip()):
                end += 1
            yield _block(page, lines, number - 1, end, "indented")
            number = end - 1
        number += 1


def _end_of_fence(lines, start, ticks):
    for number in range(start + 1, len(lines)):
        if lines[number].strip() == ticks:
            return number
    return len(lines)


def _block(page, lines, start, end, language):
    before = start - 1
    while before >= 0 and not lines[before].strip():
        before -= 1
    tag = TAG.match(lines[before]) if before >= 0 else None
    return Block(page=page, line=start + 1, language=language, kind=tag["kind"] if tag else "",
                 words=tag["words"] if tag else "", body="".join(f"{line}\n" for line in lines[start + 1:end]))


def words_of(command):
    """The words of a command line, as a shell splits them."""
    return shlex.split(command)
