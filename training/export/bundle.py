"""`python -m training export`: writes an ensemble's graphs, checked against torch, and their manifest as a bundle."""

from __future__ import annotations

import argparse
import math
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, fields
from functools import partial
from pathlib import Path

import numpy as np
from tqdm import tqdm

from server.bundle.manifest import (
    BEHAVIOR_CHANNELS,
    MANIFEST,
    PUPIL_CENTER_CHANNELS,
    BehaviorState,
    Channel,
    File,
    Manifest,
    MouseRecord,
    Provenance,
    hash_file,
)
from server.bundle.neurons import NeuronTable
from training.arguments import add_checkpoints, add_output, add_recordings
from training.checkpoints.checkpoint import now, source_commit
from training.checkpoints.ensemble import Ensemble, load_ensemble
from training.data.metadata import InputStatistics
from training.data.mouse import Mouse, open_recordings
from training.errors import CheckpointError, ConfigError
from training.evaluation.evaluate import MouseScores, evaluate
from training.export import gradient_graphs, graphs
from training.export.folded import can_fold
from training.export.graphs import has_attention
from training.export.onnx_files import SharedWeights
from training.export.parity import PARITY_BOUND, UNMEASURED, measure_gradient_parity, measure_parity, open_engine
from training.export.single_file import export_single_file
from training.files import writing
from training.models import Twin
from training.tables import counted

__all__ = ["BundleOptions", "add_arguments", "export_bundle", "run"]

V1T_CITATION = (
    "Li, Cornacchia, Rochefort, Onken. V1T: large-scale mouse V1 response prediction using a Vision Transformer. "
    "TMLR 2023."
)
SIMULATED_NOTICE = "Simulated: trained on simulated recordings. No animal was recorded, and no neuron here exists."


@dataclass(frozen=True)
class BundleOptions:
    """Options of an export.

    Attributes:
        portable: use only standard ONNX operators, for other runtimes; slower in onnxruntime.
        gradients: export the graphs for gradients, which takes as long as all other graphs.
        half: also export the cores in float16, for GPUs; only for transformers that can be folded.
        single_file: also export one self-contained graph per mouse, which needs only onnxruntime.
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
    """Exports an ensemble of one or more members to a bundle folder, or replaces an older bundle.

    Raises:
        ConfigError: the graphs differ from torch by more than the bound; the message names the worst neuron. Then
            nothing is written.
        CheckpointError: the output folder is not a bundle, or cannot be written.
    """
    folder = Path(output)
    if folder.exists() and (not folder.is_dir() or (any(folder.iterdir()) and not (folder / MANIFEST).exists())):
        raise CheckpointError(f"{folder} exists and is not a bundle", hint="Give another --output.")
    with writing(f"bundle {folder}"):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as temporary:
            manifest = _write(ensemble, Path(temporary), name or folder.name, options or BundleOptions())
            os.chmod(temporary, 0o755)  # temporary folders are private, bundles are not
            if folder.exists():
                shutil.rmtree(folder)
            shutil.copytree(temporary, folder)
    return manifest


class _Writer:
    """Writes the files of one bundle, with a progress bar."""

    def __init__(self, ensemble: Ensemble, folder: Path, options: BundleOptions) -> None:
        self.ensemble = ensemble
        self.twins = [checkpoint.twin for checkpoint in ensemble.members]
        self.folder = folder
        self.options = options
        self.has_attention = all(has_attention(twin) for twin in self.twins)
        self.folds = all(can_fold(twin.core) for twin in self.twins)
        if options.half and not self.folds:
            raise ConfigError(
                "not every member has a core that can be exported in float16",
                got=", ".join(sorted({twin.config.core.kind for twin in self.twins})),
                expected="ViT or V1T without locality self-attention",
                hint="Leave out --fp16.",
            )
        self.weights: dict[Path, SharedWeights] = {}
        self.n_stems = 1 if ensemble.shares_stems else len(self.twins)
        self.progress = tqdm(desc="exporting graphs", unit="graph", disable=None)

    def manifest(self, name: str) -> Manifest:
        """Writes all graphs; returns the manifest, in which parity is not measured yet."""
        ensemble, options, portable = self.ensemble, self.options, self.options.portable
        simulated = any(mouse.simulated for mouse in ensemble.mice.values())
        with self.progress:
            cores = self._members("core", partial(graphs.export_core, portable=portable))
            manifest = Manifest(
                name=name,
                members=len(self.twins),
                simulated=simulated,
                notice=options.notice or (SIMULATED_NOTICE if simulated else None),
                configs=[twin.config.model_dump(mode="json") for twin in self.twins],
                cores=cores,
                attention=self._members("attention", graphs.export_attention, wanted=self.has_attention),
                token_cores=self._members(
                    "token_core", partial(graphs.export_token_core, portable=portable), wanted=self.folds
                ),
                half_cores=self._members(
                    "half_core", partial(graphs.export_half_core, portable=portable), wanted=options.half
                ),
                core_tapes=self._core_tapes(cores) if options.gradients else [],
                core_gradients=self._members(
                    "core_gradient", gradient_graphs.export_core_gradient, wanted=options.gradients
                ),
                mice={mouse_id: self._mouse(mouse) for mouse_id, mouse in ensemble.mice.items()},
                provenance=_provenance(ensemble),
                licence=options.licence,
                citation=options.citation,
            )
        files = [shared.path for shared in self.weights.values() if shared.path.exists()]
        weights = [_file(self.folder, path.relative_to(self.folder).as_posix()) for path in files]
        return manifest.model_copy(update={"weights": weights})

    def _members(self, name: str, export: Callable[[Twin, Path], None], *, wanted: bool = True) -> list[File]:
        """One graph per member."""
        twins = self.twins if wanted else []
        return [self._graph(f"members/{i}/{name}.onnx", partial(export, twin)) for i, twin in enumerate(twins)]

    def _core_tapes(self, cores: list[File]) -> list[File]:
        """Cores that also return their tape. A core that is not folded has none: its backward pass needs its inputs."""
        export = partial(gradient_graphs.export_core_tape, portable=self.options.portable)
        return [
            self._graph(f"members/{i}/core_tape.onnx", partial(export, twin)) if can_fold(twin.core) else cores[i]
            for i, twin in enumerate(self.twins)
        ]

    def _mouse(self, mouse: Mouse) -> MouseRecord:
        mouse_id = mouse.mouse_id
        place = f"mice/{mouse_id}"
        scores = self.options.scores.get(mouse_id)

        def each(name: str, export: Callable[[Twin, str, Path], None], members: int) -> list[File]:
            """A graph for each of the first members."""
            return [
                self._graph(f"{place}/member{i}.{name}.onnx", partial(export, twin, mouse_id))
                for i, twin in enumerate(self.twins[:members])
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
            image_channels=image_channels(mouse),
            behavior=_channels(BEHAVIOR_CHANNELS, mouse.behavior, mouse),
            pupil_center=_channels(PUPIL_CENTER_CHANNELS, mouse.pupil_center, mouse),
            states=behavior_states(mouse),
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
                hint="Try --portable. If its graphs differ too, please report the checkpoint's configuration.",
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
    (folder / MANIFEST).write_text(manifest.model_dump_json(indent=2), encoding="utf-8")
    return manifest


def _file(folder: Path, path: str) -> File:
    target = folder / path
    return File(path=path, sha256=hash_file(target), bytes=target.stat().st_size)


def image_channels(mouse: Mouse) -> list[Channel]:
    """A mouse's image channels, with the ranges of the training images where they are known."""
    channels = _channels([(name, "grey level") for name in mouse.image_channels], mouse.images, mouse)
    if not mouse.image_means:
        return channels
    ranges = zip(channels, mouse.image_means, mouse.image_contrasts, strict=True)
    return [c.model_copy(update={"image_mean": mean, "image_contrast": contrast}) for c, mean, contrast in ranges]


