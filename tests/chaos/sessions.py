"""Sessions that are forked, cut, compacted, read and moved at once; archives that are damaged or left half-way.

Each row tells its position, so whatever a session holds can be checked without knowing what was done to it."""

import contextlib
import itertools
import queue
import random
import threading
import time

import grpc
import numpy as np
from attention.v1 import session_service_pb2 as wire
from attention_client import Client, from_tensor, to_tensor
from messages import create_session
from scenarios import scenario
from server import Failure, Stage, await_true, require

LAYERS, HEADS, DIM = 2, 2, 16
MIB = 1 << 20
TENANT = [("attention-tenant", "racing")]
IMPORT = "/attention.v1.SessionService/ImportSession"

# Good answers of a session that other clients change at the same time.
REFUSALS = {
    grpc.StatusCode.NOT_FOUND,  # deleted
    grpc.StatusCode.FAILED_PRECONDITION,  # shorter, longer, compacted, or fenced
    grpc.StatusCode.RESOURCE_EXHAUSTED,  # no pages left, or too many sessions
}


def rows(begin, end):
    """Keys, and values of twice them, of these positions."""
    positions = np.arange(begin, end, dtype=np.float32)
    return np.ascontiguousarray(np.broadcast_to(positions[:, None, None], (end - begin, HEADS, DIM)))


def steps(handle, begin, end):
    """Appends these positions to all layers."""
    return wire.StepRequest(steps=[
        wire.SessionStep(handle=handle, layer=layer, expected_position=begin, k=to_tensor(rows(begin, end)),
                         v=to_tensor(2 * rows(begin, end)))
        for layer in range(LAYERS)])


def require_rows(answer, is_compacted):
    """Each row is one of a position, and the positions ascend; without compaction by one."""
    k, v = from_tensor(answer.k), from_tensor(answer.v)
    require((k == k[:, :1, :1]).all() and (v == 2 * k).all(), "a row is of several positions")
    distances = np.diff(k[:, 0, 0])
    is_good = (distances > 0).all() if is_compacted else (distances == 1).all() and (len(k) == 0 or k[0, 0, 0] == 0)
    require(is_good, f"rows of the positions {k[:, 0, 0].astype(int).tolist()}")


def filled_session(client, length):
    handle = create_session(client, HEADS, DIM, LAYERS, metadata=TENANT)
    for result in client.sessions.Step(steps(handle, 0, length), metadata=TENANT).results:
        require(not result.HasField("error"), f"a step was refused: {result.error.message}")
    return handle


def require_all_given_back(server):
    """No session of the tenant is left, nor a page."""
    for name in ("tenant_sessions", "tenant_kv_bytes"):
        of_tenant = name + '{tenant="racing"}'
        await_true(lambda: not server.metric(of_tenant), 10,
                   lambda: f"{name} is {server.metric(of_tenant):.0f} after all was deleted")


