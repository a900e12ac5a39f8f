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
    """A small one, whose answer shows that the stream has reached the server, and some that take milliseconds."""
    yield attention_service_pb2.AttendStreamRequest(request_id=1, request=prompt(1))
    for number in range(count):
        yield attention_service_pb2.AttendStreamRequest(request_id=number + 2, request=prompt(tokens, heads=1, dim=8))


def then_nothing(messages, is_done):
    """Neither another message nor the stream's end."""
    yield from messages
    is_done.wait()


@scenario("paused streams")
def streams_cancelled_while_paused(load):
    """A hundred streams that are cancelled while their fifth request waits to be read: each of them ends."""
    with Stage(load, "--max-stream-requests=4") as stage, Client(stage.server.tcp_address) as client:
        is_done = threading.Event()
        for number in range(100):
            calls = client.attention.AttendStream(then_nothing(requests(6, 2048), is_done))
            next(calls)
            time.sleep(0.002 * (number % 10))  # until reads are paused, or have gone on, or neither
            calls.cancel()
        is_done.set()
        require_all_ended(stage, 100)


def require_all_ended(stage, num_streams):
    """The server counts a call or stream when it ends: beside those of the load all the streams must come to be
    counted. Those whose answers were all sent when they were cancelled may count as OK."""
    stage.load.pause()
    num_calls = stage.load.calls + num_streams
    await_true(lambda: stage.server.num_calls() >= num_calls, 10,
               lambda: f"{num_calls - stage.server.num_calls():.0f} of {num_streams} streams did not end")
    stage.load.go_on(stage.server.addresses)


@scenario("streams left in every way", is_long=True)
def streams_that_are_left(load):
    """Streams that are cancelled, half-closed unread, cut with their connection, or time out: none stays."""
    with Stage(load, "--max-stream-requests=4", most_growth_mib=192) as stage:
        is_done = threading.Event()
        ways = itertools.cycle(("cancel", "deadline", "half-close", "cut"))
        for way in itertools.islice(ways, 400):
            client = Client(stage.server.tcp_address)
            messages = requests(8, 512)
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
        require_all_ended(stage, 400)


def leave_by_deadline(call):
    try:
        for _ in call:
            pass
    except grpc.RpcError as error:
        require(error.code() == grpc.StatusCode.DEADLINE_EXCEEDED, f"a stream ended with {error.code()}")
