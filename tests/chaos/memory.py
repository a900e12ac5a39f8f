"""Memory: what is received, what is made, and what a container allows."""

import contextlib
import gzip
import os
import pathlib
import tempfile
import threading
import time

import grpc
import http2
import numpy as np
from attention.v1 import attention_config_pb2, attention_service_pb2, layer_service_pb2, session_service_pb2
from attention_client import Client, to_tensor
from messages import ATTEND, MIB, STEP, append, create_session, prompt, raw
from scenarios import Skipped, scenario
from server import Server, Stage, await_true, require

# So small that a few clients would exceed them at once.
SMALL = ("--max-message-bytes=67108864", "--max-queued-bytes=134217728", "--max-receiving-bytes=134217728")
MESSAGE_MIB = 64
HEALTH_SECONDS = 5
MOST_MIB = 400  # of any abuse against a server with these limits


@scenario("stalled uploads")
def uploads_that_stop(load):
    """Ten clients that send all but the last MiB of the largest message, and then nothing."""
    with Stage(load, *SMALL, keeps_buffers=True) as stage:
        message = bytes(MESSAGE_MIB * MIB)
        connections = [http2.Connection(stage.server.tcp_address) for _ in range(10)]
        for connection in connections:
            stream = connection.begin_call(ATTEND)
            connection.send_message(stream, message, keep_back=MIB, seconds=2)
        stage.require_bounded(MOST_MIB)
        for address in stage.server.addresses:
            require(stage.server.is_reachable(address), f"{address} serves nobody beside stalled uploads")
        for connection in connections:
            connection.close()


@scenario("messages over the limit")
def messages_that_are_too_long(load):
    """Three messages of four times the limit."""
    with Stage(load, *SMALL) as stage:
        message = bytes(4 * MESSAGE_MIB * MIB)
        for _ in range(3):
            with Client(stage.server.tcp_address) as client:
                call = raw(client, ATTEND).future(message, timeout=30)
                require(call.exception() is not None, "a message over the limit was taken")
        stage.require_bounded(MOST_MIB)


@scenario("compressed messages")
def messages_that_unfold(load):
    """Ten messages of half a MiB that unfold to eight times the limit."""
    with Stage(load, *SMALL) as stage:
        message = gzip.compress(bytes(8 * MESSAGE_MIB * MIB), compresslevel=1)
        for _ in range(10):
            connection = http2.Connection(stage.server.tcp_address)
            stream = connection.begin_call(ATTEND, grpc_encoding="gzip")
            connection.send_message(stream, message, is_compressed=True)
            time.sleep(0.2)
            connection.close()
        stage.require_bounded(MOST_MIB)


@scenario("stalled layers")
def layers_that_never_come(load):
    """Uploads of layers that announce themselves, take the whole capacity, and send nothing more."""
    with Stage(load, "--layer-capacity-bytes=8388608", *upload_timeout()) as stage:
        with Client(stage.server.tcp_address) as client:
            stalled = [begin_layer(client, f"stalled-{number}") for number in range(8)]
            time.sleep(0.5)
            await_true(lambda: upload_layer(client), 10, "no layer could be uploaded beside stalled uploads")
            for call, release in stalled:
                release()
                call.cancel()


def upload_timeout():
    """A short limit for uploads that do not move, where the server has one."""
    return ("--upload-stall-timeout=1s",) if "--upload-stall-timeout" in server_help() else ()


def server_help():
    return os.popen(f"{os.environ['ATTENTION_SERVER']} --help").read()


@scenario("uncharged results")
def results_larger_than_their_requests(load):
    """Requests of a few KB whose column sums would take gigabytes."""
    with Stage(load, *SMALL, keeps_buffers=True) as stage, Client(stage.server.tcp_address) as client:
        tokens = 60_000
        handle = create_session(client, kv_heads=1, dim=1)
        require(not append(client, handle, tokens, 1, 1).HasField("error"), "the session could not be filled")
        step = session_service_pb2.SessionStep(
            handle=handle, q=to_tensor(np.zeros((1, 256, 1), np.float32)),
            returns=attention_config_pb2.ReturnOptions(column_sums=True))
        request = session_service_pb2.StepRequest(steps=[step] * 40)  # of 59 MiB each
        calls = [client.sessions.Step.future(request, timeout=30) for _ in range(4)]
        for call in calls:
            with contextlib.suppress(grpc.RpcError):
                call.result()
        stage.require_bounded(MOST_MIB)


@scenario("uncharged counts")
def sequences_of_nothing(load):
    """A hundred requests of 16,384 empty sequences, at once."""
    with Stage(load, *SMALL, keeps_buffers=True) as stage, Client(stage.server.tcp_address) as client:
        nothing = to_tensor(np.zeros((0, 1, 1), np.float32))
        lengths = [0] * 16_384
        message = attention_service_pb2.AttendRequest(
            q=nothing, k=nothing, v=nothing, q_lens=lengths, kv_lens=lengths).SerializeToString()
        attend = raw(client, ATTEND)
        long = prompt(3072, heads=1, dim=8).SerializeToString()  # much arithmetic in few bytes: the others queue
        calls = [attend.future(long, timeout=60) for _ in range(60)]
        time.sleep(0.1)
        calls += [attend.future(message, timeout=60) for _ in range(100)]
        while not all(call.done() for call in calls):
            require(stage.server.is_reachable(stage.server.unix_address, HEALTH_SECONDS),
                    f"a neighbour's call took more than {HEALTH_SECONDS} s")
            time.sleep(0.05)
        stage.require_bounded(MOST_MIB)


