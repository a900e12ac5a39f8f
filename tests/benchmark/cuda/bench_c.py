"""bench_c.h for Python: peers are objects, and what they raise becomes an answer.

A peer has `name`, and prepare(case), which returns a prepared case: an object with `form`, launch(), and
output(part, address), which writes that part's output. prepare raises Absent for a case that the peer does not have.
"""

import ctypes
import sys

OK, ABSENT, FAILED = 0, 1, 2


class Absent(Exception):
    """The peer does not have such a case."""


class Part(ctypes.Structure):
    _fields_ = [("batch_size", ctypes.c_int64), ("num_q_heads", ctypes.c_int64),
                ("num_kv_heads", ctypes.c_int64), ("q_len", ctypes.c_int64),
                ("kv_len", ctypes.c_int64), ("head_dim", ctypes.c_int64),
                ("is_causal", ctypes.c_int64), ("window_left", ctypes.c_int64),
                ("shared_len", ctypes.c_int64), ("dtype", ctypes.c_char_p),
                ("q", ctypes.c_void_p), ("k", ctypes.c_void_p), ("v", ctypes.c_void_p)]

    @property
    def q_shape(self):
        return self.batch_size, self.q_len, self.num_q_heads, self.head_dim

    @property
    def kv_shape(self):
        return self.batch_size, self.kv_len, self.num_kv_heads, self.head_dim

    def copy(self):
        """One that stays; the tensors stay as long as the prepared case."""
        return Part.from_buffer_copy(self)


class Case(ctypes.Structure):
    _fields_ = [("name", ctypes.c_char_p), ("num_parts", ctypes.c_int64),
                ("parts", ctypes.POINTER(Part)), ("stream", ctypes.c_void_p)]

    def all_parts(self):
        return [self.parts[i].copy() for i in range(self.num_parts)]


Prepare = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int64, ctypes.POINTER(Case),
                           ctypes.POINTER(ctypes.c_char), ctypes.c_int64)
Launch = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int64)
Output = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p)
Close = ctypes.CFUNCTYPE(None, ctypes.c_int64)


class Peer(ctypes.Structure):
    _fields_ = [("name", ctypes.c_char_p), ("prepare", Prepare), ("launch", Launch),
                ("output", Output), ("close", Close)]


class _Functions:
    """The functions of a peer. An exception must not leave them: ctypes would answer 0."""

    def __init__(self, peer):
        self._peer = peer
        self._prepared = {}

    def describe(self):
        return Peer(self._peer.name.encode(), Prepare(self._prepare), Launch(self._launch),
                    Output(self._output), Close(self._close))

    def _prepare(self, token, case, text, text_bytes):
        try:
            prepared = self._prepared[token] = self._peer.prepare(case.contents)
            answer, words = OK, prepared.form
        except Absent as absent:
            answer, words = ABSENT, str(absent)
        except Exception as error:  # the peers' own types
            answer, words = FAILED, (str(error) or type(error).__name__).splitlines()[0]
        said = words.encode()[: text_bytes - 1] + b"\0"
        ctypes.memmove(text, said, len(said))
        return answer

    def _answer(self, call):
        try:
            call()
            return OK
        except Exception as error:
            print(f"{self._peer.name} failed: {error}", file=sys.stderr)
            return FAILED

    def _launch(self, token):
        return self._answer(lambda: self._prepared[token].launch())

    def _output(self, token, part, address):
        return self._answer(lambda: self._prepared[token].output(part, address))

    def _close(self, token):
        self._prepared.pop(token, None)


def run(library, arguments, peers):
    """The exit status of AttentionBenchMain."""
    functions = [_Functions(peer) for peer in peers]
    described = (Peer * max(1, len(peers)))(*(function.describe() for function in functions))
    words = (ctypes.c_char_p * len(arguments))(*(word.encode() for word in arguments))
    return library.AttentionBenchMain(len(arguments), words, described, len(peers))
