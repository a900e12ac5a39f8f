"""What it costs to know who calls: credentials, limits, files that change, and callers with wrong tokens."""

import os
import pathlib
import random
import statistics
import subprocess
import sys
import time

from rows import Row, check_clean, latency, rate, timed

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "chaos"))
from wrong_tokens import Flood  # noqa: E402

# 2.3 KiB a request: the call itself is nearly all of its cost.
SMALL = ("--workload=attend", "--q-len=1", "--kv-len=4", "--num-q-heads=2", "--head-dim-qk=32",
         "--channels=4")
CLOSED = ("--concurrency=16",)
# 1 MiB of keys and values.
LARGE = ("--workload=attend", "--q-len=1", "--kv-len=2048", "--num-q-heads=1", "--head-dim-qk=64",
         "--channels=4", "--concurrency=4")
LIMITS = """[default]
kv-bytes = "1GiB"
layer-bytes = "1GiB"
sessions = 1000
streams = 1000
queued-bytes = "1GiB"
work-rate = 100.0
share = 1.0
highest-priority = "high"
"""


def openssl(*arguments):
    subprocess.run(["openssl", *map(str, arguments)], check=True, stdout=subprocess.DEVNULL,
                   stderr=subprocess.DEVNULL)


class Files:
    """Tokens, certificates and the mapping of a server that asks for them."""

    def __init__(self, programs):
        self.programs = programs
        self.folder = programs.path("-credentials")
        self.folder.mkdir()
        made = subprocess.run([programs.bin / "attention-server", "--new-token=acme"], check=True,
                              capture_output=True, text=True).stdout.splitlines()
        self.token, self.line = made
        (self.folder / "token").write_text(self.token + "\n")
        self.write_tokens()
        for name in ("clients", "server"):
            openssl("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
                    "-days", 2, "-subj", f"/CN={name}", "-addext", "subjectAltName=DNS:localhost",
                    "-keyout", self.folder / f"{name}.key", "-out", self.folder / f"{name}.pem")
        openssl("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj",
                "/CN=engine", "-keyout", self.folder / "engine.key", "-out", self.folder / "engine.csr")
        (self.folder / "names").write_text("subjectAltName=DNS:engine.example.org\n")
        openssl("x509", "-req", "-in", self.folder / "engine.csr", "-CA", self.folder / "clients.pem",
                "-CAkey", self.folder / "clients.key", "-days", 2, "-extfile", self.folder / "names",
                "-out", self.folder / "engine.pem")
        (self.folder / "identities").write_text(
            '[[certificate]]\ndns = "engine.example.org"\ntenant = "acme"\n')

    def write_tokens(self):
        """In one step, as an operator should."""
        (self.folder / "tokens.new").write_text(self.line + "\n")
        (self.folder / "tokens.new").rename(self.folder / "tokens")

    def server(self, **options):
        """A server that asks for tokens or certificates, which its third address takes."""
        return self.programs.server(
            f"--auth-tokens={self.folder / 'tokens'}", f"--auth-identities={self.folder / 'identities'}",
            **options,
            listen=f"localhost:0?tls-cert={self.folder / 'server.pem'}&tls-key={self.folder / 'server.key'}"
            f"&tls-client-ca={self.folder / 'clients.pem'}")

    def token_flags(self):
        return (f"--token-file={self.folder / 'token'}",)

    def tls_flags(self):
        return (f"--tls-ca={self.folder / 'server.pem'}", f"--tls-cert={self.folder / 'engine.pem'}",
                f"--tls-key={self.folder / 'engine.key'}")


class Turns:
    """Contenders that take turns with one that asks for nothing."""

    def __init__(self):
        self.rates, self.costs = {}, {}

    def run(self, programs, server, name, address, *flags):
        with programs.running_load(server, *flags, address=address) as load:
            before, report = server.processor_seconds(), load.report()
        used = server.processor_seconds() - before
        check_clean(report)
        self.rates.setdefault(name, []).append(rate(report))
        self.costs.setdefault(name, []).append(1e6 * used / max(1, report["requests"]["ok"]))

    def ratio(self, name, to):
        return statistics.median(a / b for a, b in zip(self.rates[name], self.rates[to]))

    def detail(self, name, to):
        cost, other = (statistics.median(self.costs[key]) for key in (name, to))
        return (f"{statistics.median(self.rates[name]):.0f} of {statistics.median(self.rates[to]):.0f} "
                f"calls/s; server {cost:.1f} us a call, {other:.1f} without")


