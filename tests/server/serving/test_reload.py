"""Bundles that change while they are served: versions, atomic swaps, bad bundles, and memory that is freed."""

from __future__ import annotations

import asyncio
import gc
import io
import json
import shutil
import threading
import time
import weakref
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import onnx
import psutil
import pytest
from onnx import helper, numpy_helper
from support.tiny_bundle import TinyTwin, write_tiny_bundle

from server.api.app import create_app
from server.api.codecs import schemas
from server.api.middleware import RequestMiddleware
from server.bundle.manifest import MANIFEST, hash_file
from server.errors import InvalidInput, NotFound, NotReady
from server.inference.engine import Engine
from server.inference.noise import enlarge, white_noise
from server.serving.context import Context
from server.serving.loading import load_engine
from server.serving.repository import Repository
from server.serving.telemetry.metrics import Metrics
from server.settings import Settings


async def engine_of(repository: Repository, mouse_id: str) -> Engine:
    """The engine that answers for a mouse, loaded if it is not."""
    return await repository.engine(repository.look_up(mouse_id))


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def make_settings(*places: Path, **more: Any) -> Settings:
    return Settings(bundles=places, provider="cpu", threads=1, **more)


def make_repository(*places: Path, **more: Any) -> Repository:
    return Repository(make_settings(*places, **more), Metrics())


def replace(folder: Path, **more: Any) -> TinyTwin:
    """Replaces a folder with another bundle in one step, like `mv`."""
    aside = folder.with_name(f".{folder.name}.new")
    twin = write_tiny_bundle(aside, **more)
    if folder.exists():
        folder.rename(folder.with_name(f".{folder.name}.old"))
    aside.rename(folder)
    shutil.rmtree(folder.with_name(f".{folder.name}.old"), ignore_errors=True)
    twin.folder = folder
    return twin


def spoil(twin: TinyTwin) -> str:
    """Truncates a graph; returns its name."""
    graph = twin.folder / twin.manifest.cores[0].path
    graph.write_bytes(graph.read_bytes()[:-1])
    return graph.name


