#!/usr/bin/env python3
"""Compares sentences by their MiniLM embeddings, whose attention layers are in an attention-server.

    minilm_embed.py --target localhost:7070 "Snow melted." "Spring came."

The six layers are uploaded, and deleted at the end. Each is one call for all sentences. README.md beside
this file says what to install.
"""

import argparse
import contextlib
import time

import connection
import minilm
import numpy as np

TEXTS = (
    "The night train crossed the long bridge without slowing down.",
    "An express passed over the viaduct after dark.",
    "Bees remember where clover grows.",
    "Insects find their way back to the flowers they know.",
    "The soup needs more salt and another hour on the stove.",
    "Let the stew simmer, then season it.",
)


@contextlib.contextmanager
def open_layers(arguments, model):
    """The layers that `embed` calls."""
    if arguments.attention == "local":
        yield minilm.LocalLayers(model)
        return
    import remote_layers  # needs the stubs, which local does not

    with connection.from_arguments(arguments) as channel:
        if arguments.preloaded:
            remote = remote_layers.preloaded(channel, model, arguments.preloaded)
        else:
            remote = remote_layers.uploaded(channel, model)
        with remote as layers:
            yield layers


def print_similarities(texts, embeddings):
    """Cosines of all pairs, and the nearest other text of each."""
    cosines = embeddings @ embeddings.T
    others = np.where(np.eye(len(texts), dtype=bool), -np.inf, cosines)
    print("   ", *(f"{number:5}" for number in range(1, len(texts) + 1)), " nearest")
    for number, text in enumerate(texts, start=1):
        row = " ".join(f"{cosine:5.2f}" for cosine in cosines[number - 1])
        nearest = others[number - 1].argmax() + 1 if len(texts) > 1 else "none"
        print(f"{number:3}  {row}  {nearest:>7}  {text}")


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("texts", nargs="*", default=TEXTS, help="default: six of its own")
    connection.add_arguments(parser)
    layers = parser.add_mutually_exclusive_group()
    layers.add_argument("--attention", choices=("remote", "local"), default="remote")
    layers.add_argument(
        "--preloaded", metavar="PREFIX", help="upload nothing: the server has PREFIX.0 to PREFIX.5"
    )
    return parser.parse_args()


def main():
    arguments = parse_arguments()
    model = minilm.MiniLM(minilm.packaged_model())
    with open_layers(arguments, model) as layers:
        start = time.perf_counter()
        embeddings = model.embed(arguments.texts, layers.attend)
        seconds = time.perf_counter() - start
    print_similarities(arguments.texts, embeddings)
    print(f"attention: {arguments.attention}")
    print(f"embeddings: {len(embeddings)} in {seconds * 1e3:.0f} ms")


if __name__ == "__main__":
    main()
