"""The gRPC service, in this process, asked by an unmodified `tritonclient` and by hand."""

from __future__ import annotations

import asyncio
import logging
import shutil
import subprocess
import sys
import threading
import warnings
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import httpx
import numpy as np
import pytest
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from support.in_process import cpu_settings, serving
from support.live_server import free_port
from support.tiny_bundle import TinyTwin, write_tiny_bundle

from server.grpc_api import messages
from server.inference.engine import Engine

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)
    import tritonclient.grpc as triton
    import tritonclient.grpc.aio as triton_aio
    from tritonclient.utils import InferenceServerException

KEY, ADMIN = "a-key-of-the-lab-0123", "an-admin-key-of-the-lab"
SERVICE = "/inference.GRPCInferenceService/"


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@asynccontextmanager
async def served(
    *folders: Path, until_loaded: bool = True, **more: Any
) -> AsyncIterator[tuple[str, httpx.AsyncClient]]:
    """The address of a gRPC service, and a client of the same server's HTTP."""
    address = f"127.0.0.1:{free_port()}"
    async with serving(cpu_settings(*folders, grpc=(address,), **more)) as http:
        yield address, http


@asynccontextmanager
async def client_of(address: str) -> AsyncIterator[triton_aio.InferenceServerClient]:
    client = triton_aio.InferenceServerClient(address)
    try:
        yield client
    finally:
        await client.close()


def inputs(arrays: tuple[np.ndarray, ...], neuron_ids: list[int] | None = None) -> list[triton.InferInput]:
    tensors = []
    for name, array in zip(("image", "behavior", "pupil_center"), arrays, strict=True):
        tensors.append(triton.InferInput(name, list(array.shape), "FP32"))
        tensors[-1].set_data_from_numpy(array)
    if neuron_ids is not None:
        tensors.append(triton.InferInput("neuron_ids", [len(neuron_ids)], "INT64"))
        tensors[-1].set_data_from_numpy(np.array(neuron_ids, np.int64))
    return tensors


async def call(address: str, method: str, content: bytes, **more: Any) -> bytes:
    """One call by hand."""
    async with grpc.aio.insecure_channel(address) as channel:
        reply: bytes = await channel.unary_unary(method)(content, **more)
        return reply


async def refusal_of(awaitable: Any) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await awaitable
    return caught.value


def test_the_messages_are_what_protoc_makes_of_the_protocol(tmp_path: Path) -> None:
    folder = Path(messages.__file__).parent
    made = tmp_path / "made.binpb"
    command = [sys.executable, "-m", "grpc_tools.protoc", f"-I{folder}", f"--descriptor_set_out={made}"]
    subprocess.run([*command, "inference.proto"], check=True)
    assert made.read_bytes() == (folder / "inference.binpb").read_bytes()


def test_every_message_reads_as_tritonclients() -> None:
    """Each of our fields has the name, number and type of the published protocol."""
    published = triton.service_pb2.DESCRIPTOR
    theirs_by_name = {**triton.model_config_pb2.DESCRIPTOR.message_types_by_name, **published.message_types_by_name}
    pairs = [
        (ours, theirs_by_name[name])
        for name, ours in messages.POOL.FindFileByName("inference.proto").message_types_by_name.items()
    ]
    compared = 0
    while pairs:
        ours, theirs = pairs.pop()
        pairs += [(nested, theirs.nested_types_by_name[name]) for name, nested in ours.nested_types_by_name.items()]
        for field in ours.fields:
            other = theirs.fields_by_name[field.name]
            assert (field.number, field.type, field.is_repeated) == (other.number, other.type, other.is_repeated)
            compared += 1
    assert compared > 80
    methods = messages.POOL.FindServiceByName(messages.SERVICE).methods
    of_service = published.services_by_name["GRPCInferenceService"].methods_by_name
    for method in methods:
        other = of_service[method.name]
        assert (method.input_type.name, method.output_type.name) == (other.input_type.name, other.output_type.name)


