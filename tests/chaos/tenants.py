"""Tenants: names that nobody had before, and what they take from those who have one."""

import threading
import time
import uuid

import grpc
from attention_client import Client
from messages import ATTEND, prompt, raw
from scenarios import scenario
from server import Failure, Stage

ANSWER_SECONDS = 6
LONG = prompt(3072, heads=1, dim=8).SerializeToString()  # much arithmetic in few bytes: 24 of them fill the queue


@scenario("fresh tenant names")
def a_name_for_each_call(load):
    """Twenty-four callers with a new name for each call, beside a tenant whose ten calls must be answered."""
    with Stage(load) as stage:
        is_done = threading.Event()
        callers = [threading.Thread(target=call_by_new_names, args=(stage.server.tcp_address, is_done))
                   for _ in range(24)]
        for caller in callers:
            caller.start()
        try:
            time.sleep(1)
            with Client(stage.server.unix_address) as client:
                for number in range(10):
                    require_answer(client, number)
        finally:
            is_done.set()
            for caller in callers:
                caller.join()


def require_answer(client, number):
    """Requires an answer to a call of milliseconds, in the midst of calls of the same size."""
    try:
        raw(client, ATTEND)(LONG, timeout=ANSWER_SECONDS, metadata=[("attention-tenant", "steady")])
    except grpc.RpcError as error:
        raise Failure(f"call {number} of ten: {error.code()}: {error.details()}") from error


def call_by_new_names(address, is_done):
    with Client(address) as client:
        call = raw(client, ATTEND)
        while not is_done.is_set():
            try:
                call(LONG, timeout=20, metadata=[("attention-tenant", uuid.uuid4().hex)])
            except grpc.RpcError:
                is_done.wait(0.01)  # a refusal is a good answer


@scenario("many tenant names", is_long=True)
def names_that_are_forgotten(load):
    """A hundred thousand names: the server's memory does not keep them."""
    with Stage(load, most_growth_mib=48) as stage, Client(stage.server.tcp_address) as client:
        for _ in range(1000):
            calls = [client.attention.Attend.future(prompt(1), timeout=20,
                                                    metadata=[("attention-tenant", uuid.uuid4().hex)])
                     for _ in range(100)]
            for call in calls:
                call.exception()
