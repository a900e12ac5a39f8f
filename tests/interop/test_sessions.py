"""The life of sessions: made, listed, deleted, expired, and whose they are."""

import datetime

import grpc
import harness
from attention.v1 import server_service_pb2, session_service_pb2, tensor_pb2
from harness import assert_fails, exercises, make_problem
from session_cases import SESSION, SessionTestCase, geometry, make_step

INVALID_ARGUMENT = grpc.StatusCode.INVALID_ARGUMENT
NOT_FOUND = grpc.StatusCode.NOT_FOUND
RESOURCE_EXHAUSTED = grpc.StatusCode.RESOURCE_EXHAUSTED


class SessionLifeTest(SessionTestCase):
    @exercises(SESSION + "CreateSession", SESSION + "GetSession", SESSION + "DeleteSession")
    def test_create_get_delete(self):
        ttl = datetime.timedelta(minutes=5)
        shape = geometry(num_layers=3, dim_v=8, dtype=tensor_pb2.DTYPE_BFLOAT16)
        request = session_service_pb2.CreateSessionRequest(geometry=shape, expected_tokens=100)
        request.ttl.FromTimedelta(ttl)
        created = self.client.sessions.CreateSession(request, metadata=self.metadata).session
        found = self.get(created.handle)
        self.assertEqual(found.handle, created.handle)
        self.assertEqual(found.geometry, shape)
        self.assertEqual(list(found.layer_lengths), [0, 0, 0])
        self.assertEqual((found.committed_length, found.kv_bytes), (0, 0))
        self.assertEqual(found.ttl.ToTimedelta(), ttl)
        self.assertGreaterEqual(found.expire_time.ToDatetime(), created.expire_time.ToDatetime())
        for _ in range(2):  # what is gone may be deleted again
            self.delete(created.handle)
        with assert_fails(self, NOT_FOUND, reason="SESSION_NOT_FOUND"):
            self.get(created.handle)

    @exercises(SESSION + "CreateSession")
    def test_a_name_makes_one_session(self):
        first = self.create(geometry=geometry(), name="mine")
        again = self.create(geometry=geometry(), name="mine")
        self.assertEqual((again.handle, again.name), (first.handle, "mine"))
        with assert_fails(self, grpc.StatusCode.ALREADY_EXISTS, "name"):
            self.create(geometry=geometry(num_layers=2), name="mine")

    @exercises(SESSION + "ListSessions", SESSION + "CreateSession")
    def test_list_in_pages(self):
        ids = {self.create(geometry=geometry()).handle.session_id for _ in range(5)}
        pages, token = [], ""
        while not pages or token:
            request = session_service_pb2.ListSessionsRequest(page_size=2, page_token=token)
            response = self.client.sessions.ListSessions(request, metadata=self.metadata)
            pages.append([session.handle.session_id for session in response.sessions])
            token = response.next_page_token
        self.assertEqual([len(page) for page in pages], [2, 2, 1])
        self.assertEqual(set(sum(pages, [])), ids)

    @exercises(SESSION + "ListSessions")
    def test_list_of_none_and_a_bad_page_size(self):
        request = session_service_pb2.ListSessionsRequest()
        response = self.client.sessions.ListSessions(request, metadata=self.metadata)
        self.assertEqual((list(response.sessions), response.next_page_token), ([], ""))
        request.page_size = 1001
        with assert_fails(self, INVALID_ARGUMENT, "page_size", "1001", "1000"):
            self.client.sessions.ListSessions(request, metadata=self.metadata)

    @exercises(SESSION + "GetSession", SESSION + "Step", SESSION + "DeleteSession")
    def test_tenants_do_not_see_each_other(self):
        handle = self.create(geometry=geometry()).handle
        stranger = [("attention-tenant", "stranger")]
        with assert_fails(self, NOT_FOUND, reason="SESSION_NOT_FOUND"):
            self.get(handle, metadata=stranger)
        problem = make_problem(4, 4, 4, 2, 16, 16)
        [result] = self.step(make_step(handle, problem, 0, 4), metadata=stranger)
        self.assertEqual(
            (result.error.code, result.error.reason), (NOT_FOUND.value[0], "SESSION_NOT_FOUND")
        )
        request = session_service_pb2.DeleteSessionRequest(handle=handle)
        self.client.sessions.DeleteSession(request, metadata=stranger)
        self.assertEqual(self.get(handle).committed_length, 0)

    @exercises(SESSION + "CreateSession")
    def test_create_names_the_wrong_field(self):
        cases = {
            "geometry": {},
            "num_layers": {"geometry": geometry(num_layers=0)},
            "num_kv_heads": {"geometry": geometry(kv_heads=-1)},
            "head_dim_qk": {"geometry": geometry(dim_qk=577)},
            "head_dim_v": {"geometry": geometry(dim_v=0)},
            "kv_dtype": {"geometry": geometry(dtype=tensor_pb2.DTYPE_BOOL)},
            "expected_tokens": {"geometry": geometry(), "expected_tokens": -1},
            "ttl": {"geometry": geometry(), "ttl": datetime.timedelta(days=400)},
        }
        for field, values in cases.items():
            with self.subTest(field), assert_fails(self, INVALID_ARGUMENT, field):
                ttl = values.pop("ttl", datetime.timedelta(minutes=1))
                request = session_service_pb2.CreateSessionRequest(**values)
                request.ttl.FromTimedelta(ttl)
                self.client.sessions.CreateSession(request, metadata=self.metadata)

    @exercises(SESSION + "CreateSession")
    def test_quota_of_a_tenant(self):
        limits = self.client.server.GetServerInfo(
            server_service_pb2.GetServerInfoRequest()
        ).limits
        bound = limits.max_sessions_per_tenant
        for _ in range(bound):
            self.create(geometry=geometry())
        told = {"limit": "sessions", "use": str(bound), "bound": str(bound)}
        with assert_fails(self, RESOURCE_EXHAUSTED, reason="QUOTA_EXCEEDED", metadata=told):
            self.create(geometry=geometry())

    @exercises(SESSION + "CreateSession")
    def test_more_tokens_than_the_pool_holds(self):
        with assert_fails(self, RESOURCE_EXHAUSTED, reason="KV_EXHAUSTED"):
            self.create(geometry=geometry(kv_heads=64), expected_tokens=1 << 20)

    @exercises(SESSION + "GetSession")
    def test_handles_of_other_workers(self):
        handle = self.create(geometry=geometry()).handle
        moved = session_service_pb2.SessionHandle(server_name="elsewhere", session_id=handle.session_id)
        code = grpc.StatusCode.FAILED_PRECONDITION
        with assert_fails(self, code, reason="SESSION_MOVED", metadata={"server_name": "elsewhere"}):
            self.get(moved)
        handle.server_epoch += 1
        with assert_fails(self, NOT_FOUND, reason="SESSION_LOST"):
            self.get(handle)
        handle.server_epoch -= 1

    @exercises(SESSION + "GetSession")
    def test_idle_session_expires(self):
        ttl = datetime.timedelta(milliseconds=1)
        handle = self.create(geometry=geometry(), ttl=harness.to_duration(ttl)).handle

        def is_gone():  # asking renews it, unless it had expired
            try:
                self.get(handle)
            except grpc.RpcError as error:
                return harness.error_details(error).reason == "SESSION_EXPIRED"
            return False

        harness.await_true(is_gone)
