"""Starts the server, runs every test of this directory, stops the server.

Called by run.sh, and by run_examples.sh with `--pattern`.
"""

import os
import pathlib
import signal
import sys
import unittest

import harness

TIME_LIMIT_SECONDS = int(os.environ.get("ATTENTION_TIME_LIMIT_SECONDS", 300))

# So that small limits can be met by small requests.
SERVER_FLAGS = (
    "--max-message-bytes=8388608",
    "--max-sessions-per-tenant=8",
    "--kv-capacity-bytes=67108864",
)


def interrupt(signal_number, _):
    """Unwinds through the server's context manager, so that nothing is left running."""
    name = signal.Signals(signal_number).name
    print(f"stopped by {name}; the time limit is {TIME_LIMIT_SECONDS} s", file=sys.stderr)
    raise KeyboardInterrupt


def main():
    signal.signal(signal.SIGTERM, interrupt)
    signal.signal(signal.SIGALRM, interrupt)
    signal.alarm(TIME_LIMIT_SECONDS)
    here = str(pathlib.Path(__file__).parent)
    with harness.ServerProcess(*SERVER_FLAGS) as server:
        harness.use_server(server)
        argv = ["tests/interop", "discover", "-s", here, *sys.argv[1:]]
        program = unittest.main(module=None, argv=argv, exit=False)
    return 0 if program.result.wasSuccessful() else 1


if __name__ == "__main__":
    sys.exit(main())
