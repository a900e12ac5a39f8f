#!/usr/bin/env python3
"""Text tokens that attend to the patches of an image: cross-attention with the image kept in a session.

    cross_attention.py --target localhost:7070

The encoder's keys and values are sent once, for all layers. From then on a step carries the queries of
one token alone, and the session does not grow. The weights are random; what comes back is compared with
the same computation here in float64.
"""

import argparse
import sys

import connection
import numpy as np
from attention.v1 import session_service_pb2 as pb
from attention.v1 import session_service_pb2_grpc, tensor_pb2
from remote_attention import from_tensor, to_tensor

NUM_LAYERS, NUM_HEADS, HEAD_DIM, WIDTH = 4, 8, 32, 256
IMAGE_SIZE, PATCH_SIZE = 224, 16
NUM_TOKENS = 8
ERROR_BOUND = 1e-5


def image_patches():
    """A picture of rings, [196, 768]: 14 x 14 patches of 16 x 16 pixels of three colours."""
    y, x = np.mgrid[0:IMAGE_SIZE, 0:IMAGE_SIZE] / IMAGE_SIZE - 0.5
    rings = np.sin(40 * np.hypot(x, y))
    image = np.stack([rings, rings * x, rings * y], axis=-1)
    rows = IMAGE_SIZE // PATCH_SIZE
    blocks = image.reshape(rows, PATCH_SIZE, rows, PATCH_SIZE, 3).swapaxes(1, 2)
    return blocks.reshape(rows * rows, -1)


class Weights:
    """Random projections, [in_features, out_features] each."""

    def __init__(self, generator):
        def draw(in_features, out_features):
            return generator.standard_normal((in_features, out_features)) / np.sqrt(in_features)

        self.embed_patch = draw(PATCH_SIZE * PATCH_SIZE * 3, WIDTH)
        inner = NUM_HEADS * HEAD_DIM
        self.q, self.k, self.v = ([draw(WIDTH, inner) for _ in range(NUM_LAYERS)] for _ in "qkv")
        self.out = [draw(inner, WIDTH) for _ in range(NUM_LAYERS)]


def heads(x):
    return x.reshape(len(x), NUM_HEADS, HEAD_DIM).astype(np.float32)


def remember_image(sessions, weights, patches):
    """A session with the keys and values of the image in every layer."""
    geometry = pb.SessionGeometry(
        num_layers=NUM_LAYERS,
        num_kv_heads=NUM_HEADS,
        head_dim_qk=HEAD_DIM,
        head_dim_v=HEAD_DIM,
        kv_dtype=tensor_pb2.DTYPE_FLOAT32,
    )
    handle = sessions.CreateSession(pb.CreateSessionRequest(geometry=geometry)).session.handle
    request = pb.StepRequest()
    for layer, (w_k, w_v) in enumerate(zip(weights.k, weights.v)):
        k, v = to_tensor(heads(patches @ w_k)), to_tensor(heads(patches @ w_v))
        request.steps.add(handle=handle, layer=layer, expected_position=0, k=k, v=v)  # no q: append
    check(sessions.Step(request))
    return handle


def look_at_image(sessions, handle, layer, q):
    """Attends with q [tokens, NUM_HEADS, HEAD_DIM] over the whole image."""
    # Without k and v the step only attends; without is_causal every patch is visible.
    step = pb.SessionStep(handle=handle, layer=layer, q=to_tensor(q))
    return from_tensor(check(sessions.Step(pb.StepRequest(steps=[step]))).results[0].output)


def check(response):
    for result in response.results:
        if result.HasField("error"):
            raise RuntimeError(result.error.message)
    return response


def attend_here(q, k, v):
    """Attention in float64."""
    scores = np.einsum("ihd,jhd->hij", q, k, dtype=np.float64) / np.sqrt(HEAD_DIM)
    p = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return np.einsum("hij,jhd->ihd", p / p.sum(axis=-1, keepdims=True), v)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    connection.add_arguments(parser)
    arguments = parser.parse_args()
    generator = np.random.default_rng(1)
    weights = Weights(generator)
    patches = image_patches() @ weights.embed_patch
    largest_error = 0.0
    with connection.from_arguments(arguments) as channel:
        sessions = session_service_pb2_grpc.SessionServiceStub(channel)
        image = remember_image(sessions, weights, patches)
        for token in range(NUM_TOKENS):
            x = generator.standard_normal((1, WIDTH))  # stands for the token's embedding
            for layer in range(NUM_LAYERS):
                q = heads(x @ weights.q[layer])
                seen = look_at_image(sessions, image, layer, q)
                k, v = (heads(patches @ w[layer]) for w in (weights.k, weights.v))
                error = np.abs(seen - attend_here(q, k, v)).max()
                largest_error = max(largest_error, error)
                x = x + seen.reshape(1, -1) @ weights.out[layer]
            print(f"token {token}: {len(patches)} patches seen in {NUM_LAYERS} layers")
        session = sessions.GetSession(pb.GetSessionRequest(handle=image)).session
        sessions.DeleteSession(pb.DeleteSessionRequest(handle=image))
    print(f"patches in the session: {session.committed_length}, as at the start")
    print(f"largest error against float64: {largest_error:.1e}")
    return 0 if largest_error <= ERROR_BOUND and session.committed_length == len(patches) else 1


if __name__ == "__main__":
    sys.exit(main())
