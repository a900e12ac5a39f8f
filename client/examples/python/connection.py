"""The connection to an attention-server that a program's arguments ask for."""


def add_arguments(parser):
    """The same flags as the programs in C++ have."""
    parser.add_argument("--target", default="localhost:7070", help="host:port of the server")
    parser.add_argument("--tls-ca", metavar="FILE", help="use TLS; the authorities to trust, in PEM")
    parser.add_argument("--tls-cert", metavar="FILE", help="this client's certificate, in PEM")
    parser.add_argument("--tls-key", metavar="FILE", help="the key of that certificate")
    parser.add_argument("--token-file", metavar="FILE", help="a bearer token, read for each call")


def from_arguments(arguments):
    """The channel that the arguments of add_arguments ask for."""
    return connect(
        arguments.target,
        arguments.tls_ca,
        arguments.tls_cert,
        arguments.tls_key,
        arguments.token_file,
    )


def connect(target, tls_ca=None, tls_cert=None, tls_key=None, token_file=None):
    """A channel. A token goes to another host by TLS alone: gRPC refuses to send it in the clear."""
    import grpc  # here, because a program that computes by itself needs none

    # Answers are as large as their rows; gRPC's default is 4 MiB.
    any_size = [("grpc.max_receive_message_length", -1)]
    if tls_ca:
        credentials = grpc.ssl_channel_credentials(_read(tls_ca), _read(tls_key), _read(tls_cert))
    elif token_file:
        credentials = grpc.local_channel_credentials()
    else:
        return grpc.insecure_channel(target, any_size)
    if token_file:
        token = grpc.metadata_call_credentials(_token_of(token_file))
        credentials = grpc.composite_channel_credentials(credentials, token)
    return grpc.secure_channel(target, credentials, any_size)


def _read(path):
    if path is None:
        return None
    with open(path, "rb") as file:
        return file.read()


def _token_of(path):
    """What gRPC calls for the metadata of each call, on a thread of its own."""

    def add_token(_, callback):
        try:
            callback((("authorization", "Bearer " + _read(path).decode().strip()),), None)
        except (OSError, ValueError) as error:
            callback((), error)

    return add_token
