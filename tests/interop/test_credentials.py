"""The Python sample of docs/clients.md with TLS and a token, against a server that wants both."""

import concurrent.futures
import contextlib
import io
import pathlib
import runpy
import sys
import tempfile
import unittest
from unittest import mock

import grpc
from attention.v1 import server_service_pb2, server_service_pb2_grpc

HERE = pathlib.Path(__file__).resolve().parent
TLS = HERE.parent / "fixtures/tls"


class TokenServer(server_service_pb2_grpc.ServerServiceServicer):
    """Knows one token, whose tenant it names."""

    def GetServerInfo(self, request, context):
        if dict(context.invocation_metadata()).get("authorization") != "Bearer good":
            context.abort(grpc.StatusCode.UNAUTHENTICATED, "unknown token")
        return server_service_pb2.GetServerInfoResponse(server_name="here", tenant="acme")


class CredentialsSampleTest(unittest.TestCase):
    def setUp(self):
        folder = self.enterContext(tempfile.TemporaryDirectory())
        self.token_file = pathlib.Path(folder, "token")
        self.server = grpc.server(concurrent.futures.ThreadPoolExecutor(2))
        server_service_pb2_grpc.add_ServerServiceServicer_to_server(TokenServer(), self.server)
        pair = ((TLS / "server.key").read_bytes(), (TLS / "server.pem").read_bytes())
        port = self.server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([pair]))
        self.address = f"localhost:{port}"
        self.server.start()
        self.addCleanup(lambda: self.server.stop(None).wait())

    def run_sample(self):
        """The sample's names, and what it printed."""
        sample, printed = HERE / "credentials_sample.py", io.StringIO()
        arguments = [str(sample), self.address, str(TLS / "server.pem"), str(self.token_file)]
        with mock.patch.object(sys, "argv", arguments), contextlib.redirect_stdout(printed):
            names = runpy.run_path(str(sample))
        self.addCleanup(names["channel"].close)
        return names, printed.getvalue()

    def test_server_learns_the_token(self):
        self.token_file.write_text("good\n")
        self.assertEqual(self.run_sample()[1], "here acme\n")

    def test_each_call_reads_the_token(self):
        self.token_file.write_text("good\n")
        names, _ = self.run_sample()
        self.token_file.write_text("other\n")
        stub = server_service_pb2_grpc.ServerServiceStub(names["channel"])
        with self.assertRaises(grpc.RpcError) as refusal:
            stub.GetServerInfo(server_service_pb2.GetServerInfoRequest(), timeout=30)
        self.assertEqual(refusal.exception.code(), grpc.StatusCode.UNAUTHENTICATED)

    def test_no_call_without_a_token(self):
        with self.assertRaises(grpc.RpcError):
            self.run_sample()


if __name__ == "__main__":
    unittest.main()
