#!/usr/bin/env python3
"""Writes SmolLM2-135M as a .safetensors file, and prompts as token ids, for attention-smollm2.

    smollm2_export.py --model smollm2.safetensors --prompts prompts.json "The capital of France is"

There is no packaged C++ library that reads GGUF or tokenizes; Python has both. The file holds the
matrices as float32 [in_features, out_features], those that read the same rows side by side, and the bytes
of each token. Each of the two files is optional.
"""

import argparse
import json

import numpy as np
import smollm2
from safetensors.numpy import save_file


def vocabulary_tensors(model):
    """The bytes of all tokens one after another, and where each ends."""
    pieces = [model.token_bytes(token) for token in range(model.vocabulary_size)]
    return {
        "vocabulary.bytes": np.frombuffer(b"".join(pieces), np.uint8),
        "vocabulary.ends": np.cumsum([len(piece) for piece in pieces]),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("prompts", nargs="*", metavar="PROMPT")
    parser.add_argument("--model", help="the .safetensors file to write")
    parser.add_argument("--prompts", dest="prompts_file", help="the .json file to write")
    arguments = parser.parse_args()
    model = smollm2.SmolLM2(smollm2.packaged_model())
    if arguments.model:
        settings = {name: str(value) for name, value in model.settings().items()}
        save_file({**model.tensors(), **vocabulary_tensors(model)}, arguments.model, settings)
    if arguments.prompts_file:
        prompts = [{"text": text, "ids": model.tokenize(text)} for text in arguments.prompts]
        with open(arguments.prompts_file, "w", encoding="utf-8") as file:
            json.dump(prompts, file)


if __name__ == "__main__":
    main()
