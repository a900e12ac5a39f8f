#!/usr/bin/env python3
"""Continues prompts with SmolLM2-135M by beam search; beams are sessions of an attention-server.

    smollm2_beams.py --target localhost:7070 --beams 4 "The capital of France is"

The prompt is read once, and its session forked: all beams read the same pages. After each token one call
lets every beam hold what the beam has held that it goes on from. README.md beside this file says what to
install.
"""

import argparse
import time
from typing import NamedTuple

import numpy as np
import smollm2
from smollm2_generate import Sequence, Speed, add_arguments, make_attention, next_logits


class Candidate(NamedTuple):
    """A beam with one more token."""

    score: float  # the log probability of all that follows the prompt
    beam: int
    token: int


class Text(NamedTuple):
    tokens: list  # what follows the prompt, without an end of text
    score: float  # log probability by token, an end of text included


def search(model, attention, prompt, num_beams, max_tokens):
    """The texts that follow a prompt, num_beams of them, the best first.

    It ends when so many have come to their end, or after max_tokens.
    """
    prompt_tokens = model.tokenize(prompt)
    beams = [Sequence(prompt_tokens, length=len(prompt_tokens)) for _ in range(num_beams)]
    logits = read_prompt(model, attention, prompt_tokens, beams)
    scores = np.zeros(1)  # of the prompt, then of each beam
    ended = []
    try:
        for length in range(1, max_tokens + 1):
            if length > 1:
                logits = next_logits(model, attention, beams)
            # More than num_beams: all of those may end, and as many are to go on.
            count = num_beams * (1 + len(model.end_tokens))
            candidates = best_candidates(scores, logits, count)
            for candidate in candidates[:num_beams]:
                if candidate.token in model.end_tokens:
                    tokens = beams[candidate.beam].tokens[len(prompt_tokens) :]
                    ended.append(Text(tokens, candidate.score / length))
            if len(ended) >= num_beams:
                return best(ended, num_beams)
            going_on = [c for c in candidates if c.token not in model.end_tokens][:num_beams]
            follow(attention, beams, going_on)
            scores = np.array([candidate.score for candidate in going_on])
    finally:
        for beam in beams:
            attention.remove(beam)
    cut = [Text(b.tokens[len(prompt_tokens) :], s / max_tokens) for b, s in zip(beams, scores)]
    return best(ended + cut, num_beams)


def read_prompt(model, attention, tokens, beams):
    """Gives each beam the prompt's cache. Returns the logits of what follows the prompt, [1, vocabulary]."""
    prompt = Sequence(tokens)
    attention.add(prompt)
    try:
        logits = next_logits(model, attention, [prompt])
        attention.fork(prompt, beams)
    finally:
        attention.remove(prompt)  # what the beams read of it stays
    return logits


def best_candidates(scores, logits, count):
    """The best first; of equal ones that of the earlier beam, then of the lower token."""
    totals = (scores[:, None] + log_softmax(logits)).ravel()
    least = np.partition(totals, -count)[-count]
    indices = np.flatnonzero(totals >= least)
    indices = indices[np.argsort(-totals[indices], kind="stable")][:count]
    beams, tokens = np.divmod(indices, logits.shape[1])
    return [Candidate(*values) for values in zip(totals[indices], beams.tolist(), tokens.tolist())]


def log_softmax(logits):
    logits = logits - logits.max(axis=1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))


def follow(attention, beams, candidates):
    """Makes the candidates the beams: each gets the cache and the tokens of the beam that it came from."""
    attention.reorder(beams, [candidate.beam for candidate in candidates])
    texts = [beams[candidate.beam].tokens + [candidate.token] for candidate in candidates]
    for beam, tokens in zip(beams, texts):
        beam.tokens = tokens


def best(texts, count):
    return sorted(texts, key=lambda text: -text.score)[:count]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_arguments(parser)
    parser.add_argument("--beams", type=int, default=4)
    arguments = parser.parse_args()
    model = smollm2.SmolLM2(smollm2.packaged_model())
    attention = make_attention(arguments, model)
    speed = Speed()
    for prompt in arguments.prompts:
        start = time.perf_counter()
        texts = search(model, attention, prompt, arguments.beams, arguments.max_tokens)
        speed.seconds += time.perf_counter() - start
        print(f"> {prompt}")
        for text in texts:
            speed.tokens += len(text.tokens)
            print(f"{text.score:.4f} {model.text(text.tokens)}")
            if arguments.print_ids:
                print("ids:", *text.tokens)
    attention.close()
    print(f"attention: {arguments.attention}\nbeams: {arguments.beams}\ntokens: {speed}")


if __name__ == "__main__":
    main()