@scenario("uncharged steps")
def steps_of_one_row(load):
    """Requests of 16,384 steps of one row each, all to one layer of one session."""
    with Stage(load, *SMALL, keeps_buffers=True) as stage, Client(stage.server.tcp_address) as client:
        handle = create_session(client, kv_heads=1, dim=1)
        row = to_tensor(np.zeros((1, 1, 1), np.float32))
        request = session_service_pb2.StepRequest()
        for position in range(16_384):
            request.steps.add(handle=handle, expected_position=position, k=row, v=row, q=row)
        message = request.SerializeToString()
        calls = [raw(client, STEP).future(message, timeout=60) for _ in range(8)]
        for call in calls:
            with contextlib.suppress(grpc.RpcError):
                call.result()
        stage.require_bounded(MOST_MIB)


# --- A container ----------------------------------------------------------------------------------

CONTAINER_MIB = 1024


@contextlib.contextmanager
def cgroup(mib):
    """A group of processes that may use so much memory."""
    folder = pathlib.Path(tempfile.mkdtemp(prefix="chaos-", dir=cgroup_parent()))
    try:
        limit = folder / "memory.limit_in_bytes"
        if not limit.exists():
            limit = folder / "memory.max"
        limit.write_text(str(mib * MIB))
        yield folder
    except OSError as error:
        raise Skipped(f"no cgroup of our own: {error}") from error
    finally:
        with contextlib.suppress(OSError):
            folder.rmdir()


def cgroup_parent():
    for folder in ("/sys/fs/cgroup/memory", "/sys/fs/cgroup"):
        path = pathlib.Path(folder)
        has_memory = (path / "memory.limit_in_bytes").exists() or (
            (path / "cgroup.subtree_control").exists()
            and "memory" in (path / "cgroup.subtree_control").read_text())
        if has_memory and os.access(path, os.W_OK):
            return folder
    raise Skipped("no cgroup with a memory controller that may be written to")


@scenario("a container")
def memory_of_a_container(load):
    """A container of 1 GiB: what the server announces fits, and may all be used, with uploads on top."""
    with cgroup(CONTAINER_MIB) as folder, Stage(load, cgroup=folder, most_growth_mib=CONTAINER_MIB) as stage:
        info = stage.server.info()
        announced = info.limits.kv_capacity_bytes / MIB
        require(announced < CONTAINER_MIB, f"the server announces {announced:.0f} MiB of KV in 1 GiB")
        with Client(stage.server.tcp_address) as client:
            handles = fill(client)
            require(handles, "no session took anything")
            send_uploads(stage.server)
            for handle in handles:
                client.sessions.DeleteSession(session_service_pb2.DeleteSessionRequest(handle=handle), timeout=20)


def fill(client):
    """Appends until nothing more is taken. 8 MiB at a time."""
    handles = []
    while True:
        handle = create_session(client, kv_heads=8, dim=128)
        handles.append(handle)
        for number in range(16):
            if append(client, handle, 1024, 8, 128, position=1024 * number).HasField("error"):
                return handles


def send_uploads(server):
    """Twenty clients that each send 60 MiB and stop."""
    message = bytes(61 * MIB)
    connections = [http2.Connection(server.tcp_address) for _ in range(20)]
    for connection in connections:
        stream = connection.begin_call(ATTEND)
        connection.send_message(stream, message, keep_back=MIB, seconds=0.5)
    for connection in connections:
        connection.close()


@scenario("a container, refused")
def configuration_that_cannot_fit(load):
    """In 1 GiB a configuration of 4 GiB of KV is refused at the start, with the sum that does not fit."""
    del load
    with cgroup(CONTAINER_MIB) as folder:
        server = Server("--kv-capacity-bytes=4294967296", cgroup=folder, needs_exit_code=1)
        try:
            server.end(30)
        except Exception:
            server.process.kill()
            server.process.wait()
            raise


# --- Layers ---------------------------------------------------------------------------------------

WIDTH = 256  # of x, and of all heads: a weight has 256 KiB


def layer_messages(name, is_complete, go_on=None):
    """An upload of a layer; when it is not complete, it waits after its first message until go_on is set."""
    config = layer_service_pb2.LayerConfig(
        dtype="DTYPE_FLOAT32", model_dim=WIDTH, num_q_heads=4, head_dim_qk=WIDTH // 4)
    new_layer = layer_service_pb2.NewLayer(layer_id=name, config=config)
    yield layer_service_pb2.CreateLayerRequest(layer=new_layer)
    if not is_complete:
        go_on.wait()
        return
    weight = to_tensor(np.zeros((WIDTH, WIDTH), np.float32))
    for number in range(1, 5):
        tensor = layer_service_pb2.LayerTensor(name=number, tensor=weight)
        yield layer_service_pb2.CreateLayerRequest(tensor=tensor)


def begin_layer(client, name):
    """A stalled upload, and what lets its sender go on."""
    go_on = threading.Event()
    return client.layers.CreateLayer.future(layer_messages(name, False, go_on), timeout=60), go_on.set


def upload_layer(client):
    try:
        client.layers.CreateLayer(layer_messages("whole", True), timeout=20)
    except grpc.RpcError:
        return False
    client.layers.DeleteLayer(layer_service_pb2.DeleteLayerRequest(layer_id="whole"), timeout=20)
    return True
