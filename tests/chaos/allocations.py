"""Memory that runs out anywhere: allocations of the server itself that fail at random."""

import json
import os
import pathlib
import re
import signal
import subprocess
import tempfile

from scenarios import Skipped, scenario
from server import HERE, Server, await_true, require

ONE_IN = 1500
LEAST_FAILURES = 20
WORKLOADS = (("--workload=attend", "--q-len=32"),
             ("--workload=decode", "--context=64", "--streams=2"),
             ("--workload=mixed", "--q-len=32", "--context=64"),
             ("--workload=prefill", "--q-len=512"))


def build_library(folder):
    library = pathlib.Path(folder, "failing_allocations.so")
    command = ["c++", "-std=c++20", "-O1", "-shared", "-fPIC", "-o", library,
               HERE / "failing_allocations.cc", "-ldl"]
    try:
        subprocess.run(command, check=True, capture_output=True, text=True)
    except FileNotFoundError as error:
        raise Skipped("there is no compiler c++") from error
    return library


def run_loadgen(server, flags, seconds, *more):
    """The report of a load; what fails in it is not the load generator's to judge."""
    with tempfile.TemporaryDirectory() as folder:
        report = pathlib.Path(folder, "report.json")
        command = [os.environ["ATTENTION_LOADGEN"], f"--target={server.unix_address}", *flags, "--concurrency=4",
                   f"--duration={seconds}s", "--warmup=0s", "--quiet", "--shared-memory=off", f"--json={report}", *more]
        subprocess.run(command, capture_output=True, check=False, timeout=60)
        return json.loads(report.read_text()) if report.exists() else None


def toggle(server, text):
    server.process.send_signal(signal.SIGUSR2)
    await_true(lambda: f"failing allocations: {text}" in server.log(), 5, "the library does not answer")


def num_failed(server):
    return int(re.findall(r"failing allocations: off, (\d+) failed", server.log())[-1])


@scenario("failing allocations")
def allocations_that_fail(load):
    """One in 1,500 of the server's own allocations fails under each kind of load: it serves on, and ends with 0."""
    with tempfile.TemporaryDirectory() as folder:
        environment = {"LD_PRELOAD": str(build_library(folder)), "ATTENTION_FAILING_NEW": str(ONE_IN)}
        with Server("--kv-capacity-bytes=256MiB", environment=environment) as server:
            toggle(server, "on")
            for flags in WORKLOADS:
                run_loadgen(server, flags, 1)
                require(server.process.poll() is None, f"the server has ended beside {flags[0]}\n{server.log()[-2000:]}")
            toggle(server, "off")
            failed = num_failed(server)
            require(failed >= LEAST_FAILURES, f"{failed} allocations failed, expected {LEAST_FAILURES} at the least")
            server.require_reachable()
            for flags in WORKLOADS:
                report = run_loadgen(server, flags, 0.5, "--verify=0.2")
                require(report is not None, f"{flags[0]} does not run any more")
                counts = report["requests"]
                require(counts["ok"] > 0 and counts["errors"] == 0, f"{flags[0]} after it all: {report['errors'][:3]}")
            await_true(lambda: server.info().capacity.queued_requests == 0, 5, "requests stay queued")