class Racer:
    """Does one thing after another to some of the sessions that all racers share."""

    def __init__(self, client, handles, seed):
        self._sessions = client.sessions
        self._handles = handles  # a list: its operations are atomic
        self._random = random.Random(seed)
        self.num_done = 0
        self.failure = None

    def run(self, is_done):
        deeds = (self.append, self.append, self.fork, self.truncate, self.keep, self.read, self.read, self.reorder,
                 self.export, self.delete)
        while not is_done.is_set() and self.failure is None:
            try:
                self._random.choice(deeds)(self._random.choice(self._handles))
                self.num_done += 1
            except grpc.RpcError as error:
                if error.code() not in REFUSALS:
                    self.failure = f"{error.code()}: {error.details()}"
            except Failure as failure:
                self.failure = str(failure)

    def get(self, handle):
        return self._sessions.GetSession(wire.GetSessionRequest(handle=handle), metadata=TENANT).session

    def append(self, handle):
        begin = self.get(handle).committed_length
        count = self._random.choice((1, 3, 40))
        self._sessions.Step(steps(handle, begin, begin + count), metadata=TENANT)

    def fork(self, handle):
        length = self._random.randint(0, self.get(handle).committed_length)
        request = wire.ForkSessionRequest(handle=handle, length=length, num_copies=2)
        copies = self._sessions.ForkSession(request, metadata=TENANT).sessions
        for copy in copies:
            self._handles.append(copy.handle)

    def truncate(self, handle):
        length = self._random.randint(0, self.get(handle).committed_length)
        self._sessions.TruncateSession(wire.TruncateSessionRequest(handle=handle, length=length), metadata=TENANT)

    def keep(self, handle):
        session = self.get(handle)
        count = session.layer_tokens[0] if session.layer_tokens else session.committed_length
        stays = np.array([self._random.random() < 0.9 for _ in range(count)], np.uint8)
        kept = wire.KeptTokens(num_tokens=count, kept=np.packbits(stays, bitorder="little").tobytes())
        self._sessions.KeepTokens(wire.KeepTokensRequest(handle=handle, keep=[kept]), metadata=TENANT)

    def read(self, handle):
        layer = self._random.randrange(LAYERS)
        answer = self._sessions.GetKeysValues(wire.GetKeysValuesRequest(handle=handle, layer=layer), metadata=TENANT)
        require_rows(answer, is_compacted=True)

    def reorder(self, handle):
        handles = [handle, *self._random.sample(self._handles, min(2, len(self._handles)))]
        handles = list({each.session_id: each for each in handles}.values())
        sources = [self._random.randrange(len(handles)) for _ in handles]
        self._sessions.ReorderSessions(wire.ReorderSessionsRequest(handles=handles, sources=sources), metadata=TENANT)

    def export(self, handle):
        with archive_stream(self._sessions.ExportSession) as ask:
            answer = ask(wire.ExportSessionRequest(begin={"handle": handle}))
            if answer.HasField("error") or answer.archive.num_chunks == 0 or self._random.random() < 0.5:
                return
            chunk = ask(wire.ExportSessionRequest(chunk=0)).chunk
            require(len(chunk.rows) == chunk.num_tokens * HEADS * 2 * DIM * 4, "a chunk lacks rows")

    def delete(self, handle):
        if len(self._handles) < 8:
            return
        with contextlib.suppress(ValueError):  # another one was faster
            self._handles.remove(handle)
        self._sessions.DeleteSession(wire.DeleteSessionRequest(handle=handle), metadata=TENANT)


@contextlib.contextmanager
def archive_stream(call):
    """A function that sends a request and returns its answer. The stream is cancelled in the end."""
    requests = queue.Queue()
    answers = call(iter(requests.get, None), metadata=TENANT, timeout=60)

    def ask(request):
        requests.put(request)
        return next(answers)

    try:
        yield ask
    finally:
        answers.cancel()
        requests.put(None)


@scenario("racing changes of sessions")
def sessions_that_are_changed_at_once(load):
    """Eight clients that fork, cut, compact, read, reorder, export and delete the same sessions in 32 MiB."""
    with Stage(load, f"--kv-capacity-bytes={32 * MIB}", "--max-sessions-per-tenant=64") as stage:
        with Client(stage.server.tcp_address) as client:
            handles = [filled_session(client, 100) for _ in range(4)]
            is_done = threading.Event()
            racers = [Racer(client, handles, seed) for seed in range(8)]
            threads = [threading.Thread(target=racer.run, args=(is_done,)) for racer in racers]
            for thread in threads:
                thread.start()
            time.sleep(8)
            is_done.set()
            for thread in threads:
                thread.join()
            for racer in racers:
                require(racer.failure is None, racer.failure)
                require(racer.num_done > 20, f"a client did {racer.num_done} things in 8 s")
            delete_all(client)
        require_all_given_back(stage.server)