@pytest.mark.parametrize("n_images", [3, 150])  # the larger one is read in a thread
async def test_infer_gives_what_numpy_computes_and_http_says(
    twin: TinyTwin, rng: np.random.Generator, n_images: int
) -> None:
    arrays = twin.draw("A", rng, n_images)
    async with served(twin.folder) as (address, http), client_of(address) as client:
        result = await client.infer(
            "tiny.A", inputs(arrays), request_id="trial 7", parameters={"units": "standardized"}
        )
        fields = [
            {"name": name, "datatype": "FP32", "shape": array.shape, "data": array.ravel().tolist()}
            for name, array in zip(("image", "behavior", "pupil_center"), arrays, strict=True)
        ]
        said = (await http.post("/v2/models/tiny.A/infer", json={"inputs": fields, "id": "trial 7"})).json()
    members = twin.member_responses("A", *arrays)
    np.testing.assert_allclose(result.as_numpy("responses"), members.mean(0), atol=1e-5)
    np.testing.assert_allclose(result.as_numpy("spread"), members.std(0), atol=1e-5)
    response = result.get_response()
    parameters = {
        name: getattr(value, value.WhichOneof("parameter_choice")) for name, value in response.parameters.items()
    }
    assert parameters == said["parameters"] | {"triton_final_response": True}
    assert (response.id, response.model_name, response.model_version) == ("trial 7", "tiny.A", "1")
    for output in said["outputs"]:
        np.testing.assert_array_equal(result.as_numpy(output["name"]).ravel(), np.array(output["data"], np.float32))


async def test_neurons_outputs_and_versions_are_chosen_and_typed_contents_are_read(
    twin: TinyTwin, rng: np.random.Generator
) -> None:
    arrays = twin.draw("A", rng, 2)
    ids = twin.mice["A"].neurons.ids[[4, 1]].tolist()
    typed = triton.service_pb2.ModelInferRequest(model_name="tiny.A", model_version="1")
    for tensor, values in zip(inputs(arrays, ids), (*arrays, ids), strict=True):
        one = typed.inputs.add()
        one.CopyFrom(tensor._get_tensor())
        contents = one.contents.int64_contents if one.datatype == "INT64" else one.contents.fp32_contents
        contents.extend(np.ravel(values).tolist())
    async with served(twin.folder) as (address, _), client_of(address) as client:
        wanted = [triton.InferRequestedOutput("responses")]
        raw = await client.infer("tiny.A", inputs(arrays, ids), outputs=wanted, compression_algorithm="gzip")
        reply = await call(address, f"{SERVICE}ModelInfer", typed.SerializeToString())
    expected = twin.answer("A", *arrays)[:, [4, 1]]
    np.testing.assert_allclose(raw.as_numpy("responses"), expected, atol=1e-5)
    assert raw.as_numpy("spread") is None
    answer = triton.service_pb2.ModelInferResponse.FromString(reply)
    np.testing.assert_array_equal(
        np.frombuffer(answer.raw_output_contents[0], "<f4").reshape(2, 2), raw.as_numpy("responses")
    )


async def test_the_client_without_asyncio_asks_everything(twin: TinyTwin, rng: np.random.Generator) -> None:
    arrays = twin.draw("B", rng, 2)

    def ask(address: str) -> None:
        with triton.InferenceServerClient(address) as client:
            assert client.is_server_live()
            assert client.is_server_ready()
            assert client.is_model_ready("tiny.B")
            assert client.get_server_metadata().name == "v1t-twins"
            metadata = client.get_model_metadata("tiny.B")
            assert [one.name for one in metadata.inputs] == ["image", "behavior", "pupil_center", "neuron_ids"]
            assert list(metadata.inputs[0].shape) == [-1, *arrays[0].shape[1:]]
            assert list(metadata.versions) == ["1"]
            config = client.get_model_config("tiny.B", "1").config
            assert [triton.model_config_pb2.DataType.Name(one.data_type) for one in config.input][3] == "TYPE_INT64"
            assert [one.optional for one in config.input] == [False, True, True, True]
            index = client.get_model_repository_index().models
            assert [(one.name, one.state) for one in index] == [("tiny.A", "READY"), ("tiny.B", "READY")]
            result = client.infer("tiny.B", inputs(arrays))
            np.testing.assert_allclose(result.as_numpy("responses"), twin.answer("B", *arrays), atol=1e-5)
            (statistics,) = client.get_inference_statistics("tiny.B").model_stats
            assert (statistics.inference_count, statistics.inference_stats.success.count) == (2, 1)
            assert len(client.get_inference_statistics().model_stats) == 2

    async with served(twin.folder) as (address, _):
        await asyncio.to_thread(ask, address)


