"""The Python sample of docs/clients.md with TLS and a token.

    credentials_sample.py ADDRESS CA-FILE TOKEN-FILE
"""

# [sample]
import sys

import grpc
from attention.v1 import server_service_pb2 as pb
from attention.v1 import server_service_pb2_grpc as stubs

address, ca_file, token_file = sys.argv[1:4]

class BearerToken(grpc.AuthMetadataPlugin):
    def __call__(self, context, callback):  # for each call, on a thread of gRPC's
        try:
            with open(token_file) as file:
                callback((("authorization", f"Bearer {file.read().strip()}"),), None)
        except OSError as error:
            callback((), error)

with open(ca_file, "rb") as file:  # for mutual TLS also private_key= and certificate_chain=
    tls = grpc.ssl_channel_credentials(root_certificates=file.read())
credentials = grpc.composite_channel_credentials(tls, grpc.metadata_call_credentials(BearerToken()))
channel = grpc.secure_channel(address, credentials, [("grpc.max_receive_message_length", -1)])
info = stubs.ServerServiceStub(channel).GetServerInfo(pb.GetServerInfoRequest(), timeout=30)
print(info.server_name, info.tenant)
# [end]
