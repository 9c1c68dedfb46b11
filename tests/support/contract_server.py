"""A small server that implements the HTTP contract independently, to check what the client sends.

It is written from the contract alone, with the parsers of the standard library, and shares no code with the client. Its
"twin" is a formula that a test can compute itself: see `ContractServer.responses`.
"""

from __future__ import annotations

import io
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.parser import BytesParser
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import httpx
import numpy as np

SHAPE = (1, 36, 64)
SPEEDS = {"median": 0.05, "mean": 3.2, "running": 14.5}  # of the named states; no mouse here has "rest"
MEDIAN_SPEED = SPEEDS["median"]
FASTEST = 60.0  # recorded
FORM_FIELDS = {
    "mouse",
    "pupil_dilation",
    "pupil_dilation_derivative",
    "running_speed",
    "behavior",
    "pupil_center",
    "neuron_ids",
    "weights",
    "units",
    "spread",
    "resize",
    "model",
    "state",
    "strict",
}


@dataclass
class Seen:
    """One request, as received."""

    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    form: dict[str, str] = field(default_factory=dict)
    images: list[tuple[str, str, bytes]] = field(default_factory=list)  # filename, content type, content

    def array(self) -> np.ndarray:
        """The only image part, which must be .npy."""
        ((_, content_type, content),) = self.images
        assert content_type == "application/x-npy"
        return np.load(io.BytesIO(content), allow_pickle=False)


Reply = tuple[int, dict[str, str], bytes]


