#!/usr/bin/env python3
"""Continues prompts with SmolLM2-135M, several tokens a pass where the text repeats itself.

    smollm2_drafts.py --target localhost:7070 --drafts 6 --alternatives 2 "def fibonacci(n):"

The tokens are those of smollm2_generate.py. What followed the newest tokens when they occurred before is
a draft of what follows now: one pass verifies it, with attention and KV cache in an attention-server.
Several drafts are a tree. One call keeps the path that proves right in all layers. README.md beside this
file says what to install.
"""

import argparse
import dataclasses
import time

import numpy as np
import smollm2
from smollm2_generate import Sequence, Speed, add_arguments, advance, make_attention

LONGEST_MATCH = 3  # tokens


class DraftTree:
    """Rows of one pass: the newest token, whose keys and values are not cached, and drafts behind it."""

    def __init__(self, newest_token):
        self.tokens = [newest_token]
        self._parents = [-1]

    def add(self, draft):
        """Adds a path from the newest token on. It shares the rows with which an earlier one begins."""
        row = 0
        for token in draft:
            child = self.child(row, token)
            if child is None:
                child = len(self.tokens)
                self.tokens.append(token)
                self._parents.append(row)
            row = child

    def child(self, row, token):
        """The row of this token that follows `row`, or None."""
        for child, parent in enumerate(self._parents):
            if parent == row and self.tokens[child] == token:
                return child
        return None

    def ancestors(self):
        """bool [rows, rows]: for each row those that lead to it, itself included."""
        ancestors = np.eye(len(self.tokens), dtype=bool)
        for row, parent in enumerate(self._parents[1:], start=1):
            ancestors[row] |= ancestors[parent]
        return ancestors

    def is_chain(self):
        return self._parents == list(range(-1, len(self.tokens) - 1))


def find_drafts(tokens, num_tokens, num_drafts):
    """What followed when the newest tokens occurred before: the longest match first, then the latest.

    Each draft begins with another token. It may run past the end of the text, where it repeats itself.
    """
    drafts = {}
    for length in range(LONGEST_MATCH, 0, -1):
        for start in range(len(tokens) - length - 1, -1, -1):
            if len(drafts) == num_drafts:
                return list(drafts.values())
            if tokens[start : start + length] == tokens[-length:]:
                text = list(tokens)
                for i in range(num_tokens):
                    text.append(text[start + length + i])
                drafts.setdefault(tokens[start + length], text[len(tokens) :])
    return list(drafts.values())


def verify(model, attention, sequence, tree):
    """One pass over the tree, of which the likeliest path stays. Returns its rows."""
    ancestors = tree.ancestors()
    rows = len(ancestors)

    def attend(layer, q, k, v):
        if tree.is_chain():  # a step as any other, which every device computes
            return attention.attend([sequence], [rows], layer, q, k, v)
        return attention.attend_tree(sequence, layer, q, k, v, ancestors)

    logits = model.next_logits(
        tokens=tree.tokens,
        positions=sequence.length + ancestors.sum(axis=1) - 1,  # alternatives have the same
        last_rows=np.arange(rows),
        attend=attend,
    )
    likeliest = logits.argmax(axis=1).tolist()
    path = []
    row = 0
    while row is not None:
        path.append(row)
        row = tree.child(row, likeliest[row])
    attention.keep(sequence, path)
    sequence.length += len(path)
    sequence.tokens += [likeliest[row] for row in path]  # the accepted drafts, and one more
    return path


@dataclasses.dataclass
class Passes:
    """Counts of forward passes and of drafts."""

    passes: int = 0
    drafted: int = 0
    accepted: int = 0
    side_paths: int = 0  # accepted paths with rejected rows in between

    def add(self, tree, path):
        self.passes += 1
        self.drafted += len(tree.tokens) - 1
        self.accepted += len(path) - 1
        self.side_paths += path != list(range(len(path)))

    def __str__(self):
        return (
            f"{self.passes} passes, {self.accepted} of {self.drafted} drafts accepted, "
            f"{self.side_paths} times beside others"
        )


def generate(model, attention, prompt, max_tokens, num_drafts, num_alternatives, counts):
    """The tokens that follow a prompt, at most max_tokens, without an end of text; adds to `counts`."""
    sequence = Sequence(model.tokenize(prompt))
    end = len(sequence.tokens) + max_tokens
    start = len(sequence.tokens)
    attention.add(sequence)
    try:
        advance(model, attention, [sequence])  # the prompt
        counts.passes += 1
        while len(sequence.tokens) < end and sequence.tokens[-1] not in model.end_tokens:
            tree = DraftTree(sequence.tokens[-1])
            length = min(num_drafts, end - len(sequence.tokens) - 1)  # beside them a pass gives a token
            for draft in find_drafts(sequence.tokens, length, num_alternatives):
                tree.add(draft)
            counts.add(tree, verify(model, attention, sequence, tree))
    finally:
        attention.remove(sequence)
    return [token for token in sequence.tokens[start:] if token not in model.end_tokens]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_arguments(parser)
    parser.add_argument("--drafts", type=int, default=6, help="tokens of a draft")
    parser.add_argument("--alternatives", type=int, default=1, help="drafts of a pass: several are a tree")
    arguments = parser.parse_args()
    model = smollm2.SmolLM2(smollm2.packaged_model())
    attention = make_attention(arguments, model)
    speed, counts = Speed(), Passes()
    for prompt in arguments.prompts:
        start = time.perf_counter()
        tokens = generate(
            model,
            attention,
            prompt,
            arguments.max_tokens,
            arguments.drafts,
            arguments.alternatives,
            counts,
        )
        speed.seconds += time.perf_counter() - start
        speed.tokens += len(tokens)
        print(f"> {prompt}\n{model.text(tokens)}\n")
        if arguments.print_ids:
            print("ids:", *tokens)
    attention.close()
    print(f"attention: {arguments.attention}\ndrafts: {counts}\ntokens: {speed}")


if __name__ == "__main__":
    main()
