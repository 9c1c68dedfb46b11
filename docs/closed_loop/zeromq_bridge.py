"""A ZeroMQ socket that replies, in front of a server, for rigs that speak ZeroMQ: Bonsai, MATLAB, PsychoPy, LabVIEW.

    pip install 'pyzmq>=26' numpy
    python docs/closed_loop/zeromq_bridge.py --server http://127.0.0.1:3000 --bind tcp://127.0.0.1:5555

A request has two frames. The first is JSON: the fields of POST /predict but `image`, and `shape` (B, C, H, W), `dtype`
("uint8" or "<f4") and, if wanted, `timeout` in seconds and `priority` ("interactive" or "bulk"). The second has the images,
in row-major order. The reply has two frames as well: JSON, with `shape` (B, n), and the responses, "<f4". A request that
cannot be answered gets one frame: {"error": {"code", "message", "got", "expected", "hint"}}.

Rigs connect with REQ sockets. One request is answered at a time. `V1T_API_KEY` has the server's key, where it wants one.
"""

import argparse
import http.client
import io
import json
import os
from urllib.parse import urlsplit

import numpy as np
import zmq

LARGEST = 64 * 1024**2  # bytes of a frame; a peer that sends a larger one is disconnected
DTYPES = ("uint8", "<f4")


class Refused(Exception):
    """A request that is answered with an error."""

    def __init__(self, code, message, got=None, expected=None, hint=None):
        self.body = {"error": {"code": code, "message": message, "got": got, "expected": expected, "hint": hint}}


class Server:
    """The server that is asked, over one connection that is opened again where it was closed."""

    def __init__(self, url):
        parts = urlsplit(url)
        kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        self.url, self.connection = url, kind(parts.hostname, parts.port)
        self.path = f"{parts.path.rstrip('/')}/predict"
        key = os.environ.get("V1T_API_KEY")
        self.headers = {"Accept": "application/x-npy"} | ({"Authorization": f"Bearer {key}"} if key else {})

    def predict(self, fields, images):
        """The reply's head, and the responses (B, n)."""
        timeout = fields.pop("timeout", 10)
        if type(timeout) not in (int, float) or not 0 < timeout <= 3600:
            raise Refused("invalid_input", "timeout is not a time", repr(timeout)[:80], "seconds, such as 0.3")
        headers = self.headers | {"X-Request-Timeout": str(timeout)}
        headers["V1T-Priority"] = "bulk" if fields.pop("priority", None) == "bulk" else "interactive"
        body, headers["Content-Type"] = form(fields, images)
        response, content = self.exchange(body, headers, timeout)
        if response.status != 200:
            raise refusal(response.status, content)
        return json.loads(response.headers["V1T-Reply"]), np.load(io.BytesIO(content))

    def exchange(self, body, headers, timeout):
        for is_last in (False, True):  # the server closes connections that are idle
            try:
                self.connection.timeout = timeout + 1
                if self.connection.sock is not None:
                    self.connection.sock.settimeout(timeout + 1)
                self.connection.request("POST", self.path, body, headers)
                response = self.connection.getresponse()
                return response, response.read()
            except (OSError, http.client.HTTPException) as error:
                self.connection.close()
                if is_last or isinstance(error, TimeoutError):
                    hint = f"Is a server running at {self.url}?"
                    raise Refused("unreachable", "the server does not answer", str(error), hint=hint) from None


def form(fields, images):
    """The body of a form, and its type."""
    stream = io.BytesIO()
    np.save(stream, images)
    edge = os.urandom(16).hex()
    parts = [
        f'--{edge}\r\nContent-Disposition: form-data; name="{json.dumps(name)[1:-1]}"\r\n\r\n'
        f"{value if isinstance(value, str) else json.dumps(value)}\r\n"
        for name, value in fields.items()
    ]
    head = f'--{edge}\r\nContent-Disposition: form-data; name="image"; filename="images.npy"\r\n\r\n'
    body = (
        "".join([*parts, head]).encode("utf-8", "backslashreplace") + stream.getvalue() + f"\r\n--{edge}--\r\n".encode()
    )
    return body, f"multipart/form-data; boundary={edge}"


def refusal(status, content):
    """The server's own error, or that of a proxy before it."""
    try:
        return Refused(**json.loads(content)["error"])
    except (ValueError, TypeError, KeyError):
        return Refused("unreachable", f"something else than the server replied, with status {status}")


def answer(server, frames):
    """The frames of the reply."""
    try:
        if len(frames) != 2:
            raise Refused("malformed_body", "the request has other frames", len(frames), "2: JSON, and the images")
        fields, images = read(*frames)
        head, responses = server.predict(fields, images)
        head |= {"shape": responses.shape, "dtype": "<f4"}
        return [json.dumps(head).encode(), responses.astype("<f4").tobytes()]
    except Refused as refused:
        return [json.dumps(refused.body).encode()]
    except Exception as error:  # whatever a peer sends, the next one is answered
        return [json.dumps(Refused("error", f"the bridge failed: {error!r}"[:300]).body).encode()]


def read(head, content):
    """The fields, and the images (B, C, H, W)."""
    try:
        fields = json.loads(head)
    except (ValueError, RecursionError) as error:
        raise Refused("malformed_body", "the first frame is not JSON", str(error)[:80]) from None
    if not isinstance(fields, dict):
        raise Refused("invalid_input", "the first frame is not a JSON object", repr(fields)[:80], '{"mouse": ...}')
    shape, dtype = fields.pop("shape", None), fields.pop("dtype", None)
    if dtype not in DTYPES:
        raise Refused("invalid_input", "dtype is not known", repr(dtype)[:80], " or ".join(DTYPES))
    if not isinstance(shape, list) or len(shape) != 4 or not all(type(n) is int and 0 < n < 2**31 for n in shape):
        raise Refused("invalid_input", "shape is not that of images", repr(shape)[:80], "[B, C, H, W]")
    size = np.dtype(dtype).itemsize * shape[0] * shape[1] * shape[2] * shape[3]
    if size != len(content):
        raise Refused("invalid_input", "the images do not fit their shape", f"{len(content)} bytes", f"{size} bytes")
    return fields, np.frombuffer(content, dtype).reshape(shape)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--server", default="http://127.0.0.1:3000", help="URL (default: %(default)s)")
    parser.add_argument("--bind", default="tcp://127.0.0.1:5555", help="where rigs connect (default: %(default)s)")
    options = parser.parse_args()
    socket = zmq.Context.instance().socket(zmq.ROUTER)  # a REP socket that half a message cannot block
    socket.setsockopt(zmq.MAXMSGSIZE, LARGEST)
    socket.setsockopt(zmq.RCVHWM, 4)  # messages of one peer that wait
    socket.setsockopt(zmq.SNDHWM, 4)  # replies to a peer that does not read; later ones are dropped
    socket.setsockopt(zmq.LINGER, 0)
    socket.bind(options.bind)
    server = Server(options.server)
    print(f"{options.bind} asks {options.server}", flush=True)
    try:
        while True:
            received = socket.recv_multipart()
            if b"" in received:  # after the peer's address; what has no address is no request
                begin = received.index(b"") + 1
                socket.send_multipart(received[:begin] + answer(server, received[begin:]))
    except KeyboardInterrupt:
        pass


if __name__ == "__main__":
    main()
