#!/usr/bin/env python3
"""Continues prompts with SmolLM2-135M, whose attention and KV cache are in an attention-server.

    smollm2_generate.py --target localhost:7070 "The capital of France is" "Once upon a time"

All prompts advance together: each layer of each step is one request that carries the new rows of every
sequence. Decoding is greedy. README.md beside this file says what to install.
"""

import argparse
import dataclasses
import time

import numpy as np
import connection
import smollm2
from local_attention import LocalAttention

PROMPTS = (
    "The capital of France is",
    "Once upon a time there was a lighthouse keeper who",
    "A good way to learn to cook is",
    "def fibonacci(n):\n",
)


@dataclasses.dataclass(eq=False)
class Sequence:
    tokens: list  # the prompt and what was generated
    length: int = 0  # tokens whose keys and values are cached
    is_finished: bool = False


def next_logits(model, attention, sequences):
    """One forward pass for all sequences at once: logits of what follows each, [sequences, vocabulary]."""
    new_tokens = [sequence.tokens[sequence.length :] for sequence in sequences]
    row_counts = [len(tokens) for tokens in new_tokens]
    logits = model.next_logits(
        tokens=np.concatenate(new_tokens),
        positions=np.concatenate([np.arange(s.length, len(s.tokens)) for s in sequences]),
        last_rows=np.cumsum(row_counts) - 1,
        attend=lambda layer, q, k, v: attention.attend(sequences, row_counts, layer, q, k, v),
    )
    for sequence in sequences:
        sequence.length = len(sequence.tokens)
    return logits


def advance(model, attention, sequences):
    """Appends to each sequence the likeliest next token."""
    logits = next_logits(model, attention, sequences)
    for sequence, token in zip(sequences, logits.argmax(axis=1)):
        sequence.tokens.append(int(token))


@dataclasses.dataclass
class Speed:
    """The cost of a phase: processed tokens and seconds."""

    tokens: int = 0
    seconds: float = 0.0

    def __str__(self):
        rate = self.tokens / self.seconds if self.seconds else 0.0
        return f"{self.tokens} tokens in {self.seconds:.2f} s, {rate:.1f} tokens/s"


def generate(model, attention, prompts, max_tokens):
    """The generated token ids of each prompt, and the speeds of prompts and of decoding.

    A sequence ends with the model's end of text, which is left out, or after max_tokens.
    """
    sequences = [Sequence(model.tokenize(prompt)) for prompt in prompts]
    starts = [len(sequence.tokens) for sequence in sequences]
    for sequence in sequences:
        attention.add(sequence)
    speeds = Speed(), Speed()  # the prompts' pass, and all that follow
    try:
        for step in range(max_tokens):
            active = [sequence for sequence in sequences if not sequence.is_finished]
            if not active:
                break
            start = time.perf_counter()
            num_rows = sum(len(sequence.tokens) - sequence.length for sequence in active)
            advance(model, attention, active)
            speed = speeds[min(step, 1)]
            speed.seconds += time.perf_counter() - start
            speed.tokens += num_rows
            for sequence in active:
                if sequence.tokens[-1] in model.end_tokens:
                    sequence.is_finished = True
                    sequence.tokens.pop()
    finally:
        for sequence in sequences:
            attention.remove(sequence)
    return [s.tokens[start:] for s, start in zip(sequences, starts)], *speeds


def make_attention(arguments, model):
    if arguments.attention == "local":
        return LocalAttention(model)
    from remote_attention import RemoteAttention  # needs gRPC and the stubs, which local does not

    return RemoteAttention(connection.from_arguments(arguments), model)


def add_arguments(parser):
    parser.add_argument("prompts", nargs="*", default=PROMPTS, help="default: four of its own")
    connection.add_arguments(parser)
    parser.add_argument("--attention", choices=("remote", "local"), default="remote")
    parser.add_argument("--max-tokens", type=int, default=64, help="new tokens of each prompt")
    parser.add_argument("--print-ids", action="store_true", help="print token ids too")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_arguments(parser)
    arguments = parser.parse_args()
    model = smollm2.SmolLM2(smollm2.packaged_model())
    attention = make_attention(arguments, model)
    generated, prompt_speed, decode_speed = generate(
        model, attention, arguments.prompts, arguments.max_tokens
    )
    attention.close()
    for prompt, tokens in zip(arguments.prompts, generated):
        print(f"> {prompt}\n{model.text(tokens)}\n")
        if arguments.print_ids:
            print("ids:", *tokens)
    print(f"attention: {arguments.attention}, {len(generated)} sequences at once")
    print(f"prompts: {prompt_speed}\ndecode: {decode_speed}")


if __name__ == "__main__":
    main()