def delete_all(client):
    for session in client.sessions.ListSessions(wire.ListSessionsRequest(), metadata=TENANT).sessions:
        client.sessions.DeleteSession(wire.DeleteSessionRequest(handle=session.handle), metadata=TENANT)


def archive_of(client, handle):
    """The requests that make the session again."""
    with archive_stream(client.sessions.ExportSession) as ask:
        archive = ask(wire.ExportSessionRequest(begin={"handle": handle})).archive
        chunks = [ask(wire.ExportSessionRequest(chunk=index)).chunk for index in range(archive.num_chunks)]
    return [wire.ImportSessionRequest(begin={"archive": archive}),
            *(wire.ImportSessionRequest(chunk=chunk) for chunk in chunks),
            wire.ImportSessionRequest(end={})]


def sources_of_archives(client):
    """Sessions of 100 tokens: a plain one, one with a window, and one that has let tokens go."""
    plain = filled_session(client, 100)
    layer = wire.LayerShape(num_kv_heads=HEADS, head_dim_qk=DIM, head_dim_v=DIM, kv_dtype="DTYPE_FLOAT32")
    window = wire.LayerShape(window_tokens=200, sink_tokens=4)
    window.MergeFrom(layer)
    request = wire.CreateSessionRequest(geometry=wire.SessionGeometry(layers=[layer, window]))
    windowed = client.sessions.CreateSession(request, metadata=TENANT).session.handle
    client.sessions.Step(steps(windowed, 0, 100), metadata=TENANT)
    compacted = filled_session(client, 100)
    kept = wire.KeptTokens(num_tokens=100, kept=bytes([0b10101010] * 12 + [0b1010]))
    client.sessions.KeepTokens(wire.KeepTokensRequest(handle=compacted, keep=[kept]), metadata=TENANT)
    return plain, windowed, compacted


def with_other_numbers(begin, source):
    """The description with one of its numbers changed."""
    changed = wire.ImportSessionRequest()
    changed.CopyFrom(begin)
    archive = changed.begin.archive
    part = source.choice((archive, archive.geometry, *archive.layers, *archive.geometry.layers))
    numbers = [field for field in part.DESCRIPTOR.fields
               if field.cpp_type in (field.CPPTYPE_INT32, field.CPPTYPE_INT64) and field.label != field.LABEL_REPEATED]
    field = source.choice(numbers)
    value = getattr(part, field.name)
    largest = 2**31 - 1 if field.cpp_type == field.CPPTYPE_INT32 else 2**63 - 1
    setattr(part, field.name, source.choice((0, 1, -1, value + 1, value - 1, 2 * value, largest, -largest)))
    return changed


def damaged(requests, source):
    """The requests as bytes, of which some are changed, cut, repeated, swapped or left out."""
    if source.random() < 0.5:
        requests = [with_other_numbers(requests[0], source), *requests[1:]]
        if source.random() < 0.5:
            return [request.SerializeToString() for request in requests]
    messages = [request.SerializeToString() for request in requests]
    for _ in range(source.choice((1, 1, 1, 3))):
        index = source.randrange(len(messages))
        message = bytearray(messages[index])
        way = source.choice(("flip", "flip", "flip", "set", "cut", "repeat", "swap", "drop"))
        if way in ("flip", "set") and message:
            # Half of the time near the beginning, where the numbers are.
            place = source.randrange(min(len(message), source.choice((64, 1 << 30))))
            message[place] = message[place] ^ (1 << source.randrange(8)) if way == "flip" else source.choice((0, 127, 255))
            messages[index] = bytes(message)
        elif way == "cut":
            messages[index] = bytes(message[:source.randrange(len(message) + 1)])
        elif way == "repeat":
            messages.insert(source.randrange(len(messages) + 1), bytes(message))
        elif way == "swap":
            other = source.randrange(len(messages))
            messages[index], messages[other] = messages[other], messages[index]
        elif way == "drop" and len(messages) > 1:
            del messages[index]
    return messages


