"""Writes a bundle: the graphs of an ensemble, checked against torch, and the manifest that describes them."""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from tqdm import tqdm

from server import contract
from server.contract import Channel, File, Manifest, MouseRecord, NeuronTable, Provenance
from training.checkpoint import load_checkpoint, now, source_commit
from training.ensemble import Ensemble
from training.errors import CheckpointError, ConfigError
from training.evaluate import evaluate
from training.export import graphs
from training.export.parity import PARITY_BOUND, UNMEASURED, measure_parity
from training.metadata import InputStatistics
from training.mouse import Mouse, open_recordings
from training.run_folder import member_checkpoints

__all__ = ["BundleOptions", "add_arguments", "export_bundle", "run"]

V1T_CITATION = (
    "Li, Cornacchia, Rochefort, Onken. V1T: large-scale mouse V1 response prediction using a Vision Transformer. "
    "TMLR 2023."
)
SIMULATED_NOTICE = "Simulated: trained on simulated recordings. No animal was recorded, and no neuron here exists."


@dataclass(frozen=True)
class BundleOptions:
    """What the exporter is told beside the checkpoints.

    Attributes:
        portable: standard ONNX operators only, for other runtimes; slower in onnxruntime.
        scores: mouse_id -> name -> (N,) per-neuron test scores of the ensemble.
    """

    portable: bool = False
    licence: str = "not stated"
    citation: str = V1T_CITATION
    notice: str | None = None
    scores: dict[str, dict[str, np.ndarray]] = field(default_factory=dict)


def export_bundle(
    ensemble: Ensemble, output: str | Path, *, name: str | None = None, options: BundleOptions | None = None
) -> Manifest:
    """Exports an ensemble (of one or more members) to a bundle folder, replacing a bundle that is there.

    Raises:
        ConfigError: the graphs differ from torch by more than the bound; the message names the worst neuron. Nothing
            is written then.
        CheckpointError: the output folder holds something else, or cannot be written.
    """
    folder = Path(output)
    if folder.exists() and (
        not folder.is_dir() or (any(folder.iterdir()) and not (folder / contract.MANIFEST).exists())
    ):
        raise CheckpointError(f"{folder} exists and is no bundle", hint="Give another --output.")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as partial:
            manifest = _write(ensemble, Path(partial), name or folder.name, options or BundleOptions())
            os.chmod(partial, 0o755)  # temporary folders are private; a bundle is not
            if folder.exists():
                shutil.rmtree(folder)
            shutil.copytree(partial, folder)
    except OSError as error:
        raise CheckpointError(f"cannot write bundle {folder}: {error.strerror}") from error
    return manifest


def _write(ensemble: Ensemble, folder: Path, name: str, options: BundleOptions) -> Manifest:
    members = [checkpoint.twin for checkpoint in ensemble.members]
    mice = list(ensemble.mice.values())
    n_attention = sum(hasattr(twin.core, "attention_rollout") for twin in members)
    shared_stem = ensemble.shares_stems
    n_stems = 1 if shared_stem else len(members)
    total = len(members) * (1 + len(mice)) + n_attention + len(mice) * (n_stems + 1)
    with tqdm(total=total, desc="exporting graphs", unit="graph", disable=None) as progress:

        def write(path: str, export: Callable[[Path], None]) -> File:
            target = folder / path
            target.parent.mkdir(parents=True, exist_ok=True)
            export(target)
            progress.update()
            return _file(folder, path)

        cores = [
            write(
                f"members/{i}/core.onnx",
                lambda path, twin=twin: graphs.export_core(twin, path, portable=options.portable),
            )
            for i, twin in enumerate(members)
        ]
        attention = []
        if n_attention == len(members):
            attention = [
                write(f"members/{i}/attention.onnx", lambda path, twin=twin: graphs.export_attention(twin, path))
                for i, twin in enumerate(members)
            ]
        records = {}
        for mouse in mice:
            place = f"mice/{mouse.mouse_id}"
            stems = [
                write(
                    f"{place}/stem.onnx" if shared_stem else f"{place}/member{i}.stem.onnx",
                    lambda path, twin=twin, mouse=mouse: graphs.export_stem(twin, mouse.mouse_id, path),
                )
                for i, twin in enumerate(members[:n_stems])
            ]
            readouts = [
                write(
                    f"{place}/member{i}.readout.onnx",
                    lambda path, twin=twin, mouse=mouse: graphs.export_readout(twin, mouse.mouse_id, path),
                )
                for i, twin in enumerate(members)
            ]
            weights, bias = ensemble.combination(mouse.mouse_id)
            combined = write(
                f"{place}/ensemble.onnx", lambda path, w=weights, b=bias: graphs.export_ensemble(w, b, path)
            )
            scores = options.scores.get(mouse.mouse_id, {})
            _neuron_table(mouse, scores).save(folder / place / "neurons.npz")
            records[mouse.mouse_id] = MouseRecord(
                mouse_id=mouse.mouse_id,
                data_key=mouse.data_key,
                mouse_index=members[0].mouse_indices[mouse.mouse_id],
                image_shape=mouse.image_shape,
                image_channels=_channels(mouse.image_channels, "grey level", mouse.images, mouse),
                behavior=_channels(*zip(*contract.BEHAVIOR_CHANNELS, strict=True), mouse.behavior, mouse),
                pupil_center=_channels(*zip(*contract.PUPIL_CENTER_CHANNELS, strict=True), mouse.pupil_center, mouse),
                uses=ensemble.uses(),
                standardized_inputs=mouse.standardized_inputs,
                n_neurons=mouse.n_neurons,
                neurons=_file(folder, f"{place}/neurons.npz"),
                stems=stems,
                readouts=readouts,
                ensemble=combined,
                parity=UNMEASURED,
                scores={key: float(np.nanmean(value)) for key, value in scores.items()},
            )
    manifest = Manifest(
        name=name,
        members=len(members),
        simulated=any(mouse.simulated for mouse in mice),
        notice=options.notice or (SIMULATED_NOTICE if any(mouse.simulated for mouse in mice) else None),
        configs=[twin.config.model_dump(mode="json") for twin in members],
        cores=cores,
        attention=attention,
        mice=records,
        provenance=_provenance(ensemble),
        licence=options.licence,
        citation=options.citation,
    )
    parity = measure_parity(ensemble, folder, manifest)
    for mouse_id, found in parity.items():
        if found.max_abs_error > PARITY_BOUND:
            raise ConfigError(
                f"the exported graphs of mouse {mouse_id!r} differ from torch; nothing was written",
                got=f"{found.max_abs_error:.2e} at neuron {ensemble.mice[mouse_id].neuron_ids[found.worst_neuron]}",
                expected=f"at most {PARITY_BOUND:.0e}",
                hint="Try --portable; if that differs too, please report the checkpoint's configuration.",
            )
    measured = {key: record.model_copy(update={"parity": parity[key]}) for key, record in records.items()}
    manifest = manifest.model_copy(update={"mice": measured})
    (folder / contract.MANIFEST).write_text(manifest.model_dump_json(indent=2), encoding="utf-8")
    return manifest


