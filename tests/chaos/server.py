"""The server under abuse, what can be asked of its process, and the load that runs beside."""

import contextlib
import http.client
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time

import grpc
from attention.v1 import server_service_pb2
from attention_client import Client

START_SECONDS = 60  # it measures the machine first
MIB = 1 << 20
HERE = pathlib.Path(__file__).parent


class Failure(Exception):
    """A deed of the server that it should not have done."""


def require(condition, text):
    if not condition:
        raise Failure(text)


def await_true(condition, seconds, text):
    """Polls; text, or what it returns, says what did not come true."""
    give_up = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > give_up:
            raise Failure(f"{text() if callable(text) else text} within {seconds} s")
        time.sleep(0.02)


class Server:
    """An attention-server on a free port and a unix socket. `limits` are arguments of prlimit(1); `cgroup` is a
    folder whose processes it joins before it starts; `environment` is added to this process's."""

    def __init__(self, *flags, limits=(), cgroup=None, unix_path=None, needs_exit_code=0, environment=None):
        self._folder = pathlib.Path(tempfile.mkdtemp(prefix="chaos-"))
        self._log = self._folder / "log"
        self._port_file = self._folder / "ports.json"
        self._needs_exit_code = needs_exit_code
        self.unix_address = f"unix:{unix_path or self._folder / 'socket'}"
        command = [os.environ["ATTENTION_SERVER"], f"--listen=127.0.0.1:0,{self.unix_address}",
                   "--admin-listen=127.0.0.1:0", f"--port-file={self._port_file}", *flags]
        if limits:
            command = ["prlimit", *limits, *command]
        if cgroup:
            command = ["sh", "-c", 'echo $$ >"$0/cgroup.procs" && exec "$@"', str(cgroup), *command]
        with self._log.open("w") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, **(environment or {})})

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, kind, *_):
        if self.process.poll() is None and kind is None:
            self.process.send_signal(signal.SIGTERM)
        self.end(seconds=60, needs_good_end=kind is None)

    def start(self):
        """Waits until it serves."""
        give_up = time.monotonic() + START_SECONDS
        while not self._port_file.exists():  # it appears whole, by a rename
            if self.process.poll() is not None or time.monotonic() > give_up:
                raise Failure(f"the server did not start: {self.process.poll()}\n{self.log()}")
            time.sleep(0.01)
        addresses = json.loads(self._port_file.read_text())
        self.tcp_address = addresses["listen"][0]
        self.admin_address = addresses["admin_listen"]

    def end(self, seconds, needs_good_end=True):
        """Waits for its exit code, and fails when it does not come or is not 0."""
        try:
            code = self.process.wait(seconds if needs_good_end else 0)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            code = f"none within {seconds} s"
        log = self.log()
        shutil.rmtree(self._folder, ignore_errors=True)
        if needs_good_end and code != self._needs_exit_code:
            raise Failure(f"exit code {code}, expected {self._needs_exit_code}\n{log[-2000:]}")

    @property
    def addresses(self):
        return self.tcp_address, self.unix_address

    def log(self):
        return self._log.read_text(errors="replace") if self._log.exists() else ""

    # --- Its process ---

    def state(self):
        code = self.process.poll()
        return "running" if code is None else f"ended with {code}"

    def _status(self, key):
        for line in pathlib.Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
            if line.startswith(key + ":"):
                return int(line.split()[1]) / 1024
        raise Failure(f"the server is gone: {self.process.poll()}\n{self.log()[-2000:]}")

    def resident_mib(self):
        return self._status("VmRSS")

    def peak_mib(self):
        """The most since forget_peak()."""
        return self._status("VmHWM")

    def forget_peak(self):
        pathlib.Path(f"/proc/{self.process.pid}/clear_refs").write_text("5")

    def descriptors(self):
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))

    def idle_buffers_mib(self):
        """The freed memory that it says it keeps for the next requests."""
        found = re.search(r"idle buffers (\d+) MiB", self.log())
        return int(found[1]) if found else 0

    # --- Its pages ---

    def page(self, path, seconds=5):
        """(status, text, seconds taken) of an admin page, on a connection of its own."""
        start = time.monotonic()
        connection = http.client.HTTPConnection(self.admin_address, timeout=seconds)
        with contextlib.closing(connection):
            connection.request("GET", path, headers={"Connection": "close"})
            answer = connection.getresponse()
            return answer.status, answer.read().decode(), time.monotonic() - start

    def num_calls(self):
        """Calls and streams that have ended, whatever came of them."""
        lines = self.page("/metrics")[1].splitlines()
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith("attention_calls_total{"))

    def metric(self, name):
        """A number of /metrics, with the labels that are part of its name; None where there is none."""
        for line in self.page("/metrics")[1].splitlines():
            if line.startswith(f"attention_{name} "):
                return float(line.rsplit(" ", 1)[1])
        return None

    # --- Its calls ---

    def client(self, address=None, **metadata):
        return Client(address or self.tcp_address)

    def info(self, address=None, seconds=5):
        """GetServerInfo, on a connection of its own."""
        options = [("grpc.use_local_subchannel_pool", 1)]
        with grpc.insecure_channel(address or self.tcp_address, options) as channel:
            call = channel.unary_unary(
                "/attention.v1.ServerService/GetServerInfo",
                request_serializer=server_service_pb2.GetServerInfoRequest.SerializeToString,
                response_deserializer=server_service_pb2.GetServerInfoResponse.FromString)
            return call(server_service_pb2.GetServerInfoRequest(), timeout=seconds, wait_for_ready=True)

    def is_reachable(self, address, seconds=1):
        try:
            self.info(address, seconds)
        except grpc.RpcError:
            return False
        return True

    def is_ready(self):
        try:
            return self.page("/readyz", seconds=1)[0] == 200
        except OSError:
            return False

    def require_reachable(self, seconds=5):
        """New connections are served by each listener, and readiness says so."""
        for address in self.addresses:
            await_true(lambda: self.is_reachable(address), seconds, f"no new connection was served at {address}")
        await_true(self.is_ready, seconds, "/readyz did not say ready")