class ContractServer:
    """Mice A and B. `script` has replies (or errors to raise) that are used first; `seen` has every request."""

    def __init__(self) -> None:
        rng = np.random.default_rng(7)
        self.neuron_ids = {m: rng.permutation(np.arange(1, 5000))[:23].astype(np.int64) for m in ("A", "B")}
        self.scores = {m: rng.uniform(-0.2, 0.9, 23).astype(np.float32) for m in ("A", "B")}
        self.coordinates = {m: rng.normal(0, 100, (23, 3)).astype(np.float32) for m in ("A", "B")}
        self.readout_positions = {m: rng.uniform(0, 60, (23, 2)).astype(np.float32) for m in ("A", "B")}
        self.hash = "ab" * 32
        self.page = 1000
        self.standardized = False
        self.script: list[Reply | Exception] = []
        self.seen: list[Seen] = []
        self.connections = 0

    @staticmethod
    def responses(images: np.ndarray, speeds: np.ndarray, neuron_ids: np.ndarray) -> np.ndarray:
        """(B,) mean grey level / 255 + (B,) speed, + neuron id / 1000: (B, n) float32."""
        per_image = images.reshape(len(images), -1).mean(axis=1, dtype=np.float64) / 255 + speeds  # (B,)
        return (per_image[:, None] + neuron_ids / 1000).astype(np.float32)

    def answer(self, method: str, target: str, headers: dict[str, str], body: bytes) -> Reply:
        url = urlsplit(target)
        query = {name: values[-1] for name, values in parse_qs(url.query).items()}
        seen = Seen(method, url.path, query, {k.lower(): v for k, v in headers.items()})
        if method == "POST":
            _read_form(seen, body)
        self.seen.append(seen)
        if self.script:
            scripted = self.script.pop(0)
            if isinstance(scripted, Exception):
                raise scripted
            return scripted
        parts = [unquote(part) for part in seen.path.strip("/").split("/")]
        if (method, parts) == ("POST", ["predict"]):
            return self._predict(seen)
        if (method, parts) == ("GET", ["mice"]):
            return json_reply({"mice": [self._summary(mouse) for mouse in self.neuron_ids]})
        if (method, parts) == ("GET", ["readyz"]):
            return 200, {}, b"\n"
        if method == "GET" and parts[0] == "mice" and len(parts) in (2, 3):
            if parts[1] not in self.neuron_ids:
                return error_reply(404, "not_found", "no such mouse", parts[1], "A, B", "GET /mice lists the mice.")
            return self._mouse(parts[1]) if len(parts) == 2 else self._neurons(parts[1], query)
        return error_reply(404, "not_found", f"no route {seen.path}", None, None, "See /docs.json.")

    def _summary(self, mouse: str) -> dict[str, Any]:
        return {
            "mouse": mouse,
            "model": "demo",
            "data_key": f"simulated-{mouse}",
            "n_neurons": len(self.neuron_ids[mouse]),
            "image_shape": list(SHAPE),
            "simulated": True,
            "standardized_inputs": self.standardized,
            "uses": ["image", "behavior", "pupil_center"],
            "a_field_of_a_later_version": 1,
        }

    def _model(self) -> dict[str, Any]:
        notice = "Trained on a simulated recording."
        return {"name": "demo", "hash": self.hash, "members": 3, "simulated": True, "notice": notice}

    def _mouse(self, mouse: str) -> Reply:
        speed = {
            "name": "running_speed",
            "unit": "cm/s",
            "mean": SPEEDS["mean"],
            "std": 5.0,
            "percentiles": {"95": 17.5},
        }
        speed |= {"min": 0.0, "max": FASTEST, "median": MEDIAN_SPEED}
        luminance = {"name": "luminance", "unit": "grey level", "mean": 111.0, "std": None}
        luminance |= {"image_mean": [20.0, 190.0], "image_contrast": [3.0, 80.0]}
        running = {"name": "running", "definition": "|running speed| of at least 1 cm/s", "trials": 321}
        running |= {"behavior": [52.5, SPEEDS["running"]], "pupil_center": [3.5]}
        return json_reply(
            {
                **self._summary(mouse),
                "model": self._model(),
                "image_channels": [luminance],
                "behavior": [{"name": "pupil_dilation", "unit": "eye-camera px", "mean": 40.0}, speed],
                "pupil_center": [{"name": "pupil_center_x", "unit": "eye-camera px"}],
                "states": [running],
                "scores": {"single_trial_correlation": 0.41},
                "members": 3,
                "licence": "MIT",
                "citation": "none",
            }
        )

    def _neurons(self, mouse: str, query: dict[str, str]) -> Reply:
        keep = self.scores[mouse] >= float(query.get("score_min", "-inf"))
        keep &= self.coordinates[mouse][:, 0] >= float(query.get("x_min", "-inf"))
        rows = np.flatnonzero(keep)
        start = int(query.get("offset", 0))
        shown = rows[start : start + min(self.page, int(query.get("limit", self.page)))]
        coordinates: list[Any] = self.coordinates[mouse][shown].tolist()
        if len(coordinates):
            coordinates[0] = None  # an unknown position
        return json_reply(
            {
                "mouse": mouse,
                "model": "demo",
                "total": len(rows),
                "neuron_ids": self.neuron_ids[mouse][shown].tolist(),
                "coordinates_um": coordinates,
                "readout_position_px": self.readout_positions[mouse][shown].tolist(),
                "response_std": [None] * len(shown),
                "scores": {"single_trial_correlation": self.scores[mouse][shown].tolist()},
            }
        )

    def _predict(self, seen: Seen) -> Reply:
        assert seen.headers["accept"] == "application/x-npy"
        form = seen.form
        if form["mouse"] not in self.neuron_ids:
            return error_reply(404, "not_found", "no such mouse", form["mouse"], "A, B", "GET /mice lists the mice.")
        images = [_decode(content_type, content) for _, content_type, content in seen.images]
        batch = images[0] if len(images) == 1 else np.concatenate(images)  # (B, C, H, W)
        state = form.get("state", "median")
        if state not in SPEEDS:
            return error_reply(422, "invalid_input", f"mouse {form['mouse']} has no such state", state, sorted(SPEEDS))
        speeds = np.broadcast_to(json.loads(form.get("running_speed", str(SPEEDS[state]))), (len(batch),))
        notes = self._notes(batch, speeds)
        outside = [note for note in notes if note["code"] == "outside_recording"]
        if outside and json.loads(form.get("strict", "false")):
            hint = "Leave strict out."
            return error_reply(422, "outside_recording", outside[0]["message"], None, "what was recorded", hint)
        asked = json.loads(form["neuron_ids"]) if "neuron_ids" in form else None
        ids = self.neuron_ids[form["mouse"]] if asked is None else np.asarray(asked)
        unknown = set(ids.tolist()) - set(self.neuron_ids[form["mouse"]].tolist())
        if unknown:
            hint = f"GET /mice/{form['mouse']}/neurons lists them."
            return error_reply(422, "invalid_input", "unknown neurons", sorted(unknown), "this mouse's ids", hint)
        array = self.responses(batch, speeds, ids)
        if json.loads(form.get("spread", "false")):
            array = np.stack([array, array / 10])  # (2, B, n)
        assumed = (
            [] if "running_speed" in form else [f"running_speed left out: the training {state} {SPEEDS[state]} cm/s"]
        )
        header: dict[str, Any] = {
            "request_id": f"request-{len(self.seen)}",
            "model": self._model(),
            "mouse": form["mouse"],
            "units": form.get("units", "standardized"),
            "state": state,
            "assumed": assumed,
            "notes": notes,
        }
        return npy_reply(array, header)

    def _notes(self, images: np.ndarray, speeds: np.ndarray) -> list[dict[str, Any]]:
        """Pixels above 255, and running faster than recorded."""
        bright, fast = int((images.reshape(len(images), -1).max(1) > 255).sum()), int((speeds > FASTEST).sum())
        words = (
            ("image", bright, "pixels above the recorded 255"),
            ("running_speed", fast, f"{speeds.max():g} cm/s is above the recorded {FASTEST:g}"),
        )
        notes: list[dict[str, Any]] = [
            {"code": "outside_recording", "input": name, "message": f"{n} of {len(images)} images: {text}"}
            for name, n, text in words
            if n
        ]
        if self.standardized:
            notes.append({"code": "standardized_inputs", "input": None, "message": "inputs are standardised"})
        return notes

    def transport(self) -> httpx.MockTransport:
        """The server without a network, for both of httpx's clients."""

        def handle(request: httpx.Request) -> httpx.Response:
            target = request.url.raw_path.decode()
            try:
                status, headers, body = self.answer(request.method, target, dict(request.headers), request.read())
            except httpx.RequestError as error:
                error.request = request
                raise
            return httpx.Response(status, headers=headers, content=body)

        return httpx.MockTransport(handle)

    @contextmanager
    def listening(self) -> Iterator[str]:
        """The server on a free port of this machine; yields its URL."""
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def setup(self) -> None:
                super().setup()
                outer.connections += 1

            def _serve(self) -> None:
                body = self.rfile.read(int(self.headers.get("content-length", 0)))
                status, headers, content = outer.answer(self.command, self.path, dict(self.headers), body)
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            do_GET = do_POST = _serve  # noqa: N815

            def log_message(self, *_: object) -> None:
                """Logs nothing."""

        with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as httpd:
            thread = threading.Thread(target=httpd.serve_forever, args=(0.05,))
            thread.start()
            try:
                yield f"http://127.0.0.1:{httpd.server_port}"
            finally:
                httpd.shutdown()
                thread.join()