def import_bytes(client, messages):
    """The session that was made, if one was."""
    call = client.channel.stream_stream(IMPORT, request_serializer=bytes,
                                        response_deserializer=wire.ImportSessionResponse.FromString)
    session = None
    try:
        for answer in call(iter(messages), metadata=TENANT, timeout=20):
            if answer.HasField("session"):
                session = answer.session
    except grpc.RpcError as error:
        # INTERNAL is gRPC's own answer to bytes that are no message.
        require(error.code() in {grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.INTERNAL},
                f"a stream ended with {error.code()}: {error.details()}")
    return session


@scenario("damaged archives")
def archives_that_are_damaged(load):
    """Archives with other numbers, flipped bits, missing, repeated and swapped parts: no wrong row comes of one."""
    with Stage(load) as stage, Client(stage.server.tcp_address) as client:
        archives = [archive_of(client, handle) for handle in sources_of_archives(client)]
        source = random.Random(1)
        num_made = 0
        for _ in range(1500):
            session = import_bytes(client, damaged(source.choice(archives), source))
            if session is not None:
                num_made += 1
                require_sound(client, session)
                client.sessions.DeleteSession(wire.DeleteSessionRequest(handle=session.handle), metadata=TENANT)
        require(num_made < 750, f"{num_made} of 1,500 damaged archives made sessions")
        for requests in archives:
            require(import_bytes(client, [each.SerializeToString() for each in requests]) is not None,
                    "an archive that is whole makes no session any more")
        delete_all(client)
        require_all_given_back(stage.server)


def require_sound(client, session):
    """Its rows are good, and it can go on."""
    for layer in range(session.geometry.num_layers):
        request = wire.GetKeysValuesRequest(handle=session.handle, layer=layer)
        require_rows(client.sessions.GetKeysValues(request, metadata=TENANT), is_compacted=True)
    length = session.committed_length
    step = steps(session.handle, length, length + 1)
    for each in step.steps:
        each.q.CopyFrom(each.k)
        each.config.is_causal = True
    client.sessions.Step(step, metadata=TENANT)


@scenario("archives left half-way")
def archives_that_are_left(load):
    """Exports and imports that are cancelled or cut anywhere, their sessions deleted meanwhile: nothing stays."""
    with Stage(load) as stage, Client(stage.server.tcp_address) as client:
        source = random.Random(1)
        handle = filled_session(client, 20000)
        requests = archive_of(client, handle)
        for way, _ in itertools.product(("cancel", "cut"), range(20)):
            copy = client.sessions.ForkSession(wire.ForkSessionRequest(handle=handle), metadata=TENANT).sessions[0].handle
            exported = [wire.ExportSessionRequest(begin={"handle": copy}),
                        *(wire.ExportSessionRequest(chunk=index) for index in range(len(requests) - 2))]
            leave(stage, "ExportSession", exported, source.randrange(len(exported)), way)
            leave(stage, "ImportSession", requests, source.randrange(len(requests) - 1), way)
            client.sessions.DeleteSession(wire.DeleteSessionRequest(handle=copy), metadata=TENANT)
        require_rows(client.sessions.GetKeysValues(wire.GetKeysValuesRequest(handle=handle, end=1000), metadata=TENANT),
                     is_compacted=False)
        delete_all(client)
        require_all_given_back(stage.server)


def leave(stage, name, requests, count, way):
    """Sends the first and so many more requests, reads one answer, and goes."""
    sent = queue.Queue()
    for request in requests[:count + 1]:
        sent.put(request)
    with Client(stage.server.tcp_address) as client:
        answers = getattr(client.sessions, name)(iter(sent.get, None), metadata=TENANT, timeout=60)
        first = next(answers)
        require(not first.HasField("error"), f"{name} is refused: {first.error.message}")
        if way == "cancel":
            answers.cancel()
    sent.put(None)
