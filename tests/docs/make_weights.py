"""Writes the .safetensors files that a file of layers names, beside it: zeros of the shapes that its layers have.

    make_weights.py LAYERS.JSON
"""

import json
import pathlib
import struct
import sys


def shapes(layer):
    """The shape of each tensor of a multi-head layer whose heads fill the model's width."""
    width = layer["num_q_heads"] * layer["head_dim_qk"]
    model_dim = layer["model_dim"]
    return {"w_q": [width, model_dim], "w_k": [width, model_dim], "w_v": [width, model_dim],
            "w_o": [model_dim, width], "b_q": [width], "b_k": [width], "b_v": [width], "b_o": [model_dim]}


def count(shape):
    return shape[0] * (shape[1] if len(shape) > 1 else 1)


def main():
    path = pathlib.Path(sys.argv[1])
    for layer in json.loads(path.read_text())["layers"]:
        header, end = {}, 0
        for role, name in layer["tensors"].items():
            shape = shapes(layer)[role]
            begin, end = end, end + 4 * count(shape)
            header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [begin, end]}
        text = json.dumps(header).encode()
        (path.parent / layer["file"]).write_bytes(struct.pack("<Q", len(text)) + text + bytes(end))


if __name__ == "__main__":
    main()
