"""Connections: too many, silent, slow, resetting, with too much metadata."""

import contextlib
import socket
import threading
import time

import grpc
import http2
from attention_client import Client
from messages import ATTEND, GET_INFO, prompt
from scenarios import scenario
from server import Stage, require

PROBE_SECONDS = 1  # kubelet's time-out


@scenario("descriptors")
def more_connections_than_descriptors(load):
    """1,100 idle connections to each listener of a server that may open 1,024 descriptors."""
    with Stage(load, limits=["--nofile=1024:1024"]) as stage:
        for address in (*stage.server.addresses, stage.server.admin_address):
            connections = open_idle(address, 1100)
            time.sleep(1)
            for connection in connections:
                connection.close()
            stage.server.require_reachable()


def open_idle(address, count):
    connections = []
    with contextlib.suppress(OSError):  # refusing is a good answer
        for _ in range(count):
            connections.append(http2.open_socket(address))
    return connections


@scenario("descriptors, soft limit")
def raised_soft_limit(load):
    """1,100 idle connections under a soft limit of 1,024 descriptors that may be raised."""
    with Stage(load, limits=["--nofile=1024:8192"]) as stage:
        connections = open_idle(stage.server.tcp_address, 1100)
        time.sleep(1)
        require(stage.server.is_ready(), "/readyz does not say ready beside idle connections")
        for connection in connections:
            connection.close()


@scenario("kept admin connections")
def kept_admin_connections(load):
    """Fifty connections to the admin port that stay after a page, and fifty that never finish their request."""
    with Stage(load) as stage:
        address = stage.server.admin_address
        page = f"GET /healthz HTTP/1.1\r\nHost: {address}\r\n\r\n".encode()
        kept = [open_and_send(address, page) for _ in range(50)]
        kept += [open_and_send(address, page[:30]) for _ in range(50)]
        try:
            for path in ("/readyz", "/healthz") * 10:
                status, _, seconds = stage.server.page(path, seconds=20)
                require(status == 200, f"{path} said {status}")
                require(seconds < PROBE_SECONDS, f"{path} took {seconds:.2f} s, expected less than {PROBE_SECONDS}")
        finally:
            for connection in kept:
                connection.close()


def open_and_send(address, data):
    connection = http2.open_socket(address)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.sendall(data)
    return connection


@scenario("resets")
def streams_that_are_reset(load):
    """20,000 calls on one connection that are reset as soon as they have begun."""
    with Stage(load, keeps_buffers=True) as stage:
        time.sleep(1)
        calm = stage.load.slowest()
        connection = http2.Connection(stage.server.tcp_address)
        stream = 1
        for _ in range(200):
            frames = []
            for _ in range(100):
                frames.append(http2.Connection.headers(stream, ATTEND))
                frames.append(http2.frame(http2.RST_STREAM, 0, stream, http2.CANCEL.to_bytes(4, "big")))
                stream += 2
            if not connection.send(b"".join(frames)):
                break  # ending such a connection is a good answer
        time.sleep(1)
        connection.close()
        slowest = stage.load.slowest()
        most = max(2.0, 5 * calm)
        require(slowest < most, f"a neighbour's call took {slowest:.2f} s (before: {calm:.2f}), at most {most:.2f}")


@scenario("large metadata")
def metadata_beside_a_call_in_flight(load):
    """Calls with 9 KiB of metadata on a connection whose other calls are in flight."""
    with Stage(load) as stage, Client(stage.server.tcp_address) as client:
        def call(metadata=()):
            return client.attention.Attend.future(prompt(512), timeout=30, metadata=metadata)

        in_flight = [call() for _ in range(4)]
        large = [call([("x-padding", "x" * 9 * 1024)]) for _ in range(4)]
        for each in large:
            each.exception()  # whatever it is, it is the sender's own
        for each in in_flight:
            require(each.exception() is None, f"a call beside large metadata failed: {each.exception()}")


@scenario("half-open calls", is_long=True)
def calls_that_are_begun_and_left(load):
    """A hundred connections with a hundred calls each of which nothing but the headers comes."""
    with Stage(load, most_growth_mib=256) as stage:
        connections = []
        for _ in range(100):
            connection = http2.Connection(stage.server.tcp_address)
            connections.append(connection)
            for number in range(100):
                connection.send(http2.Connection.headers(2 * number + 1, ATTEND if number % 2 else GET_INFO))
        time.sleep(2)
        for connection in connections:
            connection.close()


@scenario("connection storms", is_long=True)
def connections_that_come_and_go(load):
    """Sixteen clients that connect, call and leave, again and again."""
    with Stage(load) as stage:
        def storm():
            for number in range(50):
                try:
                    stage.server.info(stage.server.addresses[number % 2], seconds=20)
                except grpc.RpcError as error:
                    failures.append(f"{error.code()}: {error.details()}")

        failures = []
        threads = [threading.Thread(target=storm) for _ in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        require(not failures, f"calls on new connections failed: {failures[:3]}")
