"""Writes a bundle: the graphs of an ensemble, checked against torch, and the manifest that describes them."""

from __future__ import annotations

import argparse
import math
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
from tqdm import tqdm

from server.bundle import manifest as contract
from server.bundle.manifest import Channel, File, Manifest, MouseRecord, NeuronTable, Provenance
from training.checkpoints.checkpoint import now, source_commit
from training.checkpoints.ensemble import Ensemble, load_ensemble
from training.data.metadata import InputStatistics
from training.data.mouse import Mouse, open_recordings
from training.errors import CheckpointError, ConfigError
from training.evaluation.evaluate import MouseScores, evaluate
from training.export import gradient_graphs, graphs
from training.export.graphs import has_attention
from training.export.onnx_files import SharedWeights
from training.export.parity import PARITY_BOUND, UNMEASURED, measure_gradient_parity, measure_parity, open_engine
from training.export.single_file import export_single_file
from training.models import Twin

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
        gradients: the graphs that gradients need; exporting them takes as long as all others.
        half: cores in float16 as well, for GPUs; transformers that fold only.
        single_file: one self-contained graph per mouse as well, for people who want onnxruntime alone.
        scores: mouse_id -> test scores of the ensemble.
    """

    portable: bool = False
    gradients: bool = True
    half: bool = False
    single_file: bool = False
    licence: str = "not stated"
    citation: str = V1T_CITATION
    notice: str | None = None
    scores: dict[str, MouseScores] = field(default_factory=dict)


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
        with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as temporary:
            manifest = _write(ensemble, Path(temporary), name or folder.name, options or BundleOptions())
            os.chmod(temporary, 0o755)  # temporary folders are private; a bundle is not
            if folder.exists():
                shutil.rmtree(folder)
            shutil.copytree(temporary, folder)
    except OSError as error:
        raise CheckpointError(f"cannot write bundle {folder}: {error.strerror}") from error
    return manifest


class _Writer:
    """Writes the files of one bundle, with a progress bar."""

    def __init__(self, ensemble: Ensemble, folder: Path, options: BundleOptions) -> None:
        self.ensemble = ensemble
        self.twins = [checkpoint.twin for checkpoint in ensemble.members]
        self.folder = folder
        self.options = options
        self.has_attention = all(has_attention(twin) for twin in self.twins)
        self.folds = all(graphs.folds(twin) for twin in self.twins)
        if options.half and not self.folds:
            raise ConfigError(
                "cores in float16 were asked for, and not every member has one that can be",
                got=", ".join(sorted({twin.config.core.kind for twin in self.twins})),
                expected="ViT or V1T without locality self-attention",
                hint="Leave --fp16 out.",
            )
        self.weights: dict[Path, SharedWeights] = {}
        self.n_stems = 1 if ensemble.shares_stems else len(self.twins)
        self.progress = tqdm(desc="exporting graphs", unit="graph", disable=None)

    def manifest(self, name: str) -> Manifest:
        """Writes everything but the manifest, which says of its parity that it is not measured yet."""
        ensemble, options = self.ensemble, self.options
        simulated = any(mouse.simulated for mouse in ensemble.mice.values())
        portable = options.portable
        with self.progress:
            cores = self._per_member("core", lambda twin, path: graphs.export_core(twin, path, portable=portable))
            manifest = Manifest(
                name=name,
                members=len(self.twins),
                simulated=simulated,
                notice=options.notice or (SIMULATED_NOTICE if simulated else None),
                configs=[twin.config.model_dump(mode="json") for twin in self.twins],
                cores=cores,
                attention=self._per_member("attention", graphs.export_attention) if self.has_attention else [],
                token_cores=self._per_member(
                    "token_core", lambda twin, path: graphs.export_token_core(twin, path, portable=portable)
                )
                if self.folds
                else [],
                half_cores=self._per_member(
                    "half_core", lambda twin, path: graphs.export_half_core(twin, path, portable=portable)
                )
                if options.half
                else [],
                core_tapes=self._core_tapes(cores) if options.gradients else [],
                core_gradients=self._per_member("core_gradient", gradient_graphs.export_core_gradient)
                if options.gradients
                else [],
                mice={mouse_id: self._mouse(mouse) for mouse_id, mouse in ensemble.mice.items()},
                provenance=_provenance(ensemble),
                licence=options.licence,
                citation=options.citation,
            )
        weights = [_file(self.folder, path.relative_to(self.folder).as_posix()) for path in self._weights_files()]
        return manifest.model_copy(update={"weights": weights})

    def _per_member(self, name: str, export: Callable[[Twin, Path], None]) -> list[File]:
        return [self._graph(f"members/{i}/{name}.onnx", partial(export, twin)) for i, twin in enumerate(self.twins)]

    def _core_tapes(self, cores: list[File]) -> list[File]:
        """A core that does not fold keeps no tape: its backward pass starts from its inputs."""
        return [
            self._graph(
                f"members/{i}/core_tape.onnx",
                partial(gradient_graphs.export_core_tape, twin, portable=self.options.portable),
            )
            if graphs.folds(twin)
            else cores[i]
            for i, twin in enumerate(self.twins)
        ]

    def _mouse(self, mouse: Mouse) -> MouseRecord:
        mouse_id = mouse.mouse_id
        place = f"mice/{mouse_id}"
        scores = self.options.scores.get(mouse_id)
        place_of_member = [f"{place}/member{i}" for i in range(len(self.twins))]

        def each(name: str, export: Callable[[Twin, str, Path], None], members: int) -> list[File]:
            return [
                self._graph(f"{at}.{name}.onnx", partial(export, twin, mouse_id))
                for at, twin in zip(place_of_member[:members], self.twins[:members], strict=True)
            ]

        everyone, with_gradients = len(self.twins), self.options.gradients
        combination = self.ensemble.combinations[mouse_id]
        (self.folder / place).mkdir(parents=True)
        _neuron_table(mouse, {} if scores is None else scores.neurons).save(self.folder / place / "neurons.npz")
        return MouseRecord(
            mouse_id=mouse_id,
            data_key=mouse.data_key,
            mouse_index=self.twins[0].mouse_indices[mouse_id],
            image_shape=mouse.image_shape,
            image_channels=_channels([(name, "grey level") for name in mouse.image_channels], mouse.images, mouse),
            behavior=_channels(contract.BEHAVIOR_CHANNELS, mouse.behavior, mouse),
            pupil_center=_channels(contract.PUPIL_CENTER_CHANNELS, mouse.pupil_center, mouse),
            uses=self.ensemble.uses(),
            standardized_inputs=mouse.standardized_inputs,
            n_neurons=mouse.n_neurons,
            neurons=_file(self.folder, f"{place}/neurons.npz"),
            stems=each("stem", graphs.export_stem, self.n_stems),
            readouts=each("readout", graphs.export_readout, everyone),
            ensemble=self._graph(f"{place}/ensemble.onnx", partial(graphs.export_ensemble, combination)),
            touched_tokens=each("touched_tokens", graphs.export_touched_tokens, everyone if self.folds else 0),
            stem_gradients=each(
                "stem_gradient", gradient_graphs.export_stem_gradient, self.n_stems if with_gradients else 0
            ),
            readout_gradients=each(
                "readout_gradient", gradient_graphs.export_readout_gradient, everyone if with_gradients else 0
            ),
            ensemble_gradient=self._graph(
                f"{place}/ensemble_gradient.onnx", partial(gradient_graphs.export_ensemble_gradient, combination)
            )
            if with_gradients
            else None,
            twin=self._graph(f"{place}/twin.onnx", partial(export_single_file, self.ensemble, mouse_id), shared=False)
            if self.options.single_file
            else None,
            parity=UNMEASURED,
            scores={} if scores is None else {k: v for k, v in scores.summary.items() if math.isfinite(v)},
        )

    def _graph(self, path: str, export: Callable[[Path], None], *, shared: bool = True) -> File:
        target = self.folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        export(target)
        if shared:
            self.weights.setdefault(target.parent, SharedWeights(target.parent)).take_from(target)
        self.progress.update()
        return _file(self.folder, path)

    def _weights_files(self) -> list[Path]:
        return [weights.path for weights in self.weights.values() if weights.path.exists()]


def _write(ensemble: Ensemble, folder: Path, name: str, options: BundleOptions) -> Manifest:
    manifest = _Writer(ensemble, folder, options).manifest(name)
    engine = open_engine(folder, manifest)
    parity = measure_parity(ensemble, engine)
    for mouse_id, found in parity.items():
        if found.max_abs_error > PARITY_BOUND:
            raise ConfigError(
                f"the exported graphs of mouse {mouse_id!r} differ from torch; nothing was written",
                got=f"{found.max_abs_error:.2e} at neuron {ensemble.mice[mouse_id].neuron_ids[found.worst_neuron]}",
                expected=f"at most {PARITY_BOUND:.0e}",
                hint="Try --portable; if that differs too, please report the checkpoint's configuration.",
            )
    gradients = measure_gradient_parity(ensemble, engine) if manifest.has_gradients else {}
    for mouse_id, of_mouse in gradients.items():
        if of_mouse.max_relative_error > of_mouse.bound:
            raise ConfigError(
                f"the exported gradients of mouse {mouse_id!r} differ from autograd's; nothing was written",
                got=f"{of_mouse.max_relative_error:.2e} of the largest derivative",
                expected=f"at most {of_mouse.bound:.0e}",
                hint="Export with --no-gradients, and please report the checkpoint's configuration.",
            )
    mice = {
        key: record.model_copy(update={"parity": parity[key], "gradient_parity": gradients.get(key)})
        for key, record in manifest.mice.items()
    }
    manifest = manifest.model_copy(update={"mice": mice})
    (folder / contract.MANIFEST).write_text(manifest.model_dump_json(indent=2), encoding="utf-8")
    return manifest


def _file(folder: Path, path: str) -> File:
    target = folder / path
    return File(path=path, sha256=contract.hash_file(target), bytes=target.stat().st_size)


def _channels(named: Sequence[tuple[str, str]], statistics: InputStatistics | None, mouse: Mouse) -> list[Channel]:
    """Channels from (name, unit) pairs and what the recording says of them."""
    if statistics is None:
        return [Channel(name=name, unit="standardized" if mouse.standardized_inputs else unit) for name, unit in named]
    return [
        Channel(
            name=name,
            unit=unit,
            mean=float(statistics.mean[i]),
            std=float(statistics.std[i]),
            min=float(statistics.min[i]),
            max=float(statistics.max[i]),
            median=float(statistics.median[i]),
            percentiles=mouse.percentiles.get(name, {}),
        )
        for i, (name, unit) in enumerate(named)
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
    parser.add_argument("checkpoints", nargs="+", type=Path, help="a run, an ensemble, or checkpoints that make one")
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
    parser.add_argument(
        "--fp16",
        dest="half",
        action="store_true",
        help="also write the cores in float16, for GPUs: V1T_PRECISION=fp16 serves them (ViT and V1T)",
    )
    parser.add_argument(
        "--single-file",
        action="store_true",
        help="also write mice/MOUSE/twin.onnx: raw inputs in, responses out, for onnxruntime or another runtime alone",
    )
    parser.add_argument(
        "--no-gradients",
        dest="gradients",
        action="store_false",
        help="leave out what gradients need: half the time to export, a smaller bundle",
    )


def run(args: argparse.Namespace) -> int:
    ensemble = load_ensemble(args.checkpoints)
    scores = evaluate(ensemble, open_recordings(args.recordings)) if args.recordings else {}
    options = BundleOptions(
        portable=args.portable,
        gradients=args.gradients,
        half=args.half,
        single_file=args.single_file,
        licence=args.licence,
        citation=args.citation,
        notice=args.notice,
        scores=scores,
    )
    manifest = export_bundle(ensemble, args.output, name=args.name, options=options)
    size = sum(file.bytes for file in manifest.files()) / 1e6
    print(f"{args.output}: {manifest.members} members, {len(manifest.mice)} mice, {size:.1f} MB")
    for mouse in manifest.mice.values():
        parity, gradients = mouse.parity, mouse.gradient_parity
        print(
            f"  mouse {mouse.mouse_id}: {mouse.n_neurons} neurons, largest difference from torch "
            f"{parity.max_abs_error:.1e} on {parity.samples} random samples (bound {parity.bound:.0e})"
            + (f", of gradients {gradients.max_relative_error:.1e} relative" if gradients else "")
        )
    return 0