async def test_a_stream_answers_in_order_and_an_error_does_not_end_it(twin: TinyTwin, rng: np.random.Generator) -> None:
    asked = [twin.draw("A", rng, int(n)) for n in rng.integers(1, 5, 30)]

    async def questions() -> AsyncIterator[dict[str, Any]]:
        for number, arrays in enumerate(asked):
            model = "tiny.nobody" if number == 11 else "tiny.A"
            yield {"model_name": model, "inputs": inputs(arrays), "request_id": str(number)}

    async with served(twin.folder) as (address, _), client_of(address) as client:
        answers = [answer async for answer in client.stream_infer(questions())]
    assert len(answers) == 30
    for number, ((result, error), arrays) in enumerate(zip(answers, asked, strict=True)):
        if number == 11:
            assert "there is no such model; got 'tiny.nobody'" in str(error)
            continue
        assert error is None
        assert result.get_response().id == str(number)
        np.testing.assert_allclose(result.as_numpy("responses"), twin.answer("A", *arrays), atol=1e-5)


async def test_a_cancelled_call_leaves_the_queue(
    twin: TinyTwin, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on, inside = threading.Event(), threading.Event()
    ran: list[int] = []
    compute = Engine.predict_many

    def slow(self: Engine, stimuli: Any) -> Any:
        ran.append(sum(len(one.image) for one in stimuli))
        inside.set()
        assert go_on.wait(30)
        return compute(self, stimuli)

    async with served(twin.folder) as (address, http), client_of(address) as client:
        monkeypatch.setattr(Engine, "predict_many", slow)
        first = asyncio.create_task(client.infer("tiny.A", inputs(twin.draw("A", rng, 1))))
        await asyncio.to_thread(inside.wait, 30)
        waiting = asyncio.create_task(client.infer("tiny.A", inputs(twin.draw("A", rng, 3))))
        await _metric(http, "v1t_queue_images", 3)
        waiting.cancel()
        await _metric(http, "v1t_queue_images", 0)
        go_on.set()
        await first
        await _metric(http, "v1t_requests_in_flight", 1)  # the one that asks
        with pytest.raises(asyncio.CancelledError):
            await waiting
    assert ran == [1]


async def _metric(http: httpx.AsyncClient, name: str, value: float) -> None:
    """Waits until a metric has this value."""
    for _ in range(1000):
        if f"\n{name} {value:.1f}\n" in (await http.get("/metrics")).text:
            return
        await asyncio.sleep(0.005)
    raise AssertionError((await http.get("/metrics")).text)


async def test_the_deadline_of_a_call_is_the_requests(
    twin: TinyTwin, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on = threading.Event()

    def hang(self: Engine, stimuli: Any) -> Any:
        assert go_on.wait(30)
        raise RuntimeError

    request = triton.service_pb2.ModelInferRequest(model_name="tiny.A")
    for tensor in inputs(twin.draw("A", rng, 1)):
        request.inputs.append(tensor._get_tensor())
        request.raw_input_contents.append(tensor._get_content())
    async with served(twin.folder) as (address, http):
        monkeypatch.setattr(Engine, "predict_many", hang)
        error = await refusal_of(call(address, f"{SERVICE}ModelInfer", request.SerializeToString(), timeout=0.3))
        assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        request.parameters["timeout"].int64_param = 200_000  # microseconds, the protocol's own
        error = await refusal_of(call(address, f"{SERVICE}ModelInfer", request.SerializeToString()))
        assert error.code() in (grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.UNAVAILABLE)
        assert "expected at most 0.2 s" in error.details()
        await _metric(http, "v1t_queue_images", 0)
        go_on.set()


def _message(change: Callable[[Any], object] = lambda _: None) -> bytes:
    image = np.zeros((1, 1, 8, 12), np.float32)
    request = triton.service_pb2.ModelInferRequest(model_name="tiny.A")
    request.inputs.add(name="image", datatype="FP32", shape=image.shape)
    request.raw_input_contents.append(image.tobytes())
    change(request)
    return request.SerializeToString()


NOT_NUMBERS = np.full(96, np.nan, "<f4").tobytes()
INVALID, NOT_FOUND = grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND
WRONG: dict[str, tuple[Callable[[Any], object], grpc.StatusCode, str]] = {
    "model": (lambda r: setattr(r, "model_name", "tiny.Z"), NOT_FOUND, "RepositoryIndex lists them"),
    "no model": (lambda r: setattr(r, "model_name", ""), NOT_FOUND, "there is no such model"),
    "another path": (lambda r: setattr(r, "model_name", "tiny.A/versions/1"), NOT_FOUND, "there is no such model"),
    "version": (lambda r: setattr(r, "model_version", "9"), NOT_FOUND, "no such version; got '9'; expected 1"),
    "datatype": (lambda r: setattr(r.inputs[0], "datatype", "FP64"), INVALID, "FP64"),
    "integers": (lambda r: setattr(r.inputs[0], "datatype", "INT64"), INVALID, "does not fit its shape; got 48 values"),
    "name": (lambda r: setattr(r.inputs[0], "name", "picture"), INVALID, "picture"),
    "size": (lambda r: r.inputs[0].shape.__setitem__(0, 2), INVALID, "got 96 values of 'FP32'; expected 192"),
    "shape": (lambda r: r.inputs[0].shape.__setitem__(slice(2, 4), [12, 8]), INVALID, "expect"),
    "negative": (lambda r: r.inputs[0].shape.__setitem__(slice(0, 2), [-1, -1]), INVALID, "shape"),
    "no batch": (lambda r: r.inputs[0].shape.__setitem__(slice(0, 4), [8, 12]), INVALID, "image is not a batch"),
    "two raw": (lambda r: r.raw_input_contents.append(b"1234"), INVALID, "got 2 for 1 inputs; expected one for each"),
    "no data": (lambda r: r.ClearField("raw_input_contents"), INVALID, "got none; expected fp32_contents"),
    "both": (lambda r: r.inputs[0].contents.fp32_contents.append(1), INVALID, "no contents beside them"),
    "output": (lambda r: r.outputs.add(name="logits"), INVALID, "logits"),
    "parameter": (lambda r: setattr(r.parameters["uints"], "string_param", "raw"), INVALID, "uints"),
    "shared memory": (
        lambda r: setattr(r.inputs[0].parameters["shared_memory_region"], "string_param", "x"),
        INVALID,
        "shared_memory_region",
    ),
    "not finite": (
        lambda r: r.raw_input_contents.__setitem__(0, np.full(96, np.nan, "<f4").tobytes()),
        INVALID,
        "finite",
    ),
}


async def test_bad_calls_are_refused_with_their_status_and_our_message(twin: TinyTwin) -> None:
    async with served(twin.folder) as (address, _):
        for name, (change, status, words) in WRONG.items():
            error = await refusal_of(call(address, f"{SERVICE}ModelInfer", _message(change)))
            assert (name, error.code()) == (name, status), error.details()
            assert words in error.details(), (name, error.details())
        error = await refusal_of(call(address, f"{SERVICE}ModelInfer", b"\xff\xff garbage"))
        assert (error.code(), error.details()) == (
            INVALID,
            "the message is not a ModelInferRequest; got 10 bytes; expected ModelInferRequest",
        )
        error = await refusal_of(call(address, f"{SERVICE}ModelDream", b""))
        assert error.code() is grpc.StatusCode.UNIMPLEMENTED
        await call(address, f"{SERVICE}ModelInfer", _message())  # unharmed


async def test_a_message_over_the_limit_is_refused_unread(twin: TinyTwin, caplog: pytest.LogCaptureFixture) -> None:
    async with served(twin.folder, max_body=100_000) as (address, _):
        large = _message(lambda r: r.raw_input_contents.append(bytes(200_000)))
        for compression in (grpc.Compression.NoCompression, grpc.Compression.Gzip):
            error = await refusal_of(call(address, f"{SERVICE}ModelInfer", large, compression=compression))
            assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert "larger than max" in error.details()
        async with grpc.aio.insecure_channel(address) as channel:
            error = await refusal_of(channel.stream_unary(f"{SERVICE}ModelInfer")(iter([])))
        assert (error.code(), error.details()) == (INVALID, "the call has no message")
        assert not [record for record in caplog.records if record.levelno >= logging.ERROR]
        await call(address, f"{SERVICE}ModelInfer", _message())


async def test_keys_limits_and_the_log_line_are_those_of_http(
    twin: TinyTwin, rng: np.random.Generator, caplog: pytest.LogCaptureFixture
) -> None:
    arrays = twin.draw("A", rng, 1)
    more: dict[str, Any] = {"api_keys": (KEY,), "access_log": True}
    async with served(twin.folder, **more) as (address, http), client_of(address) as client:
        assert await client.is_server_live()
        assert await client.is_server_ready()
        with pytest.raises(
            InferenceServerException, match="an API key is needed; expected Authorization: Bearer"
        ) as no:
            await client.infer("tiny.A", inputs(arrays))
        assert no.value.status() == "StatusCode.UNAUTHENTICATED"
        for wrong in ("Bearer another-key-of-16", ADMIN):
            with pytest.raises(InferenceServerException, match="API key"):
                await client.get_model_repository_index(headers={"authorization": wrong})
        caplog.set_level(logging.INFO, "bentoml.v1t")
        headers = {"authorization": f"Bearer {KEY}", "x-request-id": "turn-12"}
        await client.infer("tiny.A", inputs(arrays), headers=headers)
        counted = (await http.get("/metrics", headers={"authorization": f"Bearer {KEY}"})).text
    (line,) = [record for record in caplog.records if "turn-12" in record.getMessage()]
    fields = line.fields  # type: ignore[attr-defined]
    assert (fields["scheme"], fields["status"], fields["mouse"]) == ("grpc", 200, "A")
    assert fields["caller"].startswith("key-")
    assert 'v1t_requests_total{mouse="",route="other",status="401"} 3.0' in counted
    assert 'v1t_requests_total{mouse="A",route="/v2/models/{model}/infer",status="200"} 1.0' in counted


async def test_a_caller_has_one_limit_of_requests_over_both(
    twin: TinyTwin, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on = threading.Event()
    compute = Engine.predict_many
    arrays = twin.draw("A", rng, 1)
    async with served(twin.folder, max_concurrent=1) as (address, http), client_of(address) as client:
        monkeypatch.setattr(Engine, "predict_many", lambda self, stimuli: go_on.wait(30) and compute(self, stimuli))
        first = asyncio.create_task(client.infer("tiny.A", inputs(arrays)))
        await asyncio.sleep(0.2)
        error = await refusal_of(call(address, f"{SERVICE}ModelInfer", _message()))
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "too many of your requests" in error.details()
        assert dict(error.trailing_metadata())["retry-after"] == "1"
        assert (await http.get("/mice")).status_code == 429
        go_on.set()
        await first


async def test_load_and_unload_take_in_what_is_on_disk_with_an_admin_key(tmp_path: Path) -> None:
    bundles = tmp_path / "bundles"
    write_tiny_bundle(bundles / "one", name="one", mice=("A",))
    headers = {"authorization": f"Bearer {ADMIN}"}
    async with served(bundles, admin_keys=(ADMIN,)) as (address, _), client_of(address) as client:
        write_tiny_bundle(bundles / "two", name="two", mice=("B",))
        with pytest.raises(InferenceServerException, match="API key"):
            await client.load_model("two.B")
        await client.load_model("two.B", headers=headers)
        assert await client.is_model_ready("two.B")
        with pytest.raises(InferenceServerException, match="there is no such model"):
            await client.load_model("three", headers=headers)
        with pytest.raises(InferenceServerException, match="Move its bundle out of the folder"):
            await client.unload_model("two", headers=headers)
        with pytest.raises(InferenceServerException, match="loaded as it is on disk"):
            await client.load_model("two", headers=headers, config="{}")
        shutil.rmtree(bundles / "two")
        await client.unload_model("two", headers=headers)
        assert [one.name for one in (await client.get_model_repository_index()).models] == ["one.A"]
    async with served(bundles) as (address, _), client_of(address) as client:
        with pytest.raises(InferenceServerException, match="no admin routes"):
            await client.load_model("one", headers=headers)


async def test_health_follows_readiness_and_reflection_describes_every_service(tmp_path: Path) -> None:
    bundles = tmp_path / "bundles"
    bad = write_tiny_bundle(bundles / "bad", name="bad", mice=("A",))
    (bad.folder / bad.manifest.mice["A"].stems[0].path).unlink()
    check, response = "/grpc.health.v1.Health/Check", health_pb2.HealthCheckResponse
    async with served(bundles, admin_keys=(ADMIN,)) as (address, http), client_of(address) as client:
        assert response.FromString(await call(address, check, b"")).status == response.NOT_SERVING
        assert await client.is_server_live()
        assert not await client.is_server_ready()
        error = await refusal_of(call(address, f"{SERVICE}ModelInfer", _message()))
        assert error.code() is grpc.StatusCode.UNAVAILABLE
        assert "bad" in error.details()
        async with grpc.aio.insecure_channel(address) as channel:
            watch = channel.unary_stream("/grpc.health.v1.Health/Watch")(b"")
            assert response.FromString(await watch.read()).status == response.NOT_SERVING
            shutil.rmtree(bundles / "bad")
            write_tiny_bundle(bundles / "good")
            assert (await http.post("/admin/reload", headers={"authorization": f"Bearer {ADMIN}"})).status_code == 200
            assert response.FromString(await watch.read()).status == response.SERVING
        assert response.FromString(await call(address, check, b"")).status == response.SERVING

        def reflect() -> tuple[list[str], str]:
            with grpc.insecure_channel(address) as channel:
                database = ProtoReflectionDescriptorDatabase(channel)
                file = database.FindFileContainingSymbol(messages.SERVICE)
                return sorted(database.get_services()), file.name

        services, file = await asyncio.to_thread(reflect)
    assert services == [
        "grpc.health.v1.Health",
        "grpc.reflection.v1alpha.ServerReflection",
        "inference.GRPCInferenceService",
    ]
    assert file == "inference.proto"


async def test_reflection_and_streams_need_a_key_where_the_server_has_some(twin: TinyTwin) -> None:
    reflect = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
    async with served(twin.folder, api_keys=(KEY,)) as (address, _), grpc.aio.insecure_channel(address) as channel:
        for method in (reflect, f"{SERVICE}ModelStreamInfer", "/grpc.health.v1.Health/Watch"):
            stream = channel.stream_stream(method)(iter([b""]))
            error = await refusal_of(stream.read())
            assert error.code() is grpc.StatusCode.UNAUTHENTICATED
        assert await channel.unary_unary("/grpc.health.v1.Health/Check")(b"")


async def test_open_streams_are_bounded(twin: TinyTwin) -> None:
    async with (
        served(twin.folder, memory=64 * 1024**2, max_body=8 * 1024**2) as (address, _),
        grpc.aio.insecure_channel(address) as channel,
    ):
        watch = channel.unary_stream("/grpc.health.v1.Health/Watch")
        streams = [watch(b""), watch(b"")]
        for stream in streams:
            await stream.read()
        error = await refusal_of(watch(b"").read())
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "got 3 at once; expected at most 2" in error.details()
        streams[0].cancel()
        await asyncio.sleep(0.1)
        assert await watch(b"").read()
        streams[1].cancel()


async def test_it_listens_on_a_unix_socket(twin: TinyTwin, rng: np.random.Generator, tmp_path: Path) -> None:
    address = f"unix:{tmp_path / 'v1t.sock'}"
    arrays = twin.draw("A", rng, 2)
    async with serving(cpu_settings(twin.folder, grpc=(address,))), client_of(address) as client:
        result = await client.infer("tiny.A", inputs(arrays))
    np.testing.assert_allclose(result.as_numpy("responses"), twin.answer("A", *arrays), atol=1e-5)