def behavior_states(mouse: Mouse) -> list[BehaviorState]:
    """A mouse's behavioural states, as the manifest holds them."""
    return [BehaviorState.model_validate({**asdict(s), "behavior": list(s.behavior)}) for s in mouse.states]


def _channels(named: Sequence[tuple[str, str]], statistics: InputStatistics | None, mouse: Mouse) -> list[Channel]:
    """Channels from (name, unit) pairs and the recording's statistics."""
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


EXAMPLES = """examples:
  python -m training export runs/v1t --output exported_models/mine
  python -m training export runs/v1t --recordings runs/recordings --output exported_models/mine --name mine
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EXAMPLES
    add_checkpoints(parser)
    add_output(parser, "folder to write", metavar="BUNDLE")
    parser.add_argument("--name", help="name of the bundle in replies (default: name of the folder)")
    recordings = "score the ensemble on the test trials of these recordings, and save the neurons' scores in the bundle"
    add_recordings(parser, recordings, required=False)
    parser.add_argument("--licence", default=BundleOptions.licence, help="licence of the weights")
    parser.add_argument("--citation", default=V1T_CITATION, help="citation for the weights (default: the V1T paper)")
    parser.add_argument("--notice", help="a sentence that the server adds to every reply")
    parser.add_argument("--portable", action="store_true", help="use only standard ONNX operators, for other runtimes")
    half = "also write the cores in float16, for GPUs with V1T_PRECISION=fp16 (ViT and V1T)"
    parser.add_argument("--fp16", dest="half", action="store_true", help=half)
    single_file = "also write mice/MOUSE/twin.onnx, from raw inputs to responses, which needs only an ONNX runtime"
    parser.add_argument("--single-file", action="store_true", help=single_file)
    gradients = "leave out the graphs for gradients: exports in half the time, to a smaller bundle"
    parser.add_argument("--no-gradients", dest="gradients", action="store_false", help=gradients)


def run(args: argparse.Namespace) -> int:
    ensemble = load_ensemble(args.checkpoints)
    scores = evaluate(ensemble, open_recordings(args.recordings, nan_trials=args.nan_trials)) if args.recordings else {}
    given = {one.name: getattr(args, one.name) for one in fields(BundleOptions) if one.name != "scores"}
    options = BundleOptions(**given, scores=scores)
    manifest = export_bundle(ensemble, args.output, name=args.name, options=options)
    size = sum(file.bytes for file in manifest.files()) / 1e6
    members, mice = counted(manifest.members, "member"), counted(len(manifest.mice), "mouse", "mice")
    print(f"{args.output}: {members}, {mice}, {size:.1f} MB")
    for mouse in manifest.mice.values():
        parity, gradients = mouse.parity, mouse.gradient_parity
        print(
            f"  mouse {mouse.mouse_id}: {counted(mouse.n_neurons, 'neuron')}, largest difference from torch "
            f"{parity.max_abs_error:.1e} on {parity.samples} random samples (bound {parity.bound:.0e})"
            + (f", of gradients {gradients.max_relative_error:.1e} relative" if gradients else "")
        )
    return 0
