"""Callers whose credentials are wrong, in numbers."""

import os
import pathlib
import subprocess
import tempfile
import time

import http2
from scenarios import scenario
from server import Server, require

ATTEND = "/attention.v1.AttentionService/Attend"
CALLS = 99  # of a connection; the hundredth refusal within a second ends it
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


def call_with_wrong_tokens(address, calls, token="0123456789abcdef.guess"):
    """As many calls on a connection of their own, which is left open."""
    connection = http2.open_socket(address)
    headers = (http2.Connection.headers(2 * number + 1, ATTEND, authorization=f"Bearer {token}")
               for number in range(calls))
    connection.sendall(http2.PREFACE + http2.frame(http2.SETTINGS, 0, 0) + b"".join(headers))
    return connection


def flood(address):
    """Returns how many calls were sent."""
    begin, due, left, sent = time.monotonic(), time.monotonic(), [], 0
    while time.monotonic() < begin + SECONDS:
        left.append(call_with_wrong_tokens(address, CALLS))
        sent += CALLS
        if len(left) > 20:  # by now it has been answered
            left.pop(0).close()
        due += CALLS / CALLS_PER_SECOND
        time.sleep(max(0.0, due - time.monotonic()))
    for connection in left:
        connection.close()
    return sent


@scenario("wrong tokens")
def wrong_tokens(load):
    """10,000 calls a second with wrong tokens: a neighbour's calls are right and not late, the log stays short."""
    with tempfile.TemporaryDirectory() as folder, Server(*write_credentials(folder)) as server:
        load.start([server.unix_address])
        time.sleep(1)
        calm = load.slowest()
        sent = flood(server.tcp_address)
        slowest = load.slowest()
        refused = server.metric('calls_total{code="UNAUTHENTICATED"}') or 0
        require(refused >= 0.9 * sent, f"{refused:.0f} of {sent} calls were refused for their credentials")
        most = max(2.0, 5 * calm)
        require(slowest < most, f"a neighbour's call took {slowest:.2f} s (before: {calm:.2f}), at most {most:.2f}")
        connection = call_with_wrong_tokens(server.tcp_address, 3 * CALLS)  # beyond the bound of one connection
        connection.settimeout(5)
        while connection.recv(1 << 16):
            pass  # until the server ends it
        connection.close()
        load.pause()
        load.require_good()
        lines = server.log().count("\n")
        require(lines <= MOST_LOG_LINES, f"the log has {lines} lines, expected at most {MOST_LOG_LINES}")
        require("guess" not in server.log(), "the log repeats a token")
