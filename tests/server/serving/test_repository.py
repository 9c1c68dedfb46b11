"""The repository: it finds bundles, refuses bad ones by name, and finds the bundle of a mouse."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
from support.checkout import ROOT
from support.tiny_bundle import write_tiny_bundle

from server.errors import BundleError, InvalidInput, NotFound, NotReady
from server.serving.discovery import find_bundles
from server.serving.repository import Repository
from server.serving.telemetry.metrics import Metrics
from server.settings import Settings


def make_library(*places: Path) -> tuple[Repository, Metrics]:
    metrics = Metrics()
    return Repository(Settings(bundles=places, provider="cpu"), metrics), metrics


async def refusal(*places: Path) -> str:
    """Why a repository of these folders is not ready."""
    repository, metrics = make_library(*places)
    await repository.load()
    assert not repository.ready
    assert metrics.registry.get_sample_value("v1t_ready") == 0
    with pytest.raises(NotReady) as refused:
        repository.check_ready()
    assert refused.value.retry_after is not None
    return str(refused.value.hint)


def test_bundles_are_found_by_themselves_and_in_folders(tmp_path: Path) -> None:
    write_tiny_bundle(tmp_path / "many" / "b", name="b")
    write_tiny_bundle(tmp_path / "many" / "a", name="a")
    write_tiny_bundle(tmp_path / "many" / ".hidden", name="hidden")
    (tmp_path / "many" / "notes").mkdir()
    (tmp_path / "many" / "README.md").write_text("bundles")
    write_tiny_bundle(tmp_path / "one", name="one")
    found = find_bundles([tmp_path / "many", tmp_path / "one", tmp_path / "one"])
    assert [path.name for path in found] == ["a", "b", "one"]


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="nowhere is not a folder"):
        find_bundles([tmp_path / "nowhere"])


def test_a_folder_that_an_export_is_writing_is_not_looked_at(tmp_path: Path) -> None:
    write_tiny_bundle(tmp_path / "served" / "whole")
    write_tiny_bundle(tmp_path / "served" / "versions" / ".1.here-17.new")  # the first version of another model
    write_tiny_bundle(tmp_path / "served" / ".other.here-17.new")
    assert find_bundles([tmp_path / "served"]) == [tmp_path / "served" / "whole"]


async def test_mice_are_found_by_name_and_model(tmp_path: Path) -> None:
    write_tiny_bundle(tmp_path / "one", name="one", mice=("A", "B"))
    write_tiny_bundle(tmp_path / "two", name="two", mice=("B", "C"), seed=1)
    repository, metrics = make_library(tmp_path)
    with pytest.raises(NotReady, match="being loaded"):
        repository.look_up("A")
    await repository.load()
    assert repository.ready
    assert repository.look_up("A").manifest.name == "one"
    assert repository.look_up("C").manifest.name == "two"
    assert repository.look_up("B", "two").manifest.name == "two"
    with pytest.raises(InvalidInput, match="one or two"):
        repository.look_up("B")
    with pytest.raises(NotFound, match="A or B or C"):
        repository.look_up("Z")
    with pytest.raises(NotFound, match="no such model"):
        repository.look_up("A", "three")
    with pytest.raises(NotFound, match="in model 'two'"):
        repository.look_up("A", "two")
    assert [record.mouse_id for _, record in repository.records()] == ["A", "B", "B", "C"]
    engine = repository.look_up("A")
    labels = {"name": "one", "version": "1", "hash": engine.hash, "provider": "CPUExecutionProvider", "members": "2"}
    assert metrics.registry.get_sample_value("v1t_bundle", labels) == 1
    assert metrics.registry.get_sample_value("v1t_ready") == 1


async def test_a_flipped_byte_is_refused_by_name(tmp_path: Path) -> None:
    twin = write_tiny_bundle(tmp_path / "good", name="good")
    twin = write_tiny_bundle(tmp_path / "flipped", name="flipped")
    graph = twin.folder / twin.manifest.mice["B"].readouts[1].path
    content = bytearray(graph.read_bytes())
    content[len(content) // 2] ^= 1
    graph.write_bytes(bytes(content))
    hint = await refusal(tmp_path)
    assert "flipped" in hint
    assert graph.name in hint
    assert "good" not in hint.replace(str(tmp_path), "")


async def test_a_missing_file_is_refused_by_name(tmp_path: Path) -> None:
    twin = write_tiny_bundle(tmp_path / "holed", name="holed")
    (twin.folder / twin.manifest.mice["A"].ensemble.path).unlink()
    hint = await refusal(twin.folder)
    assert "holed" in hint
    assert twin.manifest.mice["A"].ensemble.path in hint


async def test_a_missing_manifest_is_refused_by_name(tmp_path: Path) -> None:
    twin = write_tiny_bundle(tmp_path / "bare", name="bare")
    (twin.folder / "manifest.json").unlink()
    hint = await refusal(tmp_path)
    assert "bare" in hint
    assert "manifest.json" in hint


async def test_an_unknown_schema_is_refused_by_name(tmp_path: Path) -> None:
    twin = write_tiny_bundle(tmp_path / "future", name="future")
    path = twin.folder / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "schema_version": 99}))
    hint = await refusal(tmp_path)
    assert "future" in hint
    assert "schema_version" in hint
    assert "99" in hint


async def test_a_graph_that_onnxruntime_cannot_load_is_refused_by_name(tmp_path: Path) -> None:
    twin = write_tiny_bundle(tmp_path / "garbled", name="garbled")
    path = twin.folder / "manifest.json"
    manifest = json.loads(path.read_text())
    core = manifest["cores"][0]
    (twin.folder / core["path"]).write_bytes(b"no graph")
    core.update(bytes=8, sha256=hashlib.sha256(b"no graph").hexdigest())
    path.write_text(json.dumps(manifest))
    assert "garbled" in await refusal(tmp_path)


async def test_two_bundles_of_one_name_are_refused(tmp_path: Path) -> None:
    write_tiny_bundle(tmp_path / "first", name="same")
    write_tiny_bundle(tmp_path / "second", name="same", seed=1)
    hint = await refusal(tmp_path)
    assert "second" in hint
    assert "'same'" in hint


async def test_an_empty_folder_is_an_error_with_a_hint(tmp_path: Path) -> None:
    hint = await refusal(tmp_path)
    assert "there is no bundle" in hint
    assert "V1T_BUNDLES" in hint


async def test_an_unexpected_failure_names_the_bundle(tmp_path: Path) -> None:
    twin = write_tiny_bundle(tmp_path / "odd", name="odd")

    def explode(bundle: Path, settings: Settings) -> None:
        raise ZeroDivisionError("no graph divides by zero")

    repository = Repository(Settings(bundles=(twin.folder,)), Metrics(), load=explode)  # type: ignore[arg-type]
    await repository.load()
    assert not repository.ready
    with pytest.raises(NotReady) as refused:
        repository.look_up("A")
    assert "odd" in str(refused.value.hint)
    assert "ZeroDivisionError" in str(refused.value.hint)


@pytest.mark.skipif(sys.platform != "linux", reason="asks glibc")
def test_freed_memory_is_returned_to_the_system() -> None:
    """In a process of its own: small blocks, which the allocator keeps, and one in use above them."""
    script = """
import psutil
from server.serving import malloc
malloc.limit_arenas()
blocks = [bytes(4000) for _ in range(20_000)]
last = bytes(4000)
blocks.clear()
before = psutil.Process().memory_info().rss
malloc.trim()
print(before - psutil.Process().memory_info().rss)
"""
    given = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert int(given.stdout) > 20e6
