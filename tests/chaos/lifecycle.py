"""Ends, and clients that end or stop: a drain beside a frozen reader, a socket that is taken, sessions of the dead."""

import os
import signal
import subprocess
import time

from messages import prompt
from scenarios import scenario
from server import Failure, Server, Stage, await_true, require
from attention_client import Client

DRAIN_SECONDS = 1
# Beyond the drain's own time-out: its second, and what a busy machine may add to a process's exit.
END_SECONDS = 1 + 3


def start_loadgen(address, *flags):
    """A load generator that goes on until it is killed."""
    command = [os.environ["ATTENTION_LOADGEN"], f"--target={address}", "--duration=10m", "--warmup=0s", "--quiet",
               "--shared-memory=off", *flags]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def end(process):
    process.kill()
    process.wait()


def drain_beside_frozen_reader(load, pick, *flags):
    """One at whose end writes that nobody reads are pending."""
    with Server(f"--drain-timeout={DRAIN_SECONDS}s") as server:
        load.start(server.addresses)
        reader = start_loadgen(pick(server), "--workload=prefill", "--streams=2", *flags)
        try:
            await_true(lambda: server.info().capacity.num_sessions > 8, 20, "the prompts do not come")
            time.sleep(1)  # until its streams are full
            reader.send_signal(signal.SIGSTOP)
            time.sleep(1)
            load.pause()
            load.require_good()
            server.process.send_signal(signal.SIGTERM)
            server.end(DRAIN_SECONDS + END_SECONDS)
        finally:
            end(reader)


@scenario("frozen reader, TCP")
def frozen_reader_by_tcp(load):
    """SIGTERM while a client has stopped reading its streams: exit code 0, in the drain's time and a second."""
    for _ in range(2):
        drain_beside_frozen_reader(load, lambda server: server.tcp_address, "--concurrency=64")


@scenario("frozen reader, unix socket")
def frozen_reader_by_unix_socket(load):
    """The same by a unix socket, whose kernel buffers next to nothing."""
    drain_beside_frozen_reader(load, lambda server: server.unix_address, "--concurrency=16", "--q-len=1024")


@scenario("frozen readers and a load")
def frozen_readers(load):
    """Four clients that stop reading, are frozen for a while, and are killed."""
    with Stage(load, most_growth_mib=256) as stage:
        readers = [start_loadgen(address, "--workload=prefill", "--streams=2", "--q-len=256", "--concurrency=16")
                   for address in (*stage.server.addresses, *stage.server.addresses)]
        try:
            await_true(lambda: stage.server.info().capacity.num_sessions > 8, 20, "the prompts do not come")
            for reader in readers:
                reader.send_signal(signal.SIGSTOP)
            time.sleep(1)
            stage.server.require_reachable()
        finally:
            for reader in readers:
                end(reader)


@scenario("stolen socket")
def second_server_on_a_socket(load):
    """A second server on the unix socket of a running one, which it must leave alone."""
    with Stage(load) as stage:
        path = stage.server.unix_address.removeprefix("unix:")
        thief = Server(unix_path=path, needs_exit_code=1)
        try:
            thief.end(30)
        except Failure:
            thief.process.send_signal(signal.SIGTERM)  # what it does to the socket as it leaves matters, too
            thief.process.wait(30)
            stage.server.require_reachable()
            raise
        stage.server.require_reachable()


@scenario("sessions of the dead")
def clients_that_are_killed_with_sessions(load):
    """Load generators that are killed with their sessions in a pool of 64 MiB: it is free again at once."""
    with Stage(load, "--kv-capacity-bytes=67108864") as stage:
        free_before = stage.server.info().capacity.kv_free_bytes
        for _ in range(2):
            client = start_loadgen(stage.server.tcp_address, "--workload=decode", "--streams=2", "--context=1024",
                                   "--concurrency=8", "--num-kv-heads=2", "--allow-refused")
            await_true(lambda: stage.server.info().capacity.num_sessions > 4, 20, "no sessions come")
            end(client)
        most_held = 1 << 20  # by the load's own sessions
        await_true(lambda: stage.server.info().capacity.kv_free_bytes >= free_before - most_held, 10,
                   "the pages of dead clients were not given back")


@scenario("killed clients", is_long=True)
def clients_that_are_killed(load):
    """Load generators of every kind that are killed at full load, again and again."""
    with Stage(load, most_growth_mib=256) as stage:
        for number in range(30):
            workload = ("attend", "prefill", "decode", "mixed")[number % 4]
            client = start_loadgen(stage.server.addresses[number % 2], f"--workload={workload}", "--concurrency=16")
            time.sleep(0.5)
            end(client)


@scenario("restarts", is_long=True)
def ends_beside_everything(load):
    """Drains of a server that is busy with every kind of work: exit code 0, in the drain's time and a second."""
    del load
    for workload in ("attend", "prefill", "decode", "mixed"):
        with Server(f"--drain-timeout={DRAIN_SECONDS}s") as server:
            client = start_loadgen(server.tcp_address, f"--workload={workload}", "--concurrency=64")
            try:
                with Client(server.tcp_address) as calls:
                    long = [calls.attention.Attend.future(prompt(2048), timeout=60) for _ in range(8)]
                    time.sleep(1)
                    server.process.send_signal(signal.SIGTERM)
                    server.end(DRAIN_SECONDS + END_SECONDS)
                    for call in long:
                        call.exception(timeout=10)  # answered or failed; a time-out means neither
            finally:
                end(client)
