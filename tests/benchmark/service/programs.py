"""The programs that the service benchmark runs: server, load generator, kernel benchmark."""

import contextlib
import json
import os
import pathlib
import resource
import signal
import subprocess
import tempfile
import threading
import time
import urllib.request

START_SECONDS = 30


class Programs:
    """The binaries of a build, and a folder for what they write."""

    def __init__(self, bin_folder, work_folder):
        self.bin = pathlib.Path(bin_folder)
        self.work = pathlib.Path(work_folder)
        self.count = 0
        self.server_flags = []  # of every server, after its own
        self.backend = "cpu"  # whose kernels the servers are held against

    def path(self, suffix):
        self.count += 1
        return self.work / f"{self.count}{suffix}"

    @contextlib.contextmanager
    def server(self, *flags, listen="", log_level="warn"):
        """A server on a unix socket, a port of this host, and where `listen` says, stopped at the end."""
        ports, log = self.path("-ports.json"), self.path("-server.log")
        command = [self.bin / "attention-server",
                   f"--listen=unix:{self.path('.sock')},127.0.0.1:0{listen and ','}{listen}",
                   f"--shared-memory-listen=unix:{self.path('-shared-memory.sock')}",
                   "--admin-listen=127.0.0.1:0", f"--port-file={ports}", f"--log-level={log_level}", *flags,
                   *self.server_flags]
        with open(log, "wb") as output:
            process = subprocess.Popen(command, stdout=output, stderr=output)
        try:
            yield Server(process, log, await_addresses(process, ports, log))
        finally:
            process.terminate()
            process.wait()

    @contextlib.contextmanager
    def running_load(self, server, *flags, address=None, shared_memory="off"):
        """attention-loadgen beside the block, which may ask for its report. It calls the unix socket and sends
        tensors in messages, unless told otherwise."""
        path = self.path("-load.json")
        command = [self.bin / "attention-loadgen", f"--target={address or server.address}", "--quiet",
                   f"--shared-memory={shared_memory}", f"--json={path}", *flags]
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        try:
            yield Load(process, path)
        finally:
            process.kill()
            process.wait()

    def load(self, server, *flags, **ways):
        """The report of attention-loadgen."""
        with self.running_load(server, *flags, **ways) as load:
            return load.report()

    def kernel_seconds(self, shape, seconds):
        """Seconds of the kernels alone for a batch, BATCH,Q_HEADS,KV_HEADS,Q_LEN,KV_LEN,HEAD_DIM, in
        bfloat16 on all processors, or on the GPU in its own time, its cache warm."""
        path = self.path("-kernels.json")
        if self.backend == "cuda":
            return self.cuda_kernel_seconds(shape, path)
        subprocess.run([self.bin / "attention-bench", f"--shape={shape}", "--filter=shape/bfloat16",
                        f"--threads={os.cpu_count()}", f"--min-time={seconds}", f"--json={path}"],
                       check=True, stdout=subprocess.DEVNULL)
        records = json.loads(path.read_text())["records"]
        return next(record["seconds"] for record in records if record["name"] == "shape")

    def cuda_kernel_seconds(self, shape, path):
        subprocess.run([self.bin / "attention-bench-cuda", f"--shape={shape}", "--l2=warm", "--rounds=3",
                        f"--json={path}"], check=True, stdout=subprocess.DEVNULL)
        outcomes = json.loads(path.read_text())["records"][0]["outcomes"]
        return outcomes[0]["seconds"]


class OtherWork:
    """The share of the processors' time that went to neither us nor our children, since it was made.
    Children count once they have ended."""

    def __init__(self):
        self.begin = self.read()

    @staticmethod
    def read():
        """Seconds of processors: all, busy, ours."""
        with open("/proc/stat", encoding="ascii") as file:
            ticks = [int(field) for field in file.readline().split()[1:9]]
        per_second = os.sysconf("SC_CLK_TCK")
        idle = ticks[3] + ticks[4]
        uses = [resource.getrusage(who)
                for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        ours = sum(use.ru_utime + use.ru_stime for use in uses)
        return sum(ticks) / per_second, (sum(ticks) - idle) / per_second, ours

    def share(self):
        everything, busy, ours = (end - begin for begin, end in zip(self.begin, self.read()))
        return max(0.0, (busy - ours) / max(everything, 1e-9))


def await_addresses(process, ports, log):
    deadline = time.monotonic() + START_SECONDS
    while not ports.exists():
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"attention-server did not start: {log.read_text()}")
        time.sleep(0.02)
    return json.loads(ports.read_text())


class Server:
    """A running server."""

    def __init__(self, process, log, ports):
        self.process = process
        self._log = log
        self._admin_address = ports["admin_listen"]
        self.addresses = ports["listen"]
        # The first two are its unix socket and its port without TLS.
        self.address, self.tcp_address = self.addresses[:2]

    def log(self):
        return self._log.read_text(errors="replace")

    def metric(self, name):
        """A number of the admin port's /metrics; 0 where it has not been counted yet."""
        with urllib.request.urlopen(f"http://{self._admin_address}/metrics", timeout=30) as page:
            for line in page.read().decode().splitlines():
                if line.startswith(f"attention_{name} "):
                    return float(line.rsplit(" ", 1)[1])
        return 0.0

    def processor_seconds(self):
        """Of user and system, since it began."""
        fields = pathlib.Path(f"/proc/{self.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def resident_mib(self):
        for line in pathlib.Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) / 1024
        raise RuntimeError("the server is gone")

    @contextlib.contextmanager
    def sampled_memory(self, every=0.2):
        """A list that fills with (seconds, MiB) while the block runs."""
        samples, stop, begin = [], threading.Event(), time.monotonic()

        def sample():
            while not stop.wait(every):
                samples.append((time.monotonic() - begin, self.resident_mib()))

        thread = threading.Thread(target=sample)
        thread.start()
        try:
            yield samples
        finally:
            stop.set()
            thread.join()


class Load:
    """A running load generator."""

    def __init__(self, process, path):
        self.process = process
        self.path = path

    def stop(self):
        """Ends it early; it still reports what it saw."""
        self.process.send_signal(signal.SIGINT)
        return self.report()

    def report(self):
        _, errors = self.process.communicate()
        if not self.path.exists():
            raise RuntimeError(f"attention-loadgen: {errors}")
        return json.loads(self.path.read_text())


@contextlib.contextmanager
def programs_in(bin_folder):
    with tempfile.TemporaryDirectory(prefix="attention-service-") as folder:
        yield Programs(bin_folder, folder)
