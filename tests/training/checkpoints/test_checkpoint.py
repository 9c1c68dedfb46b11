"""Checkpoints: what is written is what is read, nothing else is read, and a kill leaves one or the other."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.tiny_twins import tiny_checkpoint, tiny_config, tiny_mouse

from training.checkpoints.checkpoint import CONFIG, Checkpoint, load_checkpoint, save_checkpoint
from training.data.layout import STATISTICS
from training.errors import CheckpointError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_checkpoint(tmp_path / "checkpoint", tiny_checkpoint(tiny_config()))


def weights_of(folder: Path) -> Path:
    (path,) = folder.glob("weights-*.safetensors")
    return path


def edit(folder: Path, **changes: Any) -> None:
    path = folder / CONFIG
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_a_checkpoint_keeps_weights_mice_and_provenance(tmp_path: Path) -> None:
    made = tiny_checkpoint(tiny_config(), [tiny_mouse("A"), tiny_mouse("26872-17-20", n_neurons=3)])
    saved = Checkpoint(twin=made.twin, provenance={"seed": 3, "source": "trained"})
    loaded = load_checkpoint(save_checkpoint(tmp_path / "checkpoint", saved))
    for name, tensor in saved.twin.state_dict().items():
        assert torch.equal(loaded.twin.state_dict()[name], tensor)
    assert not loaded.twin.training
    assert loaded.provenance == saved.provenance
    assert loaded.weights_hash[:12] in weights_of(tmp_path / "checkpoint").name
    for mouse_id, mouse in saved.mice.items():
        other = loaded.mice[mouse_id]
        assert other.to_json() == mouse.to_json()
        for name, array in mouse.to_arrays().items():
            np.testing.assert_array_equal(other.to_arrays()[name], array)
        assert other.images is not None
        assert mouse.images is not None
        for statistic in STATISTICS:
            np.testing.assert_array_equal(getattr(other.images, statistic), getattr(mouse.images, statistic))


def test_nothing_in_a_checkpoint_is_a_pickle(folder: Path) -> None:
    assert sorted(path.suffix for path in folder.iterdir()) == [".json", ".safetensors"]
    for path in folder.iterdir():
        content = path.read_bytes()
        assert not content.startswith((b"\x80", b"PK"))
        assert b"torch._utils" not in content


def test_a_flipped_byte_is_refused(folder: Path) -> None:
    path = weights_of(folder)
    content = bytearray(path.read_bytes())
    for position in np.random.default_rng(0).integers(len(content), size=5):
        changed = bytearray(content)
        changed[position] ^= 0x10
        path.write_bytes(changed)
        with pytest.raises(CheckpointError, match=r"weights-\w+\.safetensors.*SHA-256 differs"):
            load_checkpoint(folder)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"version": 2}, "unknown format; got {'format': 'v1t-checkpoint', 'version': 2}"),
        ({"format": "other"}, "unknown format"),
        ({"weights": {}}, "cannot be read"),
        ({"weights": {"file": "gone.safetensors", "sha256": "0"}}, r"cannot be read.*gone\.safetensors"),
        ({"mice": []}, "cannot be read.*at least one mouse"),
        ({"config": {"behavior": "telepathy"}}, "cannot be read.*telepathy"),
        ({"config": {}}, r"lacks weights that its options require; got no core\.transformer\.blocks\.2"),
    ],
)
def test_a_checkpoint_that_is_not_understood_is_refused(folder: Path, changes: dict[str, Any], words: str) -> None:
    edit(folder, **changes)
    with pytest.raises(CheckpointError, match=f"(?s){words}"):
        load_checkpoint(folder)


@pytest.mark.parametrize("content", [b"", b"[]", b"3", b"{", b"\xff\xfe"])
def test_a_configuration_that_is_none_is_refused(folder: Path, content: bytes) -> None:
    (folder / CONFIG).write_bytes(content)
    with pytest.raises(CheckpointError, match=r"config\.json"):
        load_checkpoint(folder)


def test_a_weights_file_elsewhere_is_not_followed(folder: Path, tmp_path: Path) -> None:
    path = weights_of(folder)
    content = json.loads((folder / CONFIG).read_text())
    path.rename(tmp_path / path.name)
    edit(folder, weights={**content["weights"], "file": f"../{path.name}"})
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_checkpoint(folder)


def test_a_folder_without_a_checkpoint_is_refused_with_a_hint(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(CheckpointError, match=r"is not a checkpoint.*python -m training import"):
            load_checkpoint(path)


def test_another_folder_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").write_text("...")
    (tmp_path / "file").write_text("...")
    for path in (tmp_path / "thesis", tmp_path / "file"):
        with pytest.raises(CheckpointError, match="is not a checkpoint"):
            save_checkpoint(path, tiny_checkpoint(tiny_config()))
    assert [path.name for path in (tmp_path / "thesis").iterdir()] == ["chapter.tex"]


def test_what_a_killed_first_save_left_is_no_obstacle(tmp_path: Path) -> None:
    for leftovers in ((), (".weights-0123.safetensors.partial",), ("weights-0123.safetensors", f".{CONFIG}.partial")):
        folder = tmp_path / f"after-{len(leftovers)}"
        folder.mkdir()
        for name in leftovers:
            (folder / name).write_bytes(b"half")
        save_checkpoint(folder, tiny_checkpoint(tiny_config()))
        load_checkpoint(folder)
        assert len(list(folder.iterdir())) == 2


def test_saving_again_leaves_the_new_weights_alone(folder: Path) -> None:
    before = weights_of(folder)
    save_checkpoint(folder, tiny_checkpoint(tiny_config(), seed=1))
    assert weights_of(folder) != before
    assert load_checkpoint(folder).provenance["seed"] == 1


@pytest.mark.parametrize("killed_at", [0, 1, 2])
def test_a_kill_leaves_the_old_checkpoint_or_the_new_one(
    folder: Path, killed_at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed before the weights, before the configuration, and before the old weights are deleted."""
    moves = 0
    replace, unlink = Path.replace, Path.unlink

    def step(do: Any, *args: Any, **kwargs: Any) -> Any:
        nonlocal moves
        if moves >= killed_at:
            raise KeyboardInterrupt
        moves += 1
        return do(*args, **kwargs)

    monkeypatch.setattr(Path, "replace", lambda self, target: step(replace, self, target))
    # A partial file is left behind by a kill; only the deletion of old weights counts as a step.
    monkeypatch.setattr(Path, "unlink", lambda self, missing_ok=False: None if missing_ok else step(unlink, self))
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(folder, tiny_checkpoint(tiny_config(), seed=1))
    monkeypatch.undo()
    assert load_checkpoint(folder).provenance["seed"] == (1 if killed_at == 2 else 0)
    save_checkpoint(folder, tiny_checkpoint(tiny_config(), seed=2))
    assert load_checkpoint(folder).provenance["seed"] == 2
    assert len(list(folder.glob("weights-*"))) == 1


def test_a_disk_that_is_full_is_said_and_the_old_checkpoint_stays(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Path, target: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(CheckpointError, match=r"cannot write checkpoint .*No space left on device"):
        save_checkpoint(folder, tiny_checkpoint(tiny_config(), seed=1))
    monkeypatch.undo()
    assert load_checkpoint(folder).provenance["seed"] == 0
    assert len(list(folder.iterdir())) == 2  # no partial file is left