@contextmanager
def without_collector() -> Iterator[None]:
    """Switches the garbage collector off, so that objects are freed by reference counts alone."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


# Changes on disk


async def test_a_new_bundle_replaces_the_old_one_which_leaves_memory(tmp_path: Path, rng: np.random.Generator) -> None:
    old = write_tiny_bundle(tmp_path / "tiny", seed=0)
    repository = make_repository(tmp_path)
    await repository.load()
    with without_collector():
        engine = await engine_of(repository, "A")
        image, behavior, pupil_center = old.draw("A", rng)
        gone = weakref.ref(engine)
        new = replace(old.folder, seed=1)
        change = await repository.load()
        assert [bundle.hash for bundle in change.loaded] == [new.manifest.hash]
        assert [bundle.hash for bundle in change.removed] == [old.manifest.hash]
        assert not change.problems
        del change
        # A request that began with the old engine can still use it.
        expected = old.answer("A", image, behavior, pupil_center)
        np.testing.assert_allclose(engine.predict("A", image, behavior, pupil_center), expected, atol=1e-5)
        del engine
        assert gone() is None
    engine = await engine_of(repository, "A")
    assert engine.hash == new.manifest.hash
    expected = new.answer("A", image, behavior, pupil_center)
    np.testing.assert_allclose(engine.predict("A", image, behavior, pupil_center), expected, atol=1e-5)


async def test_a_bundle_that_did_not_change_is_not_loaded_again(tmp_path: Path) -> None:
    write_tiny_bundle(tmp_path / "one", name="one", mice=("A",))
    two = write_tiny_bundle(tmp_path / "two", name="two", mice=("B",))
    repository = make_repository(tmp_path)
    await repository.load()
    before = [await engine_of(repository, "A"), await engine_of(repository, "B")]
    change = await repository.load()
    assert (len(change.loaded), len(change.kept), len(change.removed)) == (0, 2, 0)
    replace(two.folder, name="two", mice=("C",), seed=3)
    write_tiny_bundle(tmp_path / "three", name="three", mice=("D",))
    change = await repository.load()
    assert sorted(bundle.name for bundle in change.loaded) == ["three", "two"]
    assert [bundle.name for bundle in change.kept] == ["one"]
    assert await engine_of(repository, "A") is before[0]
    with pytest.raises(NotFound):
        await engine_of(repository, "B")
    shutil.rmtree(tmp_path / "three")
    change = await repository.load()
    assert [bundle.name for bundle in change.removed] == ["three"]
    assert [record.mouse_id for _, record in repository.records()] == ["A", "C"]


@pytest.mark.parametrize("how", ["cut", "no manifest", "another name", "nothing left"])
async def test_a_bad_bundle_leaves_the_old_one_serving_and_is_named(tmp_path: Path, how: str) -> None:
    other = write_tiny_bundle(tmp_path / "other", name="other", mice=("Z",))
    old = write_tiny_bundle(tmp_path / "tiny", seed=0)
    metrics = Metrics()
    repository = Repository(make_settings(tmp_path), metrics)
    await repository.load()
    if how == "nothing left":
        shutil.rmtree(old.folder)
        shutil.rmtree(other.folder)
        words = "there is no bundle"
    else:
        new = replace(old.folder, seed=1, name="other" if how == "another name" else "tiny")
        words = "'other', as another one" if how == "another name" else spoil(new)
        if how == "no manifest":
            (new.folder / "manifest.json").unlink()
            words = "manifest.json"
    change = await repository.load()
    assert len(change.problems) == 1
    assert words in change.problems[0]
    assert metrics.registry.get_sample_value("v1t_refused") == 1
    assert repository.ready
    assert (await engine_of(repository, "A")).hash == old.manifest.hash
    assert (await engine_of(repository, "Z")).hash == other.manifest.hash
    new = replace(old.folder, seed=2)
    replace(other.folder, name="other", mice=("Z",))
    assert not (await repository.load()).problems
    assert (await engine_of(repository, "A")).hash == new.manifest.hash
    assert metrics.registry.get_sample_value("v1t_refused") == 0


async def test_a_failed_start_is_repaired_by_a_later_check(tmp_path: Path) -> None:
    twin = write_tiny_bundle(tmp_path / "tiny")
    spoil(twin)
    repository = make_repository(tmp_path)
    await repository.load()
    with pytest.raises(NotReady):
        await engine_of(repository, "A")
    write_tiny_bundle(tmp_path / "tiny")
    await repository.load()
    assert (await engine_of(repository, "A")).hash == twin.manifest.hash


async def test_changes_on_disk_are_loaded_by_the_watch(tmp_path: Path) -> None:
    old = write_tiny_bundle(tmp_path / "bundles" / "tiny", seed=0)
    new = write_tiny_bundle(tmp_path / "new", seed=1)
    repository = make_repository(tmp_path / "bundles")
    await repository.load()
    watching = asyncio.create_task(repository.watch(0.1))
    shutil.copytree(new.folder, old.folder, dirs_exist_ok=True)
    async with asyncio.timeout(20):
        while (await engine_of(repository, "A")).hash != new.manifest.hash:
            await asyncio.sleep(0.05)
    (old.folder / "manifest.json").write_text("{")
    await asyncio.sleep(0.5)
    assert (await engine_of(repository, "A")).hash == new.manifest.hash
    assert not watching.done()
    watching.cancel()


async def test_the_watch_waits_until_a_copy_is_complete(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    repository = make_repository(tmp_path)
    states = iter("aabcddddeffff")
    taken: list[str] = []

    async def load() -> None:
        taken.append(last)
        repository._state = last
        if last == "d":
            raise OSError("whatever it is")

    def state_of(places: Any) -> str:
        nonlocal last
        last = next(states, "")
        if not last:
            raise EOFError
        return last

    last = ""
    monkeypatch.setattr("server.serving.repository.state_of", state_of)
    monkeypatch.setattr(repository, "load", load)
    repository._state = "a"
    with pytest.raises(EOFError):
        await repository.watch(0)
    assert taken == ["d", "f"]


# Versions


async def test_numbered_folders_are_versions_of_one_model(tmp_path: Path) -> None:
    twins = {
        number: write_tiny_bundle(tmp_path / "tiny" / number, seed=int(number), mice=mice)
        for number, mice in (("10", ("A", "B")), ("9", ("A", "B")), ("2", ("A",)))
    }
    write_tiny_bundle(tmp_path / "other", name="other", mice=("Z",))
    repository = make_repository(tmp_path)
    await repository.load()
    assert list(repository.versions("tiny")) == ["2", "9", "10"]
    assert repository.look_up("A").hash == twins["10"].manifest.hash
    assert repository.look_up("A", "tiny").version == "10"
    assert repository.look_up("A", "tiny@9").hash == twins["9"].manifest.hash
    assert repository.look_up("Z", "other@1").name == "other"
    with pytest.raises(NotFound, match="no such version; got '3'; expected 2 or 9 or 10"):
        repository.look_up("A", "tiny@3")
    with pytest.raises(NotFound, match="in model 'tiny@2'"):
        repository.look_up("B", "tiny@2")
    assert [record.mouse_id for _, record in repository.records()] == ["Z", "A", "B"]
    shutil.rmtree(tmp_path / "tiny" / "10")
    await repository.load()
    assert repository.look_up("A").version == "9"


# Memory


async def test_the_least_recently_used_bundle_leaves_memory_and_is_loaded_on_its_next_request(
    tmp_path: Path, rng: np.random.Generator
) -> None:
    twins = {name: write_tiny_bundle(tmp_path / name, name=name, mice=(name,), seed=i) for i, name in enumerate("XYZ")}
    metrics = Metrics()
    repository = Repository(make_settings(tmp_path, max_loaded=2), metrics)
    await repository.load()

    def in_memory() -> set[str]:
        samples = next(family for family in metrics.registry.collect() if family.name == "v1t_bundle").samples
        assert len(samples) == 3
        inside = {bundle.name for bundle in repository.bundles if bundle.engine is not None}
        assert {sample.labels["name"] for sample in samples if sample.value} == inside
        return inside

    assert in_memory() == {"Y", "Z"}
    await engine_of(repository, "Y")
    with without_collector():
        gone = weakref.ref(repository.look_up("Z").engine)
        engine = await engine_of(repository, "X")
        assert in_memory() == {"X", "Y"}
        assert gone() is None
    arrays = twins["X"].draw("X", rng)
    np.testing.assert_allclose(engine.predict("X", *arrays), twins["X"].answer("X", *arrays), atol=1e-5)
    assert [record.mouse_id for _, record in repository.records()] == ["X", "Y", "Z"]
    assert len(repository.look_up("Z").neurons["Z"]) == 7


async def test_concurrent_requests_load_a_bundle_once(tmp_path: Path) -> None:
    for name in "XY":
        write_tiny_bundle(tmp_path / name, name=name, mice=(name,))
    loads: list[str] = []
    gate = threading.Event()
    gate.set()

    def load(bundle: Path, settings: Settings) -> Engine:
        assert gate.wait(30)
        loads.append(bundle.name)
        return load_engine(bundle, settings)

    repository = Repository(make_settings(tmp_path, max_loaded=1), Metrics(), load)
    await repository.load()
    gate.clear()
    asking = [asyncio.create_task(engine_of(repository, "X")) for _ in range(5)]
    await asyncio.sleep(0.1)
    asking[0].cancel()  # a request that is cancelled does not affect the others
    assert (await engine_of(repository, "Y")).manifest.name == "Y"  # and a bundle in memory answers without waiting
    gate.set()
    engines = await asyncio.gather(*asking[1:])
    assert len({id(engine) for engine in engines}) == 1
    assert loads == ["X", "Y", "X"]


async def test_a_bundle_that_changed_while_it_was_unloaded_is_not_served_as_the_old_one(
    tmp_path: Path,
) -> None:
    for name in "XY":
        write_tiny_bundle(tmp_path / name, name=name, mice=(name,))
    repository = make_repository(tmp_path, max_loaded=1)
    await repository.load()
    assert repository.look_up("X").engine is None
    new = replace(tmp_path / "X", name="X", mice=("X",), seed=5)
    with pytest.raises(NotReady, match="cannot be loaded again") as refused:
        await engine_of(repository, "X")
    assert "not those that were served" in str(refused.value.hint)
    await repository.load()
    assert (await engine_of(repository, "X")).hash == new.manifest.hash


async def test_a_graph_opened_late_is_that_of_the_bundle(tmp_path: Path, rng: np.random.Generator) -> None:
    twin = write_tiny_bundle(tmp_path / "tiny")
    engine = Engine.load(twin.folder, provider="cpu")
    tensors = {
        name: rng.standard_normal(shape).astype(np.float32)
        for name, shape in (("core_image", (2, 1, 4, 6)), ("core_behavior", (2, 3)))
    }
    core = twin.manifest.cores[0]
    before = engine._graphs.core(core).run(tensors)
    replace(twin.folder, seed=1)
    for name, tensor in engine._graphs.core(core).run(tensors).items():
        np.testing.assert_array_equal(tensor, before[name])


# Under load


@asynccontextmanager
async def running(settings: Settings) -> AsyncIterator[Context]:
    context = Context.open(settings)
    context.batcher.start()
    await context.repository.load()
    yield context
    await context.batcher.close()


async def test_every_answer_is_entirely_of_one_bundle_while_bundles_are_swapped(
    tmp_path: Path, rng: np.random.Generator
) -> None:
    """Requests of three runs each, so that swaps fall between their pieces."""
    twin = write_tiny_bundle(tmp_path / "bundles" / "tiny", seed=0)
    twins = {twin.manifest.hash: twin}
    stop = False
    seen: list[str] = []

    async def ask() -> None:
        while not stop:
            engine = await engine_of(context.repository, "A")
            arrays = twin.draw("A", rng, 6)
            (prediction,) = await context.batcher.compute(engine, [engine.check("A", *arrays)])
            expected = twins[engine.hash].answer("A", *arrays)
            np.testing.assert_allclose(prediction.response, expected, atol=1e-4)
            seen.append(engine.hash)

    async with running(make_settings(tmp_path / "bundles", max_batch=2)) as context:
        asking = [asyncio.create_task(ask()) for _ in range(8)]
        for seed in range(1, 21):
            new = await asyncio.to_thread(replace, twin.folder, seed=seed)
            twins[new.manifest.hash] = new
            change = await context.repository.load()
            assert [bundle.hash for bundle in change.loaded] == [new.manifest.hash]
            await asyncio.sleep(0.01)
        stop = True
        await asyncio.gather(*asking)
        del change
        with without_collector():
            engine = weakref.ref(library_engine(context))
            replace(twin.folder, seed=99)
            await context.repository.load()
            assert engine() is None  # an idle batcher holds no engine
    assert len(set(seen)) > 5
    assert seen.count(seen[0]) < len(seen)


def library_engine(context: Context) -> Engine:
    engine = context.repository.look_up("A").engine
    assert engine is not None
    return engine


async def test_a_mouse_in_several_models_needs_the_model_named(tmp_path: Path) -> None:
    for name in ("one", "two"):
        write_tiny_bundle(tmp_path / name / "3", name=name)
    repository = make_repository(tmp_path)
    await repository.load()
    with pytest.raises(InvalidInput, match="one or two"):
        repository.look_up("A")


# Memory and time


def make_heavy(twin: TinyTwin, megabytes: int, rng: np.random.Generator) -> None:
    """Gives the first core a large weight that is used but does not change the result."""
    file = twin.manifest.cores[0]
    model = onnx.load(twin.folder / file.path)
    graph = model.graph
    ballast = rng.random((3, megabytes * 2**20 // 12), dtype=np.float32)
    graph.initializer.append(numpy_helper.from_array(ballast, "ballast"))
    graph.initializer.append(numpy_helper.from_array(np.zeros((), np.float32), "nothing"))
    (last,) = (node for node in graph.node if node.output[0] == "feature_map")
    last.output[0] = "light"
    graph.node.extend(
        [
            helper.make_node("MatMul", ["core_behavior", "ballast"], ["heavy"]),
            helper.make_node("ReduceMean", ["heavy"], ["mean"], keepdims=0),
            helper.make_node("Mul", ["mean", "nothing"], ["zero"]),
            helper.make_node("Add", ["light", "zero"], ["feature_map"]),
        ]
    )
    (twin.folder / file.path).write_bytes(model.SerializeToString())
    changed = file.model_copy(
        update={
            "sha256": hash_file(twin.folder / file.path),
            "bytes": (twin.folder / file.path).stat().st_size,
        }
    )
    twin.manifest = twin.manifest.model_copy(update={"cores": [changed, *twin.manifest.cores[1:]]})
    (twin.folder / MANIFEST).write_text(twin.manifest.model_dump_json())


@pytest.mark.slow
async def test_memory_does_not_grow_with_the_number_of_swaps(tmp_path: Path, rng: np.random.Generator) -> None:
    megabytes, served = 24, tmp_path / "bundles" / "tiny"
    twins = [write_tiny_bundle(tmp_path / f"{seed}", seed=seed) for seed in range(2)]
    for twin in twins:
        make_heavy(twin, megabytes, rng)
    served.parent.mkdir()
    repository = make_repository(served.parent)
    resident: list[float] = []
    for turn in range(24):
        twin = twins[turn % 2]
        if served.exists():
            served.rename(twins[(turn + 1) % 2].folder)
        twin.folder.rename(served)
        assert not (await repository.load()).problems
        engine = await engine_of(repository, "A")
        assert engine.hash == twin.manifest.hash
        arrays = twin.draw("A", rng)
        np.testing.assert_allclose(engine.predict("A", *arrays), twin.answer("A", *arrays), atol=1e-4)
        del engine
        resident.append(psutil.Process().memory_info().rss / 2**20)
    # Allocators keep some of the freed memory; if bundles stayed, there would be twelve more of them.
    assert max(resident[-8:]) - max(resident[4:12]) < 6 * megabytes, resident


# Over HTTP


ADMIN, OTHER = "admin-0123456789-abcdef", "other-0123456789-abcdef"


@asynccontextmanager
async def serving(settings: Settings) -> AsyncIterator[httpx.AsyncClient]:
    async with running(settings) as context:
        app = RequestMiddleware(create_app(context), context=context)
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as client:
            yield client


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


async def test_a_reload_reports_its_changes_and_why_a_bad_bundle_was_refused(
    tmp_path: Path, rng: np.random.Generator
) -> None:
    old = write_tiny_bundle(tmp_path / "tiny")
    asked = {"mouse": "A", "image": old.draw("A", rng)[0].tolist(), "pupil_dilation": 40, "running_speed": 3}
    async with serving(make_settings(tmp_path, admin_keys=(ADMIN,))) as client:

        async def answering() -> str:
            reply = await client.post("/predict", json=asked)
            assert reply.status_code == 200
            return reply.json()["model"]["hash"]  # type: ignore[no-any-return]

        async def reload() -> httpx.Response:
            return await client.post("/admin/reload", headers=bearer(ADMIN))

        assert await answering() == old.manifest.hash
        new = replace(old.folder, seed=1)
        reply = await reload()
        assert reply.status_code == 200
        found = schemas.ReloadReply.model_validate_json(reply.content)
        assert [(one.name, one.hash) for one in found.loaded] == [("tiny", new.manifest.hash)]
        assert [one.hash for one in found.removed] == [old.manifest.hash]
        assert found.kept == []
        assert await answering() == new.manifest.hash
        name = spoil(replace(old.folder, seed=2))
        reply = await reload()
        assert reply.status_code == 409
        error = schemas.ErrorReply.model_validate_json(reply.content).error
        assert error.code == "refused"
        assert name in str(error.got)
        assert await answering() == new.manifest.hash
        metrics = (await client.get("/metrics")).text
        assert "v1t_refused 1.0" in metrics
        assert metrics.count("v1t_bundle{") == 1


async def test_admin_routes_need_their_own_key_and_without_one_do_not_exist(tmp_path: Path) -> None:
    write_tiny_bundle(tmp_path / "tiny")
    async with serving(make_settings(tmp_path)) as client:
        for headers in ({}, bearer(OTHER)):
            reply = await client.post("/admin/reload", headers=headers)
            assert reply.status_code == 404
            assert "V1T_ADMIN_KEYS" in reply.json()["error"]["hint"]
    (tmp_path / "keys").write_text(f"{ADMIN}\n")
    settings = make_settings(tmp_path, api_keys=(OTHER,), admin_keys_file=tmp_path / "keys")
    async with serving(settings) as client:
        for headers in ({}, bearer(OTHER), bearer(ADMIN[:-1])):
            for path in ("/admin/reload", "/admin/nothing"):
                assert (await client.post(path, headers=headers)).status_code == 401
        assert (await client.get("/mice", headers=bearer(ADMIN))).status_code == 401
        assert (await client.post("/admin/reload", headers=bearer(ADMIN))).status_code == 200
        assert (await client.get("/admin/reload", headers=bearer(ADMIN))).status_code == 405
        assert (await client.post("/admin/nothing", headers=bearer(ADMIN))).status_code == 404


async def test_a_stream_during_a_swap_is_entirely_of_the_bundle_that_it_began_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = write_tiny_bundle(tmp_path / "tiny")
    original = Engine.predict_many

    def slow(self: Engine, stimuli: Any) -> Any:
        time.sleep(0.002)
        return original(self, stimuli)

    asked = {"mouse": "A", "seed": 5, "n_images": 500, "grid": [8, 12], "luminance": 100.0, "contrast": 30.0}
    async with serving(make_settings(tmp_path, max_batch=1, admin_keys=(ADMIN,))) as client:
        monkeypatch.setattr(Engine, "predict_many", slow)
        mapping = asyncio.create_task(
            client.post("/receptive_fields", json=asked, headers={"Accept": "application/x-v1t-stream"})
        )
        while "v1t_batch_images_count 0.0" in (await client.get("/metrics")).text:  # until it has begun
            await asyncio.sleep(0.01)
        replace(old.folder, seed=1)
        assert (await client.post("/admin/reload", headers=bearer(ADMIN))).status_code == 200
        assert not mapping.done()
        reply = await mapping
        after = (await client.get("/mice/A")).json()
    assert json.loads(reply.headers["v1t-reply"])["model"]["hash"] == old.manifest.hash != after["model"]["hash"]
    stream = io.BytesIO(reply.content)
    while json.loads(stream.readline())["event"] != "part":
        pass
    maps = np.load(stream)
    noise = white_noise(5, 0, 500, (8, 12))
    images = 100 + 30 * enlarge(noise, (1, 8, 12))
    behavior, pupil_center = np.tile([40.0, 0.5, 3.0], (500, 1)), np.tile([250.0, 180.0], (500, 1))  # training means
    responses = old.answer("A", images, behavior, pupil_center)
    np.testing.assert_allclose(maps, np.einsum("bn,bhw->nhw", responses, noise), rtol=1e-3, atol=1e-2)


async def test_a_request_for_an_unloaded_bundle_waits_no_longer_than_its_deadline(
    tmp_path: Path, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    twins = {name: write_tiny_bundle(tmp_path / name, name=name, mice=(name,), seed=i) for i, name in enumerate("XY")}
    gate = threading.Event()
    gate.set()
    warm_up = Engine.warm_up

    def held(engine: Engine) -> None:
        assert gate.wait(30)
        warm_up(engine)

    monkeypatch.setattr(Engine, "warm_up", held)

    async def ask(name: str, **headers: str) -> httpx.Response:
        image, behavior, pupil_center = twins[name].draw(name, rng)
        reply = await client.post("/predict", json={"mouse": name, "image": image.tolist()}, headers=headers)
        if reply.status_code == 200:
            behavior[:], pupil_center[:] = [40.0, 0.5, 3.0], [250.0, 180.0]  # the training means
            expected = twins[name].answer(name, image, behavior, pupil_center)
            np.testing.assert_allclose(reply.json()["responses"], expected, atol=1e-4)
            assert reply.json()["model"]["name"] == name
        return reply

    async with serving(make_settings(tmp_path, max_loaded=1)) as client:
        replies = await asyncio.gather(*(ask(name) for name in "XYXYYX"))
        assert [reply.status_code for reply in replies] == [200] * 6
        assert [mouse["mouse"] for mouse in (await client.get("/mice")).json()["mice"]] == ["X", "Y"]
        lines = [line for line in (await client.get("/metrics")).text.splitlines() if line.startswith("v1t_bundle{")]
        (out,) = (name for name in "XY" for line in lines if f'name="{name}"' in line and line.endswith(" 0.0"))
        assert len((await client.get(f"/mice/{out}/neurons")).json()["neuron_ids"]) == 7
        gate.clear()
        late = await ask(out, **{"X-Request-Timeout": "0.3"})
        assert late.status_code == 504
        gate.set()
        assert (await ask(out)).status_code == 200
