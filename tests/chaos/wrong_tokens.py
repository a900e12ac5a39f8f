"""Calls with a wrong token, by the thousand. The service benchmark uses it too, so it needs no stubs."""

import contextlib
import threading
import time

import http2

ATTEND = "/attention.v1.AttentionService/Attend"
CALLS = 99  # of a connection; the hundredth refusal within a second ends it
MOST_OPEN = 20  # connections; by then the oldest has been answered


def begin_calls(address, calls):
    """As many calls on a connection of their own, which is left open."""
    connection = http2.open_socket(address)
    headers = (http2.Connection.headers(2 * number + 1, ATTEND, authorization="Bearer 0123456789abcdef.guess")
               for number in range(calls))
    connection.sendall(http2.PREFACE + http2.frame(http2.SETTINGS, 0, 0) + b"".join(headers))
    return connection


class Flood:
    """So many calls a second, by one connection after another."""

    def __init__(self, address, calls_per_second):
        self._address, self._period = address, CALLS / calls_per_second
        self.sent, self._stop = 0, threading.Event()

    def _run(self):
        connections, due = [], time.monotonic()
        while not self._stop.is_set():
            connections.append(begin_calls(self._address, CALLS))
            self.sent += CALLS
            if len(connections) > MOST_OPEN:
                connections.pop(0).close()
            due += self._period
            time.sleep(max(0.0, due - time.monotonic()))
        for connection in connections:
            connection.close()

    @contextlib.contextmanager
    def running(self):
        thread = threading.Thread(target=self._run)
        thread.start()
        try:
            yield self
        finally:
            self._stop.set()
            thread.join()
