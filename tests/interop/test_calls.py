"""Rules for every call: deadlines, cancellation, concurrency, overload and draining."""

import asyncio
import concurrent.futures
import datetime
import threading
import unittest

import grpc
import harness
from attention.v1 import attention_service_pb2, attention_service_pb2_grpc
from attention_client import channel_options, error_details
from harness import assert_fails, make_problem

try:
    from grpc_health.v1 import health_pb2, health_pb2_grpc
except ImportError:
    health_pb2 = None

CANCELLED = grpc.StatusCode.CANCELLED
DEADLINE_EXCEEDED = grpc.StatusCode.DEADLINE_EXCEEDED
RESOURCE_EXHAUSTED = grpc.StatusCode.RESOURCE_EXHAUSTED
UNAVAILABLE = grpc.StatusCode.UNAVAILABLE

SMALL = make_problem(3, 5, 2, 2, 8, 8)


def check_served(test, client):
    """The next good request is served."""
    SMALL.check(test, client.attention.Attend(SMALL.request()))


class OpenStream:
    """Requests that stay open until `end` is called."""

    def __init__(self):
        self._ended = threading.Event()
        self.end = self._ended.set

    def __iter__(self):
        yield attention_service_pb2.AttendStreamRequest(request_id=1, request=SMALL.request())
        self._ended.wait()


class DeadlineAndCancelTest(unittest.TestCase):
    def setUp(self):
        self.client = self.enterContext(harness.RecordedClient(harness.address()))
        self.requests = OpenStream()
        self.addCleanup(self.requests.end)

    def test_deadline_already_past(self):
        with assert_fails(self, DEADLINE_EXCEEDED):
            self.client.attention.Attend(SMALL.request(), timeout=-1)
        check_served(self, self.client)

    def test_deadline_ends_a_stream_that_idles(self):
        stream = self.client.attention.AttendStream(iter(self.requests), timeout=0.5)
        SMALL.check(self, next(stream).response)
        with assert_fails(self, DEADLINE_EXCEEDED):
            next(stream)
        check_served(self, self.client)

    def test_cancelled_stream(self):
        stream = self.client.attention.AttendStream(iter(self.requests))
        next(stream)
        stream.cancel()
        with self.assertRaises(grpc.RpcError):
            next(stream)
        self.assertEqual(stream.code(), CANCELLED)
        check_served(self, self.client)


class ConcurrencyTest(unittest.TestCase):
    def test_threads_share_a_client(self):
        with harness.RecordedClient(harness.address()) as client:
            problems = [make_problem(1 + i, 20, 4, 2, 16, 16) for i in range(16)]
            alone = [client.attention.Attend(p.request()).output.data for p in problems]

            def attend(i):
                return client.attention.Attend(problems[i % 16].request()).output.data

            with concurrent.futures.ThreadPoolExecutor(16) as pool:
                together = list(pool.map(attend, range(320)))
        self.assertEqual(together, alone * 20)

    def test_futures(self):
        with harness.RecordedClient(harness.address()) as client:
            futures = [client.attention.Attend.future(SMALL.request()) for _ in range(20)]
            for future in futures:
                SMALL.check(self, future.result())


class AsyncioTest(unittest.IsolatedAsyncioTestCase):
    async def asyncSetUp(self):
        channel = grpc.aio.insecure_channel(harness.address(), channel_options(60))
        self.channel = await self.enterAsyncContext(channel)
        self.attention = attention_service_pb2_grpc.AttentionServiceStub(self.channel)

    async def test_unary_calls_at_once(self):
        calls = (self.attention.Attend(SMALL.request()) for _ in range(50))
        for response in await asyncio.gather(*calls):
            SMALL.check(self, response)

    async def test_stream(self):
        stream = self.attention.AttendStream()
        for key in range(5):
            await stream.write(
                attention_service_pb2.AttendStreamRequest(request_id=key, request=SMALL.request())
            )
        await stream.done_writing()
        keys = set()
        async for answer in stream:
            SMALL.check(self, answer.response)
            keys.add(answer.request_id)
        self.assertEqual(keys, set(range(5)))

    async def test_error(self):
        request = SMALL.request()
        request.q.data = b""
        with self.assertRaises(grpc.RpcError) as caught:
            await self.attention.Attend(request)
        self.assertEqual(caught.exception.code(), grpc.StatusCode.INVALID_ARGUMENT)
        self.assertIn("q.data has 0 bytes", caught.exception.details())

    async def test_cancelled_task(self):
        stream = self.attention.AttendStream()
        task = asyncio.create_task(stream.read())
        await asyncio.sleep(0)
        task.cancel()
        with self.assertRaises(asyncio.CancelledError):
            await task
        SMALL.check(self, await self.attention.Attend(SMALL.request()))


