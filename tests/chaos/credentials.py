"""Callers whose credentials are wrong, in numbers."""

import os
import pathlib
import subprocess
import tempfile
import time

from scenarios import scenario
from server import Server, require
from wrong_tokens import CALLS, Flood, begin_calls

SECONDS = 3
CALLS_PER_SECOND = 10000
MOST_LOG_LINES = 10 * (SECONDS + 2) + 60  # ten a second of a kind, and those of start and end


def write_credentials(folder):
    """A token nobody uses here, and the user who runs this as a tenant."""
    made = subprocess.run([os.environ["ATTENTION_SERVER"], "--new-token=acme"], check=True, capture_output=True,
                          text=True).stdout.splitlines()
    tokens, identities = pathlib.Path(folder, "tokens"), pathlib.Path(folder, "identities")
    tokens.write_text(made[1] + "\n")
    identities.write_text(f"[[user]]\nuid = {os.getuid()}\ntenant = 'load'\n")
    return f"--auth-tokens={tokens}", f"--auth-identities={identities}"


@scenario("wrong tokens")
def wrong_tokens(load):
    """10,000 calls a second with wrong tokens: a neighbour's calls are right and not late, the log stays short."""
    with tempfile.TemporaryDirectory() as folder, Server(*write_credentials(folder)) as server:
        load.start([server.unix_address])
        time.sleep(1)
        calm = load.slowest()
        with Flood(server.tcp_address, CALLS_PER_SECOND).running() as flood:
            time.sleep(SECONDS)
        sent = flood.sent
        slowest = load.slowest()
        refused = server.metric('calls_total{code="UNAUTHENTICATED"}') or 0
        require(refused >= 0.9 * sent, f"{refused:.0f} of {sent} calls were refused for their credentials")
        most = max(2.0, 5 * calm)
        require(slowest < most, f"a neighbour's call took {slowest:.2f} s (before: {calm:.2f}), at most {most:.2f}")
        connection = begin_calls(server.tcp_address, 3 * CALLS)  # beyond the bound of one connection
        connection.settimeout(5)
        while connection.recv(1 << 16):
            pass  # until the server ends it
        connection.close()
        load.pause()
        load.require_good()
        lines = server.log().count("\n")
        require(lines <= MOST_LOG_LINES, f"the log has {lines} lines, expected at most {MOST_LOG_LINES}")
        require("guess" not in server.log(), "the log repeats a token")
