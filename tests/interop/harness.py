"""Shared by the tests: the server process, clients that note which RPCs they called, problems."""

import contextlib
import dataclasses
import functools
import http.client
import json
import os
import pathlib
import signal
import subprocess
import tempfile
import time

import grpc
import numpy as np
import reference
from attention.v1 import attention_config_pb2, attention_service_pb2
from attention_client import Client, error_details, from_bfloat16, from_tensor, to_bfloat16
from attention_client import to_tensor
from google.protobuf import duration_pb2

START_SECONDS = 60  # it measures the machine first
STOP_SECONDS = 60


class ServerProcess:
    """An attention-server on free ports. Leaving the context stops it and demands exit code 0."""

    def __init__(self, *flags, listen="127.0.0.1:0"):
        self._directory = tempfile.TemporaryDirectory()
        self._port_file = pathlib.Path(self._directory.name, "ports.json")
        self._log = pathlib.Path(self._directory.name, "log")
        self._command = [
            os.environ["ATTENTION_SERVER"],
            f"--listen={listen}",
            "--admin-listen=127.0.0.1:0",
            f"--port-file={self._port_file}",
            *flags,
        ]

    def __enter__(self):
        self._is_stopping = False
        with self._log.open("w") as log:
            self._process = subprocess.Popen(self._command, stdout=log, stderr=log)
        addresses = self._await_addresses()
        self.addresses, self._admin_address = addresses["listen"], addresses["admin_listen"]
        self.address = self.addresses[0]
        return self

    def __exit__(self, *_):
        with self._directory:
            self.begin_stop()
            self._await_exit()

    def begin_stop(self):
        """Once: a second signal would end the server without its drain."""
        if self._process.poll() is None and not self._is_stopping:
            self._is_stopping = True
            self._process.send_signal(signal.SIGTERM)

    def metric(self, name):
        """A number of the admin port's /metrics."""
        connection = http.client.HTTPConnection(self._admin_address, timeout=30)
        with contextlib.closing(connection):
            connection.request("GET", "/metrics")
            page = connection.getresponse().read().decode()
        lines = dict(line.rsplit(" ", 1) for line in page.splitlines() if line[:1] != "#")
        return float(lines[f"attention_{name}"])

    def _await_addresses(self):
        give_up = time.monotonic() + START_SECONDS
        while not self._port_file.exists():  # it appears whole, by a rename
            with contextlib.suppress(subprocess.TimeoutExpired):
                code = self._process.wait(timeout=0.02)
                raise RuntimeError(f"the server exited with {code}:\n{self._log.read_text()}")
            if time.monotonic() > give_up:
                self._process.kill()
                raise TimeoutError(f"the server took more than {START_SECONDS} s to start")
        return json.loads(self._port_file.read_text())

    def _await_exit(self):
        try:
            code = self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            raise
        if code != 0:
            raise RuntimeError(f"the server exited with {code}:\n{self._log.read_text()}")


_server = None
_called = set()


def use_server(server):
    global _server
    _server = server


def server():
    return _server


def address():
    return _server.address


class _RecordedStub:
    """A stub that notes the name of every RPC that is taken from it."""

    def __init__(self, stub, service):
        self._stub = stub
        self._service = service

    def __getattr__(self, rpc):
        _called.add(f"{self._service}.{rpc}")
        return getattr(self._stub, rpc)


class RecordedClient(Client):
    def __init__(self, target):
        super().__init__(target)
        self.attention = _RecordedStub(self.attention, "attention.v1.AttentionService")
        self.sessions = _RecordedStub(self.sessions, "attention.v1.SessionService")
        self.layers = _RecordedStub(self.layers, "attention.v1.LayerService")
        self.server = _RecordedStub(self.server, "attention.v1.ServerService")


def exercises(*rpcs):
    """Declares the RPCs that a test is for, and fails it when it does not call them all.

    test_documented.py compares the declarations with the .proto files.
    """

    def decorate(test):
        @functools.wraps(test)
        def run(self):
            _called.clear()
            test(self)
            self.assertEqual(set(rpcs) - _called, set(), "declared, but not called")

        run.exercised_rpcs = rpcs
        return run

    return decorate


@contextlib.contextmanager
def assert_fails(test, code, *texts, reason="", metadata=None):
    """The block's call fails with this code, each text in its message, this reason and metadata."""
    with test.assertRaises(grpc.RpcError) as caught:
        yield caught
    error = caught.exception
    test.assertEqual(error.code(), code, error.details())
    for text in texts:
        test.assertIn(text, error.details())
    details = error_details(error)
    test.assertEqual(details.reason, reason)
    test.assertEqual(details.metadata, metadata or {})