class BusyServerTest(unittest.TestCase):
    """A server of its own that is slow, never batches, and has room for two waiting requests."""

    SLOW = make_problem(768, 768, 8, 8, 64, 64)  # about a second in the float64 backend

    def setUp(self):
        # Neither in slices, between which others run, nor on the thread that receives calls.
        flags = ("--backend=reference", "--max-batch-requests=1", "--max-queued-requests=2",
                 "--max-batch-work=1h", "--max-inline-work=1ns")
        self.server = self.enterContext(harness.ServerProcess(*flags))
        self.client = self.enterContext(harness.RecordedClient(self.server.address))

    def start(self, problem):
        return self.client.attention.Attend.future(problem.request())

    def occupy(self):
        """The futures of two slow requests: one is running, one waits."""
        futures = [self.start(self.SLOW), self.start(self.SLOW)]
        harness.await_true(lambda: self.server.metric("batch_requests_count") == 1)
        self.await_queued(1)
        return futures

    def await_queued(self, count):
        harness.await_true(lambda: self.server.metric("queued_requests") == count)

    def dropped(self):
        """The count of requests that left the queue without being computed."""
        reasons = ("deadline", "cancelled")  # a passed deadline cancels the call as well
        return sum(
            self.server.metric(f'dropped_requests_total{{reason="{reason}"}}') for reason in reasons
        )

    def check_finished(self, futures):
        for future in futures:
            self.assertEqual(len(future.result().output.data), self.SLOW.q.nbytes)

    def test_deadline_passes_in_the_queue(self):
        slow = self.occupy()
        with assert_fails(self, DEADLINE_EXCEEDED):
            self.client.attention.Attend(SMALL.request(), timeout=0.1)
        self.check_finished(slow)
        check_served(self, self.client)
        self.assertEqual(self.dropped(), 1)

    def test_waiting_work_can_be_cancelled(self):
        slow, waiting = self.occupy(), self.start(SMALL)
        self.await_queued(2)
        waiting.cancel()
        self.assertEqual(waiting.code(), CANCELLED)
        self.check_finished(slow)
        check_served(self, self.client)
        self.assertEqual(self.dropped(), 1)

    def test_full_queue_says_when_to_come_back(self):
        futures = [self.start(self.SLOW) for _ in range(6)]
        errors = [future.exception() for future in futures if future.exception()]
        self.assertTrue(errors)
        for error in errors:
            self.assertEqual(error.code(), RESOURCE_EXHAUSTED)
            details = error_details(error)
            self.assertEqual((details.reason, details.domain), ("QUEUE_FULL", "attention.v1"))
            self.assertGreater(details.retry_delay, datetime.timedelta(0))
        check_served(self, self.client)

    @unittest.skipIf(health_pb2 is None, "the package grpc-proto is not installed")
    def test_draining_finishes_what_it_has_and_refuses_the_rest(self):
        health = health_pb2_grpc.HealthStub(self.client.channel)
        watch = health.Watch(health_pb2.HealthCheckRequest())
        self.assertEqual(next(watch).status, health_pb2.HealthCheckResponse.SERVING)
        slow = self.occupy()
        self.server.begin_stop()
        self.assertEqual(next(watch).status, health_pb2.HealthCheckResponse.NOT_SERVING)
        with assert_fails(self, UNAVAILABLE, reason="DRAINING"):
            self.client.attention.Attend(SMALL.request())
        self.check_finished(slow)
        watch.cancel()
