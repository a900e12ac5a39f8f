"""Attention and KV cache of a model's sequences, computed by an attention-server.

A session holds the keys and values of one sequence, all layers. Each layer of a forward pass is one
request on one open stream, with a step for each sequence: it carries their new rows and brings back
what these attend to. Copies of sessions share what they have in common (`fork`, `reorder`), and of drafts
those stay that prove right (`attend_tree`, `keep`).
"""

import queue

import numpy as np
from attention.v1 import session_service_pb2 as pb
from attention.v1 import session_service_pb2_grpc, tensor_pb2


def to_tensor(array):
    """An array as float32 numbers of the wire."""
    return tensor_pb2.Tensor(
        dtype=tensor_pb2.DTYPE_FLOAT32, shape=array.shape, data=array.astype("<f4").tobytes()
    )


def from_tensor(tensor):
    return np.frombuffer(tensor.data, "<f4").reshape(tensor.shape)


class RemoteAttention:
    """The attention of one model. `sequences` are objects whose `length` counts the cached tokens.

    The channel is closed with this."""

    def __init__(self, channel, model):
        self._channel = channel
        self._sessions = session_service_pb2_grpc.SessionServiceStub(self._channel)
        self._geometry = pb.SessionGeometry(
            num_layers=model.num_layers,
            num_kv_heads=model.num_kv_heads,
            head_dim_qk=model.head_dim,
            head_dim_v=model.head_dim,
            kv_dtype=tensor_pb2.DTYPE_FLOAT32,
        )
        self._handles = {}
        self._requests = queue.SimpleQueue()
        self._answers = self._sessions.StepStream(iter(self._requests.get, None))
        self._num_requests = 0
        self._num_changes = 0

    def add(self, sequence):
        """Gives the sequence an empty cache."""
        request = pb.CreateSessionRequest(geometry=self._geometry)
        self._handles[id(sequence)] = self._sessions.CreateSession(request).session.handle

    def remove(self, sequence):
        handle = self._handles.pop(id(sequence))
        self._sessions.DeleteSession(pb.DeleteSessionRequest(handle=handle))

    # [attend]
    def attend(self, sequences, row_counts, layer, q, k, v):
        """Appends k and v and attends with q.

        q [rows, num_q_heads, head_dim], k and v [rows, num_kv_heads, head_dim]: row_counts[0] rows of
        sequences[0], then those of sequences[1] and so on. Returns an array of q's shape.
        """
        request = pb.StepRequest()
        end = 0
        for sequence, count in zip(sequences, row_counts):
            rows = slice(end, end + count)
            end += count
            step = request.steps.add(
                handle=self._handles[id(sequence)],
                layer=layer,
                expected_position=sequence.length,  # a step that is sent twice is appended once
                q=to_tensor(q[rows]),
                k=to_tensor(k[rows]),
                v=to_tensor(v[rows]),
            )
            step.config.is_causal = True
        return np.concatenate([from_tensor(result.output) for result in self._exchange(request)])
    # [end]

    def fork(self, sequence, copies):
        """Gives each of `copies`, which are sequences without a cache, the cache of `sequence`.

        Nothing is copied: they read the same pages, until one of them appends to a page.
        """
        request = pb.ForkSessionRequest(handle=self._handles[id(sequence)], num_copies=len(copies))
        for copy, session in zip(copies, self._sessions.ForkSession(request).sessions):
            self._handles[id(copy)] = session.handle

    def reorder(self, sequences, sources):
        """Lets sequences[i] have the cache that sequences[sources[i]] has had, for all i at once."""
        handles = [self._handles[id(sequence)] for sequence in sequences]
        request = pb.ReorderSessionsRequest(
            handles=handles, sources=sources, reorder_id=self._new_change_id()
        )
        self._sessions.ReorderSessions(request)

    def attend_tree(self, sequence, layer, q, k, v, ancestors):
        """As attend, for rows that are a tree of drafts.

        ancestors, bool [rows, rows]: for each row those of the tree that it sees, itself included. All
        see the tokens before the tree.
        """
        step = pb.SessionStep(
            handle=self._handles[id(sequence)],
            layer=layer,
            expected_position=sequence.length,
            q=to_tensor(q),
            k=to_tensor(k),
            v=to_tensor(v),
        )
        step.tree.ancestors = np.packbits(ancestors, axis=1, bitorder="little").tobytes()
        (result,) = self._exchange(pb.StepRequest(steps=[step]))
        return from_tensor(result.output)

    def keep(self, sequence, rows):
        """Drops, in all layers, the tokens behind sequence.length but for `rows`, counted from there."""
        request = pb.TruncateSessionRequest(
            handle=self._handles[id(sequence)],
            length=sequence.length,
            accepted=rows,
            change_id=self._new_change_id(),
        )
        self._sessions.TruncateSession(request)

    def close(self):
        self._requests.put(None)  # no more requests: the stream ends
        for _ in self._answers:
            pass
        self._channel.close()

    def _new_change_id(self):
        """Unlike that of the change before: so the server knows a call that is sent twice."""
        self._num_changes += 1
        return self._num_changes

    def _exchange(self, request):
        """Sends the request and waits for its answer. Several could be under way at once."""
        self._num_requests += 1
        self._requests.put(pb.StepStreamRequest(request_id=self._num_requests, request=request))
        answer = next(self._answers)
        if answer.HasField("error"):
            raise RuntimeError(answer.error.message)
        for result in answer.response.results:
            if result.HasField("error"):
                raise RuntimeError(f"{result.error.reason}: {result.error.message}")
        return answer.response.results