class Load:
    """The process of load.py, used for one server after another."""

    def __init__(self):
        self.calls, self.failures = 0, []
        self._process = subprocess.Popen([sys.executable, str(HERE / "load.py")], stdin=subprocess.PIPE,
                                         stdout=subprocess.PIPE, text=True)

    def end(self):
        self._process.stdin.close()
        self._process.kill()
        self._process.wait()

    def start(self, addresses):
        """Begins with new counts, and waits until calls succeed."""
        self.calls, self.failures = 0, []
        self._ask("start " + " ".join(addresses))
        self._await_calls(10)

    def pause(self):
        """Ends all calls, but keeps the counts."""
        return self._ask("stop")

    def go_on(self, addresses):
        self._ask("start " + " ".join(addresses))

    def slowest(self):
        """Seconds of the slowest call since this was asked last."""
        return self._ask("report")["slowest"]

    def require_good(self):
        require(not self.failures, f"the load failed {len(self.failures)} times: {self.failures[:3]}")

    def _await_calls(self, count):
        give_up = time.monotonic() + 20
        while self.calls < count:
            require(time.monotonic() < give_up, "the load does not get going")
            time.sleep(0.05)
            self._ask("report")
            self.require_good()

    def _ask(self, command):
        self._process.stdin.write(command + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        require(line, "the load's process has died")
        counts = json.loads(line)
        self.calls += counts["calls"]
        self.failures += counts["failures"]
        return counts


class Stage:
    """A server with a load. Leaving it demands what holds after every abuse: nothing of the load failed, new
    connections are served, memory and descriptors are given back, and the server drains and ends with 0."""

    def __init__(self, load, *flags, most_growth_mib=128, keeps_buffers=False, most_descriptors=24, **server_options):
        self.load = load
        self.server = Server(*flags, **server_options)
        self._most_growth_mib = most_growth_mib
        self._keeps_buffers = keeps_buffers  # the abuse fills them
        self._most_descriptors = most_descriptors

    def __enter__(self):
        self.server.start()
        if self._keeps_buffers:
            self._most_growth_mib = max(self._most_growth_mib, self.server.idle_buffers_mib() + 64)
        self.load.start(self.server.addresses)
        self.resident_before = self.server.resident_mib()
        self._descriptors_before = self.server.descriptors()
        self.server.forget_peak()
        return self

    def __exit__(self, kind, *_):
        self.load.pause()
        if kind is not None:
            print(f"the server: {self.server.state()}, its log's end:\n{self.server.log()[-1500:]}")
            self.server.__exit__(kind)
            return
        try:
            self._check()
        except BaseException:
            self.server.__exit__(Failure)
            raise
        self.server.__exit__(None)

    def growth_mib(self):
        """The most that its memory has grown since the abuse began."""
        return self.server.peak_mib() - self.resident_before

    def require_bounded(self, most_mib):
        growth = self.growth_mib()
        require(growth < most_mib, f"memory grew by {growth:.0f} MiB, expected less than {most_mib}")

    def _check(self):
        self.load.require_good()
        server = self.server
        server.require_reachable()
        await_true(lambda: server.resident_mib() - self.resident_before < self._most_growth_mib, 10,
                   lambda: f"memory did not return: {server.resident_mib() - self.resident_before:.0f} MiB above what it "
                   f"was, expected less than {self._most_growth_mib}")
        await_true(lambda: server.descriptors() - self._descriptors_before < self._most_descriptors, 10,
                   lambda: f"descriptors did not return: {self._descriptors_before} before, {server.descriptors()} now")
