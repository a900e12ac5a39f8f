"""A load of which every answer is compared with float64: the neighbour who must notice nothing.

Reads commands, one a line, and answers each with one line of JSON:

    start ADDRESS...   calls each address from a thread of its own, on a connection of its own
    report             what happened since the last report
    stop               the same, and ends the calls; all that were begun are counted
"""

import json
import sys
import threading
import time

import grpc
import harness
import numpy as np
from attention.v1 import session_service_pb2
from attention_client import Client, from_tensor, to_tensor

TENANT = (("attention-tenant", "load"),)
TIMEOUT_SECONDS = 20
PAUSE_SECONDS = 0.002  # the processors are for the server
SESSION_TOKENS = 48
HEADS, KV_HEADS, DIM = 4, 2, 16


class Counts:
    def __init__(self):
        self._lock = threading.Lock()
        self._reset()

    def _reset(self):
        self._values = {"calls": 0, "failures": [], "slowest": 0.0}

    def add(self, seconds, failure):
        with self._lock:
            self._values["calls"] += 1
            self._values["slowest"] = max(self._values["slowest"], seconds)
            if failure:
                self._values["failures"].append(failure)

    def take(self):
        with self._lock:
            values = self._values
            self._reset()
        return values


def bound_of(problem):
    exact, plain = problem.exact(), problem.plain()
    least_error = harness.FLOAT32.epsilon / 2 * exact.largest_score * np.abs(problem.v).max()
    return exact.output, harness.reference.error_bound(
        exact.output, plain.output, harness.FLOAT32.epsilon, least_error
    )


def mismatch(what, output, expected):
    exact, bound = expected
    error = np.abs(from_tensor(output) - exact).max()
    return None if error <= bound else f"{what}: an error of {error}, at most {bound}"


class StatelessCalls:
    """Attend over keys that travel along."""

    def __init__(self, client):
        problem = harness.make_problem(8, 24, HEADS, KV_HEADS, DIM, DIM, is_causal=True)
        self._client, self._request, self._expected = client, problem.request(), bound_of(problem)

    def call(self):
        answer = self._client.attention.Attend(self._request, timeout=TIMEOUT_SECONDS, metadata=TENANT)
        return mismatch("Attend", answer.output, self._expected)


class SessionCalls:
    """A session that grows by a token a call, and is replaced when it is long."""

    def __init__(self, client):
        self._client = client
        self._problem = harness.make_problem(
            SESSION_TOKENS, SESSION_TOKENS, HEADS, KV_HEADS, DIM, DIM, is_causal=True
        )
        exact, self._bound = bound_of(self._problem)
        self._exact = exact
        self._handle = None

    def call(self):
        sessions = self._client.sessions
        if self._handle is None:
            geometry = session_service_pb2.SessionGeometry(
                num_layers=1, num_kv_heads=KV_HEADS, head_dim_qk=DIM, head_dim_v=DIM, kv_dtype="DTYPE_FLOAT32"
            )
            request = session_service_pb2.CreateSessionRequest(geometry=geometry)
            answer = sessions.CreateSession(request, timeout=TIMEOUT_SECONDS, metadata=TENANT)
            self._handle, self._position = answer.session.handle, 0
            return None
        if self._position == SESSION_TOKENS:
            request = session_service_pb2.DeleteSessionRequest(handle=self._handle)
            sessions.DeleteSession(request, timeout=TIMEOUT_SECONDS, metadata=TENANT)
            self._handle = None
            return None
        return self._step()

    def _step(self):
        row = slice(self._position, self._position + 1)
        step = session_service_pb2.SessionStep(
            handle=self._handle, expected_position=self._position, q=to_tensor(self._problem.q[row]),
            k=to_tensor(self._problem.k[row]), v=to_tensor(self._problem.v[row]))
        step.config.is_causal = True
        request = session_service_pb2.StepRequest(steps=[step])
        answer = self._client.sessions.Step(request, timeout=TIMEOUT_SECONDS, metadata=TENANT)
        result = answer.results[0]
        if result.HasField("error"):
            return f"Step: {result.error.code} {result.error.message}"
        self._position += 1
        return mismatch("Step", result.output, (self._exact[row], self._bound))


class Caller(threading.Thread):
    """Calls one address again and again."""

    def __init__(self, address, counts):
        super().__init__(daemon=True)
        self._address, self._counts, self._is_done = address, counts, threading.Event()

    def finish(self):
        self._is_done.set()
        self.join()

    def run(self):
        with Client(self._address) as client:
            kinds = [StatelessCalls(client), SessionCalls(client)]
            while not self._is_done.is_set():
                for kind in kinds:
                    self._call(kind)
                    self._is_done.wait(PAUSE_SECONDS)

    def _call(self, kind):
        start = time.monotonic()
        try:
            failure = kind.call()
        except grpc.RpcError as error:
            failure = f"{type(kind).__name__}: {error.code()}: {error.details()}"
        seconds = time.monotonic() - start
        self._counts.add(seconds, f"{self._address}: {failure}" if failure else None)
        if failure:
            self._is_done.wait(0.1)  # a few of them tell as much as thousands


def main():
    counts, callers = Counts(), []
    for line in sys.stdin:
        command, *addresses = line.split()
        if command == "start":
            counts = Counts()
            callers = [Caller(address, counts) for address in addresses]
            for caller in callers:
                caller.start()
        if command == "stop":
            for caller in callers:
                caller.finish()
        print(json.dumps(counts.take()), flush=True)


if __name__ == "__main__":
    main()