class Format:
    """An element type: how float32 numbers become its array and back."""

    def __init__(self, name, epsilon, encode, decode):
        self.name = name
        self.epsilon = epsilon
        self.encode = encode
        self.decode = decode

    def round(self, array):
        return self.decode(self.encode(array.astype(np.float32)))


FLOAT32 = Format("float32", 2.0**-23, np.float32, np.float32)
FLOAT16 = Format("float16", 2.0**-10, np.float16, np.float32)
BFLOAT16 = Format("bfloat16", 2.0**-7, to_bfloat16, from_bfloat16)
FORMATS = (FLOAT32, FLOAT16, BFLOAT16)

CONFIG_FIELDS = {field.name for field in attention_config_pb2.AttentionConfig.DESCRIPTOR.fields}


def make_config(options):
    """An AttentionConfig of those of reference.attend's options that belong there."""
    values = {name: value for name, value in options.items() if name in CONFIG_FIELDS}
    return attention_config_pb2.AttentionConfig(
        **{
            name: to_tensor(value) if isinstance(value, np.ndarray) else value
            for name, value in values.items()
        }
    )


@dataclasses.dataclass
class Problem:
    """One sequence, with numbers that `form` can hold exactly."""

    q: np.ndarray
    k: np.ndarray
    v: np.ndarray
    options: dict
    form: Format = FLOAT32

    def tensor(self, name, rows=slice(None)):
        return to_tensor(self.form.encode(getattr(self, name)[rows]))

    def request(self, **returns):
        planes = {
            name: to_tensor(self.options[name])
            for name in ("bias", "mask")
            if name in self.options
        }
        positions = [self.options[key] for key in ("first_query_position",) if key in self.options]
        return attention_service_pb2.AttendRequest(
            q=self.tensor("q"),
            k=self.tensor("k"),
            v=self.tensor("v"),
            first_query_positions=positions,
            config=make_config(self.options),
            returns=attention_config_pb2.ReturnOptions(**returns),
            **planes,
        )

    def exact(self):
        return reference.attend(self.q, self.k, self.v, **self.options)

    def plain(self):
        return reference.attend(self.q, self.k, self.v, np.float32, **self.options)

    def check(self, test, response):
        """Compares every tensor that the response has with the float64 result."""
        exact, plain = self.exact(), self.plain()
        output = self.form.decode(from_tensor(response.output))
        # A score is computed in float32: rounding it once changes the weight of its value by that share.
        least_error = FLOAT32.epsilon / 2 * exact.largest_score * np.abs(self.v).max(initial=0)
        bound = reference.error_bound(
            exact.output, self.form.round(plain.output), self.form.epsilon, least_error
        )
        check_close(test, "output", output, exact.output, bound)
        for name in ("lse", "column_sums"):
            if not response.HasField(name):
                continue
            wanted = getattr(exact, name)
            bound = reference.error_bound(wanted, getattr(plain, name), FLOAT32.epsilon)
            check_close(test, name, from_tensor(getattr(response, name)), wanted, bound)


def check_weights(test, problem, weights):
    exact = problem.exact().weights
    bound = reference.error_bound(exact, problem.plain().weights, FLOAT32.epsilon)
    check_close(test, "weights", weights, exact, bound)


def check_close(test, name, actual, exact, bound):
    test.assertEqual(actual.shape, exact.shape, name)
    same = actual == exact  # infinities
    with np.errstate(invalid="ignore"):
        error = np.where(same, 0, np.abs(actual - exact))
    test.assertFalse(np.isnan(error).any(), f"{name} has NaN where it should not")
    test.assertLessEqual(error.max(initial=0), bound, name)


def make_problem(q_len, kv_len, heads, kv_heads, dim_qk, dim_v, form=FLOAT32, **options):
    """Normally distributed numbers that depend on the shape alone."""
    generator = np.random.default_rng([q_len, kv_len, heads, kv_heads, dim_qk, dim_v])

    def draw(*shape):
        return form.round(generator.standard_normal(shape))

    return Problem(
        draw(q_len, heads, dim_qk),
        draw(kv_len, kv_heads, dim_qk),
        draw(kv_len, kv_heads, dim_v),
        options,
        form,
    )


def client_for(test):
    """A client that closes when the test ends."""
    return test.enterContext(RecordedClient(address()))


def random_array(*shape):
    return np.random.default_rng(shape).standard_normal(shape).astype(np.float32)


def await_true(condition, seconds=30):
    """Polls until the condition holds, and fails when it never does."""
    give_up = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > give_up:
            raise TimeoutError(f"the condition did not come true within {seconds} s")
        time.sleep(0.01)


def to_duration(delta):
    duration = duration_pb2.Duration()
    duration.FromTimedelta(delta)
    return duration
