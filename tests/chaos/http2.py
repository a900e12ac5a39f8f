"""An HTTP/2 client that says what it likes, when it likes: calls that are begun and left, reset, or never read."""

import contextlib
import socket
import struct
import threading
import time

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
ACK, END_HEADERS = 1, 4
INITIAL_WINDOW_SIZE = 4  # a setting
LARGEST_FRAME = 16384
CANCEL = 8  # an error code


def frame(kind, flags, stream, payload=b""):
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def integer(value, prefix_bits):
    """HPACK's form of a number in the low bits of a byte, and further ones."""
    most = (1 << prefix_bits) - 1
    if value < most:
        return bytes([value])
    out = bytearray([most])
    value -= most
    while value >= 128:
        out.append(value % 128 + 128)
        value //= 128
    out.append(value)
    return bytes(out)


def literal(name, value):
    """A header that is not to be remembered, without Huffman codes."""
    return b"\x00" + b"".join(integer(len(text), 7) + text for text in (name.encode(), value.encode()))


def open_socket(address):
    """A socket that is connected to "host:port" or "unix:path"."""
    if address.startswith("unix:"):
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(address.removeprefix("unix:"))
        return connection
    host, port = address.rsplit(":", 1)
    return socket.create_connection((host, int(port)))


class Connection:
    """Obeys the windows of what it sends, and reads frames without ever widening the server's."""

    def __init__(self, address):
        self._socket = open_socket(address)
        self._changed = threading.Condition()
        self._window = 65535  # of the connection
        self._stream_window = 65535  # of a new stream
        self._windows = {}
        self._next_stream = 1
        self.is_ended = False
        self._socket.sendall(PREFACE + frame(SETTINGS, 0, 0))
        threading.Thread(target=self._read, daemon=True).start()

    def begin_call(self, path, **headers):
        """The stream of a call of which nothing but its headers is sent."""
        with self._changed:
            stream, self._next_stream = self._next_stream, self._next_stream + 2
            self._windows[stream] = self._stream_window
        self.send(self.headers(stream, path, **headers))
        return stream

    @staticmethod
    def headers(stream, path, **headers):
        fields = {":method": "POST", ":scheme": "http", ":path": path, ":authority": "localhost", "te": "trailers",
                  "content-type": "application/grpc", **{key.replace("_", "-"): headers[key] for key in headers}}
        return frame(HEADERS, END_HEADERS, stream, b"".join(literal(*field) for field in fields.items()))

    def send(self, data):
        """False when the server has ended the connection."""
        try:
            self._socket.sendall(data)
        except OSError:
            return False
        return True

    def send_message(self, stream, message, keep_back=0, is_compressed=False, seconds=20):
        """All but the last bytes of a message, as far as the windows allow in that time. Returns how many."""
        data = struct.pack(">BI", is_compressed, len(message)) + message
        data = memoryview(data)[: len(data) - keep_back]
        sent, give_up = 0, time.monotonic() + seconds
        while sent < len(data) and not self.is_ended:
            size = self._reserve(stream, len(data) - sent, give_up)
            if size == 0:
                break
            parts = []
            for begin in range(sent, sent + size, LARGEST_FRAME):
                parts.append(frame(DATA, 0, stream, data[begin:min(begin + LARGEST_FRAME, sent + size)]))
            if not self.send(b"".join(parts)):
                break
            sent += size
        return sent

    def close(self):
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)  # the reading thread holds it open otherwise
        self._socket.close()

    def _reserve(self, stream, wanted, give_up):
        with self._changed:
            while True:
                size = min(wanted, self._window, self._windows.get(stream, 0), 1 << 20)
                if size > 0:
                    self._window -= size
                    self._windows[stream] -= size
                    return size
                left = give_up - time.monotonic()
                if self.is_ended or stream not in self._windows or left <= 0:
                    return 0
                self._changed.wait(left)

    def _read(self):
        try:
            with self._socket.makefile("rb") as file:
                while len(header := file.read(9)) == 9:
                    kind, flags, stream = struct.unpack(">BBI", header[3:])
                    self._handle(kind, flags, stream, file.read(int.from_bytes(header[:3], "big")))
        except (OSError, ValueError):
            pass
        with self._changed:
            self.is_ended = True
            self._changed.notify_all()

    def _handle(self, kind, flags, stream, payload):
        with self._changed:
            if kind == WINDOW_UPDATE:
                increment = int.from_bytes(payload, "big")
                if stream == 0:
                    self._window += increment
                elif stream in self._windows:
                    self._windows[stream] += increment
            elif kind == SETTINGS and not flags & ACK:
                self._apply(payload)
                self.send(frame(SETTINGS, ACK, 0))
            elif kind == PING and not flags & ACK:
                self.send(frame(PING, ACK, 0, payload))
            elif kind == RST_STREAM:
                self._windows.pop(stream, None)
            self._changed.notify_all()

    def _apply(self, settings):
        for place in range(0, len(settings), 6):
            key, value = struct.unpack(">HI", settings[place:place + 6])
            if key == INITIAL_WINDOW_SIZE:
                difference, self._stream_window = value - self._stream_window, value
                for stream in self._windows:
                    self._windows[stream] += difference