def json_reply(content: Any, status: int = 200, **headers: str) -> Reply:
    return status, {"Content-Type": "application/json", **headers}, json.dumps(content).encode()


def error_reply(
    status: int, code: str, message: str, got: Any = None, expected: Any = None, hint: Any = None, **headers: str
) -> Reply:
    error = {"code": code, "message": message, "got": got, "expected": expected, "hint": hint}
    return json_reply({"error": error, "request_id": "request-0"}, status, **headers)


def npy_reply(array: np.ndarray, header: dict[str, Any]) -> Reply:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return 200, {"Content-Type": "application/x-npy", "V1T-Reply": json.dumps(header)}, buffer.getvalue()


def _read_form(seen: Seen, body: bytes) -> None:
    content_type = seen.headers["content-type"]
    message = BytesParser().parsebytes(b"Content-Type: " + content_type.encode() + b"\r\n\r\n" + body)
    assert message.get_content_type() == "multipart/form-data"
    for part in message.get_payload():
        name = part.get_param("name", header="content-disposition")
        content = part.get_payload(decode=True)
        if part.get_filename() is not None:
            assert name == "image"
            seen.images.append((part.get_filename(), part.get_content_type(), content))
        else:
            assert name in FORM_FIELDS, f"{name} is no field of the contract"
            assert name not in seen.form, f"{name} came twice"
            seen.form[name] = content.decode()


def _decode(content_type: str, content: bytes) -> np.ndarray:
    """(B, C, H, W). A PNG or JPEG is read as a uniform image whose grey level is its number of bytes modulo 251."""
    if content_type != "application/x-npy":
        return np.full((1, *SHAPE), len(content) % 251, dtype=np.uint8)
    array = np.load(io.BytesIO(content), allow_pickle=False)
    return array.reshape((-1, *SHAPE)) if array.ndim < 4 else array