def credentials(programs, options):
    """Small calls with a token, a client's certificate and limits, beside those of an open server."""
    files, small, large = Files(programs), Turns(), Turns()
    (files.folder / "limits").write_text(LIMITS)
    with programs.server() as free, files.server() as closed, \
            programs.server(f"--tenant-limits={files.folder / 'limits'}") as limited:
        contenders = [
            (small, "open", free, 1, ()),
            # The same bytes, to a server that does not look at them.
            (small, "token unread", free, 1, files.token_flags()),
            (small, "token", closed, 1, files.token_flags()),
            (small, "limits", limited, 1, ()),
            (small, "tls", closed, 2, files.tls_flags()),
            (large, "open", free, 1, ()),
            (large, "tls", closed, 2, files.tls_flags())]
        for _ in range(options.rounds):
            random.shuffle(contenders)
            for turns, name, server, address, more in contenders:
                shape = (*SMALL, *CLOSED) if turns is small else LARGE
                # Without a warm-up every call that the server has worked for is counted.
                turns.run(programs, server, name, server.addresses[address], *shape,
                          f"--duration={options.seconds}s", "--warmup=0s", *more)
    for name, to, text, bound in (
            ("token", "token unread", "small calls, a token checked / sent alone", 0.98),
            ("token", "open", "small calls with a token / open", None),
            ("limits", "open", "small calls with limits / without", 0.99),
            ("tls", "open", "small calls by mutual TLS / open", 0.85)):
        yield Row(text, small.ratio(name, to), at_least=bound, detail=small.detail(name, to))
    yield Row("1 MiB calls by mutual TLS / open", large.ratio("tls", "open"),
              detail=large.detail("tls", "open"))


def reload(programs, options):
    """A token's file that is replaced again and again beside a load."""
    files, seconds = Files(programs), max(options.seconds, 12)
    with files.server(log_level="info") as server:
        with programs.running_load(server, *SMALL, *CLOSED, *timed(options, at_least=12), *files.token_flags(),
                                   address=server.tcp_address) as load:
            give_up = time.monotonic() + seconds
            while time.monotonic() < give_up:
                files.write_tokens()
                time.sleep(2.2)  # it is read once it has been still for a second, and looked at each second
            report = load.report()
        reloads = server.log().count("auth-tokens has changed and is in use")
    yield Row("calls that failed beside reloads", report["requests"]["errors"], at_most=0,
              detail=f"{reloads} reloads, {report['requests']['ok']} calls")


def wrong_tokens(programs, options):
    """A verified load at half of capacity, alone and beside 10,000 calls a second with wrong tokens."""
    files, ratios, tails, detail = Files(programs), [], [], ""
    with files.server(log_level="info") as server:
        def run(*flags):
            report = programs.load(server, *SMALL, *files.token_flags(), *timed(options), *flags,
                                   address=server.tcp_address)
            check_clean(report)
            return report

        for _ in range(options.rounds):
            capacity = rate(run(*CLOSED))
            half = ("--mode=open", f"--rate={capacity / 2:.0f}", "--verify=0.01")
            alone = run(*half)
            refused, begin = server.metric('calls_total{code="UNAUTHENTICATED"}'), time.monotonic()
            before = server.processor_seconds()
            with Flood(server.tcp_address, 10000).running():
                beside = run(*half)
            refused = server.metric('calls_total{code="UNAUTHENTICATED"}') - refused
            ratios.append(latency(beside, "p50") / latency(alone, "p50"))
            tails.append(latency(beside, "p99") / latency(alone, "p99"))
            detail = (f"{refused / (time.monotonic() - begin):.0f} refusals/s, "
                      f"{latency(alone, 'p50'):.2f} -> {latency(beside, 'p50'):.2f} ms, server's processor "
                      f"{(server.processor_seconds() - before) / (time.monotonic() - begin):.2f}")
        lines = server.log().count("\n")
    yield Row("p50 beside wrong tokens / alone", statistics.median(ratios), at_most=1.1, detail=detail)
    yield Row("p99 beside wrong tokens / alone", statistics.median(tails), at_most=1.1)
    yield Row("lines of the log", lines, detail=f"{os.cpu_count()} processors")


ALL = {"credentials": credentials, "reload": reload, "wrong-tokens": wrong_tokens}