def _file(folder: Path, path: str) -> File:
    target = folder / path
    return File(path=path, sha256=contract.hash_file(target), bytes=target.stat().st_size)


def _channels(
    names: Sequence[str], units: Sequence[str] | str, statistics: InputStatistics | None, mouse: Mouse
) -> list[Channel]:
    units = [units] * len(names) if isinstance(units, str) else units
    if statistics is None:
        unit = "standardized" if mouse.standardized_inputs else None
        return [Channel(name=name, unit=unit or own) for name, own in zip(names, units, strict=True)]
    return [
        Channel(
            name=name,
            unit=unit,
            percentiles=mouse.percentiles.get(name, {}),
            **{key: float(getattr(statistics, key)[i]) for key in ("mean", "std", "min", "max", "median")},
        )
        for i, (name, unit) in enumerate(zip(names, units, strict=True))
    ]


def _neuron_table(mouse: Mouse, scores: dict[str, np.ndarray]) -> NeuronTable:
    unknown = np.full(mouse.n_neurons, np.nan, np.float32)
    std = unknown if mouse.response_std is None else mouse.response_std
    return NeuronTable(mouse.neuron_ids, mouse.neuron_coordinates, std, scores)


def _provenance(ensemble: Ensemble) -> Provenance:
    made = [checkpoint.provenance for checkpoint in ensemble.members]
    return Provenance(
        created=now(),
        source="; ".join(dict.fromkeys(str(one.get("source", "trained")) for one in made)),
        seeds=[one["seed"] for one in made if "seed" in one],
        data_hashes={m.mouse_id: m.data_hash for m in ensemble.mice.values() if m.data_hash},
        commit=source_commit(),
        versions=made[0].get("versions", {}),
        checkpoints=[checkpoint.weights_hash for checkpoint in ensemble.members],
    )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoints", nargs="+", type=Path, help="a run, or checkpoints that make an ensemble")
    parser.add_argument("--output", required=True, type=Path, metavar="BUNDLE", help="folder to write")
    parser.add_argument("--name", help="the bundle's name in replies (default: the folder's name)")
    parser.add_argument(
        "--recordings",
        nargs="+",
        type=Path,
        default=[],
        metavar="DIR",
        help="score the ensemble on the recordings' test trials, and keep each neuron's scores in the bundle",
    )
    parser.add_argument("--licence", default=BundleOptions.licence, help="of the weights, kept in the bundle")
    parser.add_argument("--citation", default=V1T_CITATION, help="of the weights, kept in the bundle")
    parser.add_argument("--notice", help="a sentence that the server says with every reply")
    parser.add_argument("--portable", action="store_true", help="standard ONNX operators only, for other runtimes")


def run(args: argparse.Namespace) -> int:
    ensemble = Ensemble([load_checkpoint(path) for path in member_checkpoints(args.checkpoints)])
    scores = {}
    if args.recordings:
        evaluated = evaluate(ensemble, open_recordings(args.recordings))
        scores = {mouse_id: mouse.neurons for mouse_id, mouse in evaluated.items()}
    options = BundleOptions(
        portable=args.portable, licence=args.licence, citation=args.citation, notice=args.notice, scores=scores
    )
    manifest = export_bundle(ensemble, args.output, name=args.name, options=options)
    size = sum(file.bytes for file in manifest.files()) / 1e6
    print(f"{args.output}: {manifest.members} members, {len(manifest.mice)} mice, {size:.1f} MB")
    for mouse in manifest.mice.values():
        parity = mouse.parity
        print(
            f"  mouse {mouse.mouse_id}: {mouse.n_neurons} neurons, largest difference from torch "
            f"{parity.max_abs_error:.1e} on {parity.samples} random samples (bound {parity.bound:.0e})"
        )
    return 0
