"""Streams: cancelled while they are paused, and left in other ways."""

import itertools
import threading
import time

import grpc
from attention.v1 import attention_service_pb2
from attention_client import Client
from messages import prompt
from scenarios import scenario
from server import Stage, await_true, require


def requests(count, tokens):
    """A small one, whose answer shows that the stream has reached the server, and larger ones."""
    yield attention_service_pb2.AttendStreamRequest(request_id=1, request=prompt(1))
    for number in range(count):
        yield attention_service_pb2.AttendStreamRequest(request_id=number + 2, request=prompt(tokens))


def then_nothing(messages, is_done):
    """Neither another message nor the stream's end."""
    yield from messages
    is_done.wait()


@scenario("paused streams")
def streams_cancelled_while_paused(load):
    """A hundred streams that are cancelled while their fifth request waits to be read: each of them ends."""
    with Stage(load, "--max-stream-requests=4") as stage, Client(stage.server.tcp_address) as client:
        is_done = threading.Event()
        ended_before = ended_calls(stage.server)
        for number in range(100):
            calls = client.attention.AttendStream(then_nothing(requests(6, 256), is_done))
            next(calls)
            time.sleep(0.002 * (number % 10))  # until reads are paused, or have gone on, or neither
            calls.cancel()
        is_done.set()
        await_true(lambda: ended_calls(stage.server) - ended_before >= 100, 10,
                   f"{ended_calls(stage.server) - ended_before:.0f} of 100 cancelled streams had ended")


def ended_calls(server):
    """By any fault or wish of a client; the load beside knows none."""
    return sum(server.metric(f'calls_total{{code="{code}"}}') for code in ("CANCELLED", "DEADLINE_EXCEEDED"))


@scenario("streams left in every way", is_long=True)
def streams_that_are_left(load):
    """Streams that are cancelled, half-closed unread, cut with their connection, or time out: none stays."""
    with Stage(load, "--max-stream-requests=4", most_growth_mib=192) as stage:
        is_done = threading.Event()
        ended_before = ended_calls(stage.server)
        ways = itertools.cycle(("cancel", "deadline", "half-close", "cut"))
        for way in itertools.islice(ways, 400):
            client = Client(stage.server.tcp_address)
            messages = requests(8, 64)
            if way != "half-close":
                messages = then_nothing(messages, is_done)
            call = client.attention.AttendStream(messages, timeout=0.5 if way == "deadline" else 30)
            next(call)
            if way == "cancel":
                call.cancel()
            if way == "deadline":
                leave_by_deadline(call)
            client.channel.close()
        is_done.set()
        # Those that were half-closed may have been answered in full before they were cut.
        await_true(lambda: ended_calls(stage.server) - ended_before >= 300, 10,
                   f"{ended_calls(stage.server) - ended_before:.0f} of 300 streams had ended")


def leave_by_deadline(call):
    try:
        for _ in call:
            pass
    except grpc.RpcError as error:
        require(error.code() == grpc.StatusCode.DEADLINE_EXCEEDED, f"a stream ended with {error.code()}")
