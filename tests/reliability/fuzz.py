"""Fuzz: requests that the OpenAPI document allows or forbids, and broken bodies of every kind.

No reply may be a 5xx or take long, memory may not grow, and good questions must still be answered correctly.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import io
import json
import struct
import time
import zipfile
import zlib
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import httpx
import hypothesis
import numpy as np
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.errors import Unsatisfiable
from PIL import Image

from reliability import grpc_calls, questions
from reliability.clients import ask
from reliability.protocols import Connections, fitting
from reliability.served_bundles import ServedBundles, serve_bundles, worker_of
from reliability.tally import Report, Tally, markdown

__all__ = ["BODIES", "FILES", "form", "run"]

HUNG = 20.0  # seconds
GROWTH = 32.0  # MB in the last 45 % of the cases: during the first ones the allocator's pools fill
NPY, JSON, FORM = "application/x-npy", "application/json", "multipart/form-data; boundary=xyz"

Sent = tuple[str, bytes, dict[str, str]]  # path, body, headers


@dataclass
class Seen:
    """The replies to one kind of body, or to one operation."""

    statuses: Counter[int] = field(default_factory=Counter)
    slowest: float = 0.0


# Valid bodies: mouse A of the tiny bundle, (1, 8, 12)

IMAGES = np.random.default_rng(0).integers(0, 256, (2, 1, 8, 12), dtype=np.uint8)


def _npy(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def _png() -> bytes:
    stream = io.BytesIO()
    Image.fromarray(IMAGES[0, 0]).save(stream, "PNG")
    return stream.getvalue()


def form(file: bytes, **fields: str) -> bytes:
    parts = [
        f'--xyz\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{text}\r\n' for name, text in fields.items()
    ]
    head = '--xyz\r\nContent-Disposition: form-data; name="image"; filename="x"\r\nContent-Type: image/png\r\n\r\n'
    return "".join([*parts, head]).encode() + file + b"\r\n--xyz--\r\n"


def _v2() -> tuple[dict[str, Any], bytes]:
    arrays = {
        "image": IMAGES.astype("<f4"),
        "behavior": np.ones((2, 3), "<f4"),
        "pupil_center": np.ones((2, 2), "<f4"),
        "neuron_ids": np.array([], "<i8"),
    }
    described = [
        {
            "name": name,
            "datatype": "INT64" if name == "neuron_ids" else "FP32",
            "shape": list(array.shape),
            "parameters": {"binary_data_size": array.nbytes},
        }
        for name, array in arrays.items()
        if array.size
    ]
    return {"inputs": described}, b"".join(array.tobytes() for array in arrays.values())


# Decompression bombs and other special bodies


def _chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def _png_of(width: int, height: int, pixels: bytes) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + _chunk(b"IDAT", pixels) + _chunk(b"IEND", b"")


def _npy_header(text: str) -> bytes:
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text.encode("latin-1")


def _zip(size: int) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("image.npy", bytes(size))
    return stream.getvalue()


def _nested(depth: int) -> bytes:
    return b'{"mouse": "A", "image": ' + b"[" * depth + b"1" + b"]" * depth + b"}"


FILES: Mapping[str, bytes] = {
    "PNG whose header says 2^31 pixels a side": _png_of(2**31 - 1, 2**31 - 1, zlib.compress(b"\0")),
    "PNG bomb: 20,000 a side, black": _png_of(20_000, 20_000, zlib.compress(bytes(20_001 * 2_000), 9)),
    "PNG of 8 x 12 whose pixels are 64 MB": _png_of(12, 8, zlib.compress(bytes(64 * 1024**2), 9)),
    "PNG with a decompression bomb as text": _png()[:33]
    + _chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(64 * 1024**2)))
    + _png()[33:],
    "zip bomb": _zip(64 * 1024**2),
    "npy of 10^15 images": _npy_header(
        "{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000000, 1, 8, 12), }\n"
    ),
    "npy of a negative shape": _npy_header("{'descr': '<f4', 'fortran_order': False, 'shape': (-1, 1, 8, 12), }\n"),
    "npy of objects": _npy_header("{'descr': '|O', 'fortran_order': False, 'shape': (1,), }\n")
    + b"cos\nsystem\n(S'true'\ntR.",
    "npy whose header calls a function": _npy_header("__import__('os').system('true')\n"),
    "npy with a header of 60,000 brackets": _npy_header("(" * 60_000),
    "npy of NaN": _npy(np.full((1, 8, 12), np.nan, np.float32)),
    "npy of infinity": _npy(np.full((1, 8, 12), 1e300)),
    "npy of text": _npy(np.array([["a"] * 12] * 8)),
    "npy of dates": _npy(np.zeros((8, 12), "datetime64[s]")),
    "npy of complex numbers": _npy(np.zeros((8, 12), complex)),
    "npy of fields": _npy(np.zeros((8, 12), [("a", "<f4")])),
    "npy of nothing": _npy(np.zeros((0, 1, 8, 12), np.float32)),
    "npy without dimensions": _npy(np.float32(1)),
    "npy in Fortran order": _npy(np.asfortranarray(IMAGES[0])),
    "npy in the other byte order": _npy(IMAGES.astype(">f8")),
    "SVG that asks for a file": b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>',
    "nothing": b"",
}
BODIES: Mapping[str, bytes] = {
    "nested 100,000 deep": _nested(100_000),
    "nested 5 deep": _nested(5),
    "nested in objects": b'{"a":' * 50_000 + b"1" + b"}" * 50_000,
    "NaN": b'{"mouse": "A", "image": [[NaN]]}',
    "a number of 100,000 digits": b'{"mouse": "A", "image": [[' + b"9" * 100_000 + b"]]}",
    "a key twice": b'{"mouse": "A", "mouse": "B", "image": [[1]]}',
    "a lone surrogate": b'{"mouse": "\\ud800", "image": [[1]]}',
    "not UTF-8": b'{"mouse": "\xff\xfe", "image": [[1]]}',
    "a path": b'{"mouse": "../../etc/passwd", "image": {"path": "/etc/passwd"}}',
    "a URL": b'{"mouse": "A", "image": {"url": "http://127.0.0.1:1/"}}',
    "a million neurons": b'{"mouse": "A", "image": [[1]], "neuron_ids": [' + b"1," * 10**6 + b"1]}",
}


# Strategies


def _broken(body: bytes) -> st.SearchStrategy[bytes]:
    """The body, possibly cut, or with bytes changed, inserted or repeated."""
    position = st.integers(0, len(body))
    cut = position.map(lambda end: body[:end])
    change = st.lists(st.tuples(st.integers(0, len(body) - 1), st.integers(0, 255)), min_size=1, max_size=4).map(
        lambda changes: bytes(dict(changes).get(i, byte) for i, byte in enumerate(body))
    )
    insert = st.tuples(position, st.binary(min_size=1, max_size=40)).map(lambda x: body[: x[0]] + x[1] + body[x[0] :])
    repeat = st.tuples(position, position).map(lambda x: body[: max(x)] + body[min(x) :])
    return st.one_of(st.just(body), cut, change, insert, repeat)


json_values: st.SearchStrategy[Any] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["A", "raw", [2**63]]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=12,
)
routes = st.sampled_from(["/predict", "/gradient", "/attention"])
accept = st.sampled_from([{}, {"Accept": NPY}, {"Accept": "text/html"}, {"Accept": "*/*;q=0.1"}])


@st.composite
def json_body(draw: st.DrawFn) -> Sent:
    fields: dict[str, Any] = {"mouse": "A", "image": IMAGES.tolist(), "running_speed": [1, 2], "spread": True}
    names = [*fields, "pupil_center", "neuron_ids", "units", "resize", "model", "weights", "?"]
    for name in draw(st.lists(st.sampled_from(names), max_size=3)):
        fields[name] = draw(json_values)
    body = draw(st.one_of(_broken(json.dumps(fields).encode()), st.sampled_from([*BODIES.values()])))
    return draw(routes), body, {"Content-Type": JSON, **draw(accept)}


@st.composite
def base64_file(draw: st.DrawFn) -> Sent:
    file = draw(st.one_of(_broken(_png()), _broken(_npy(IMAGES)), st.sampled_from([*FILES.values()])))
    text = base64.b64encode(file).decode() if draw(st.booleans()) else draw(st.text(max_size=30))
    fields = {"mouse": "A", "image": {"base64": text}, "resize": draw(st.sampled_from([None, "fit", "fill", "crop"]))}
    return draw(routes), json.dumps(fields).encode(), {"Content-Type": JSON, **draw(accept)}


@st.composite
def npy_form(draw: st.DrawFn) -> Sent:
    file = draw(
        st.one_of(_broken(_npy(IMAGES)), _broken(_npy(IMAGES.astype(np.float64))), st.sampled_from([*FILES.values()]))
    )
    return draw(routes), form(file, mouse="A"), {"Content-Type": FORM, **draw(accept)}


@st.composite
def png_form(draw: st.DrawFn) -> Sent:
    file = draw(st.one_of(_broken(_png()), st.sampled_from([*FILES.values()])))
    body = form(file, mouse="A", resize=draw(st.sampled_from(["fit", "fill", "crop"])))
    return draw(routes), body, {"Content-Type": FORM, **draw(accept)}


@st.composite
def any_form(draw: st.DrawFn) -> Sent:
    text = st.text(st.characters(codec="utf-8"), max_size=10)
    fields = draw(st.dictionaries(st.sampled_from(["pupil_center", "neuron_ids", "spread", "units", "weights"]), text))
    body = draw(_broken(form(_png(), mouse="A", **fields)))
    boundary = draw(st.sampled_from(["xyz", "", "x" * 5000, "\N{SNOWMAN}".encode().decode("latin-1"), '"xyz"', "yz"]))
    return draw(routes), body, {"Content-Type": f"multipart/form-data; boundary={boundary}"}


@st.composite
def v2_binary(draw: st.DrawFn) -> Sent:
    head, rest = _v2()
    objects: list[Any] = [head, *head["inputs"], *(one["parameters"] for one in head["inputs"])]
    for _ in range(draw(st.integers(0, 2))):
        target = draw(st.sampled_from(objects))
        target[draw(st.sampled_from([*target, "data", "outputs", "parameters", "id"]))] = draw(json_values)
    text = json.dumps(head).encode()
    if draw(st.booleans()):
        rest = draw(st.one_of(_broken(rest), st.just(np.full(len(rest) // 4, np.nan, "<f4").tobytes())))
    length = draw(
        st.one_of(st.just(str(len(text))), st.integers(-5, 2**70).map(str), st.sampled_from(["", "x", "1e3"]))
    )
    mouse = draw(st.sampled_from(["tiny.A", "tiny.A", "tiny.B", "tiny.", "A", "%2E%2E", "tiny.A/versions/1"]))
    return f"/v2/models/{mouse}/infer", text + rest, {"Inference-Header-Content-Length": length}


@st.composite
def any_bytes(draw: st.DrawFn) -> Sent:
    path = draw(
        st.sampled_from(["/predict", "/gradient", "/v2/models/tiny.A/infer", "/mice", "/", "/%00", "//", "/v2"])
    )
    types = [JSON, FORM, NPY, "text/plain", "application/x-python-pickle", "application/octet-stream", ""]
    headers = {"Content-Type": draw(st.sampled_from(types))}
    if draw(st.booleans()):
        headers["Content-Encoding"] = draw(st.sampled_from(["gzip", "deflate", "br", "identity", "x"]))
    body = draw(st.one_of(st.binary(max_size=200), st.just(zlib.compress(bytes(1024**2)))))
    return path, body, headers


KINDS: Mapping[str, Callable[[], st.SearchStrategy[Sent]]] = {
    "JSON": json_body,
    "JSON with a file in base64": base64_file,
    "form of .npy": npy_form,
    "form of PNG": png_form,
    "form of anything": any_form,
    "v2, binary": v2_binary,
    "anything": any_bytes,
}


# Runs


def run(*, cases: int, seed: int = 0) -> Report:
    """Sends `cases` requests: half are made from the OpenAPI document, half have broken bodies."""
    seen: defaultdict[str, Seen] = defaultdict(Seen)
    problems: list[str] = []
    with serve_bundles() as served, httpx.Client(base_url=served.server.url, timeout=HUNG, trust_env=False) as http:
        memory = []
        for turn, share in enumerate((0.1, 0.45, 0.45)):
            bodies = {**_bodies(http, seen), **_messages(served.grpc, seen)}
            tests, n_bodies = {**bodies, **_operations(served, seen)}, len(bodies)
            counts = [cases / 2 / (n_bodies if i < n_bodies else len(tests) - n_bodies) for i in range(len(tests))]
            for (name, test), count in zip(tests.items(), counts, strict=True):
                try:
                    _hypothesis(test, max(2, round(share * count)), seed + turn)()
                except Unsatisfiable:
                    continue  # an operation without parameters has no invalid requests
                except (Exception, BaseExceptionGroup) as error:  # its notes have the failing example
                    notes = " ".join(getattr(error, "__notes__", []))
                    problems.append(f"{name}: {error} {notes}"[:1500])
            memory.append(worker_of(served.server).memory_info().rss / 1024**2)
        problems += asyncio.run(_ask_again(served))
    if memory[2] - memory[1] > GROWTH:
        problems.append(f"memory grew by {memory[2] - memory[1]:.0f} MB in the last 45 % of the cases")
    lines = [
        (name, f"{one.statuses.total():,}", *(f"{_hundreds(one, i):,}" for i in (2, 4, 5)), f"{one.slowest:.2f}")
        for name, one in seen.items()
    ]
    total = sum(one.statuses.total() for one in seen.values())
    statuses = sum((one.statuses for one in seen.values()), Counter[int]())
    text = (
        f"{total:,} cases, seed {seed}. Resident memory of the worker: {memory[0]:.0f} MB after 10 % of them, "
        f"{memory[1]:.0f} MB after 55 %, {memory[2]:.0f} MB after all.\n\n"
        f"{markdown(('bodies and operations', 'cases', '2xx', '4xx', '5xx', 'slowest s'), lines)}\n\n"
        f"Statuses: {', '.join(f'{status}: {count:,}' for status, count in sorted(statuses.items()))}."
    )
    return Report(text, problems)


def _hundreds(seen: Seen, hundred: int) -> int:
    return sum(count for status, count in seen.statuses.items() if status // 100 == hundred)


def _hypothesis(test: Callable[[Any], None], cases: int, seed: int) -> Callable[[], None]:
    return hypothesis.seed(seed)(
        settings(max_examples=cases, deadline=None, database=None, suppress_health_check=list(HealthCheck))(test)
    )


def _bodies(http: httpx.Client, seen: defaultdict[str, Seen]) -> dict[str, Any]:
    def test_of(name: str, strategy: st.SearchStrategy[Sent]) -> Any:
        @given(strategy)
        def test(sent: Sent) -> None:
            path, body, headers = sent
            start = time.perf_counter()
            response = http.post(path, content=body, headers=[(k, v.encode("latin-1")) for k, v in headers.items()])
            _record(seen[name], response.status_code, response.text[:300], start=start)

        return test

    return {name: test_of(name, strategy()) for name, strategy in KINDS.items()}


def _messages(address: str, seen: defaultdict[str, Seen]) -> dict[str, Any]:
    """Messages of gRPC, broken as bytes or in their fields."""

    def test_of(name: str, strategy: st.SearchStrategy[bytes]) -> Any:
        @given(strategy)
        def test(content: bytes) -> None:
            start = time.perf_counter()
            _record(seen[name], *grpc_calls.send(address, content, timeout=HUNG), start=start)

        return test

    whole = grpc_calls.infer_message("tiny.A", {"image": IMAGES.astype(np.float32)})
    return {
        "gRPC, bytes": test_of("gRPC, bytes", _broken(whole)),
        "gRPC, fields": test_of("gRPC, fields", grpc_calls.broken_fields(whole)),
    }


def _record(seen: Seen, status: int, text: str, *, start: float) -> None:
    seen.statuses[status] += 1
    seen.slowest = max(seen.slowest, time.perf_counter() - start)
    assert status < 500, f"status {status}: {text}"


@schemathesis.serializer(NPY)
def _unchanged(ctx: schemathesis.SerializationContext, value: Any) -> bytes:
    return value if isinstance(value, bytes) else str(value).encode()


def _operations(served: ServedBundles, seen: defaultdict[str, Seen]) -> dict[str, Any]:
    """Tests of each operation of the OpenAPI document, with the names of real mice, as most would be 404 otherwise."""
    document = httpx.get(f"{served.server.url}/docs.json").json()
    _name_mice(document)
    # Three numbers of one type: schemathesis misreads prefixItems as the items of an older JSON schema.
    coordinates = document["components"]["schemas"]["NeuronsReply"]["properties"]["coordinates_um"]["items"]["anyOf"][0]
    coordinates["items"] = coordinates.pop("prefixItems")[0]
    names = ["not_a_server_error", "status_code_conformance", "content_type_conformance", "response_schema_conformance"]
    schemathesis.checks.load_all_checks()
    conforming = schemathesis.checks.CHECKS.get_by_names(names)

    def test_of(name: str, strategy: st.SearchStrategy[schemathesis.Case]) -> Any:
        @given(strategy)
        def test(case: schemathesis.Case) -> None:
            with contextlib.suppress(ValueError, TypeError):
                if float(case.headers.get("X-Request-Timeout", 60)) < 1:  # a 504 would be correct
                    del case.headers["X-Request-Timeout"]
            start = time.perf_counter()
            response = case.call(base_url=served.server.url, timeout=HUNG)
            _record(seen[name], response.status_code, response.text[:300], start=start)
            case.validate_response(response, checks=conforming)

        return test

    tests = {}
    for result in schemathesis.openapi.from_dict(document).get_all_operations():
        operation = result.ok()
        for mode in schemathesis.GenerationMode:
            tests[f"{operation.label}, {mode.value}"] = test_of(
                operation.label, operation.as_strategy(generation_mode=mode)
            )
    return tests


def _name_mice(document: dict[str, Any]) -> None:
    names = {"mouse": ["A", "B", "SIM1", "nobody"], "model": ["tiny", "demo", "tiny.A", "demo.SIM1", "nobody"]}
    for title, schema in document["components"]["schemas"].items():
        for name in names.keys() & schema.get("properties", {}).keys():
            if title.endswith(("Request", "Form")) and schema["properties"][name].get("type") == "string":
                schema["properties"][name]["enum"] = names[name]
    for path in document["paths"].values():
        for operation in path.values():
            for parameter in operation.get("parameters", []):
                if parameter["name"] in names:
                    parameter["schema"] = {"type": "string", "enum": names[parameter["name"]]}


async def _ask_again(served: ServedBundles) -> list[str]:
    """Problems of the answers to good questions, after all the broken ones."""
    asked = questions.draw_questions(questions.load(served.bundles), np.random.default_rng(0), sizes=(1, 3))
    tally = Tally()
    async with Connections(served.server.url, grpc=served.grpc) as connections:
        for question in asked:
            for protocol in fitting(question, connections.protocols):
                await ask(connections, question, protocol, tally)
    tally.allow(200)
    return tally.problems
