"""`python -m training export`: writes an ensemble's graphs, checked against torch, and their manifest as a bundle."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from functools import partial
from pathlib import Path

from server.bundle.manifest import (
    MANIFEST,
    File,
    Manifest,
    MouseRecord,
    Provenance,
    hash_file,
    load_manifest,
)
from server.errors import BundleError
from training.arguments import add_checkpoints, add_output, add_recordings
from training.checkpoints.attribution import NOT_STATED, V1T_CITATION
from training.checkpoints.checkpoint import now, source_commit
from training.checkpoints.ensemble import Ensemble, load_ensemble
from training.data.layout import SENSORIUM_BEHAVIOR
from training.data.mouse import Mouse, open_recordings
from training.errors import CheckpointError, ConfigError
from training.evaluation.evaluate import MouseScores, evaluate
from training.export.graphs import backward, forward, single_file
from training.export.graphs.forward import has_attention
from training.export.modules.folded import can_fold
from training.export.mouse_inputs import behavior_channels, behavior_states, image_channels, pupil_center_channels
from training.export.neuron_table import neuron_table
from training.export.parity import PARITY_BOUND, UNMEASURED, measure_gradient_parity, measure_parity, open_engine
from training.export.progress import Progress
from training.export.tracing.onnx_files import SharedWeights
from training.export.tracing.templates import Graph, Templates
from training.files import writing
from training.models import Twin
from training.replacing import replacing
from training.tables import counted

__all__ = ["BundleOptions", "add_arguments", "export_bundle", "run"]

TWIN = "twin.onnx"  # the single file of a mouse
SIMULATED_NOTICE = "Simulated: trained on simulated recordings. No animal was recorded, and no neuron here exists."


@dataclass(frozen=True)
class BundleOptions:
    """Options of an export.

    Attributes:
        portable: use only standard ONNX operators, for other runtimes; slower in onnxruntime.
        gradients: export the graphs for gradients, which takes as long as all other graphs.
        half: also export the cores in float16, for GPUs; only for transformers that can be folded.
        single_file: also export one self-contained graph per mouse, which needs only onnxruntime.
        licence, citation: of the weights; by default what the checkpoints state, such as those of imported weights.
        scores: mouse_id -> test scores of the ensemble.
    """

    portable: bool = False
    gradients: bool = True
    half: bool = False
    single_file: bool = False
    licence: str | None = None
    citation: str | None = None
    notice: str | None = None
    scores: dict[str, MouseScores] = field(default_factory=dict)


def export_bundle(
    ensemble: Ensemble,
    output: str | Path,
    *,
    name: str | None = None,
    options: BundleOptions | None = None,
    force: bool = False,
) -> Manifest:
    """Exports an ensemble of one or more members to a bundle folder. With `force`, it replaces an older bundle, which
    stays in its place until the new one is whole.

    Raises:
        ConfigError: the graphs differ from torch by more than the bound; the message names the worst neuron. Then
            nothing is written.
        CheckpointError: the output folder is not a bundle, or already is one, or cannot be written.
    """
    folder = Path(output)
    check_place(folder, force=force)
    with writing(f"bundle {folder}"), replacing(folder) as temporary:
        return _write(ensemble, temporary, name or folder.resolve().name, options or BundleOptions())


def check_place(folder: Path, *, force: bool) -> None:
    """Raises a CheckpointError if a bundle must not be written to this folder."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    if not (folder / MANIFEST).is_file():
        raise CheckpointError(f"{folder} exists and is not a bundle", hint="Give another --output.")
    if not force:
        try:
            found = load_manifest(folder)
            got = f"{found.name!r}, {counted(found.members, 'member')}, exported {found.provenance.created}"
        except BundleError as error:
            got = f"a damaged bundle: {error.message}"
        hint = "Add --force to replace it, or give another --output."
        raise CheckpointError(f"{folder} already holds a bundle", got=got, expected="a new folder", hint=hint)


class _Writer:
    """Writes the files of one bundle: first its plan, then the graphs, then the manifest."""

    def __init__(self, ensemble: Ensemble, folder: Path, name: str, options: BundleOptions) -> None:
        self.ensemble = ensemble
        self.twins = [checkpoint.twin for checkpoint in ensemble.members]
        self.folder = folder
        self.name = name
        self.options = options
        self.simulated = any(mouse.simulated for mouse in ensemble.mice.values())
        self.folds = all(can_fold(twin.core) for twin in self.twins)
        if options.half and not self.folds:
            raise ConfigError(
                "not every member has a core that can be exported in float16",
                got=", ".join(sorted({twin.config.core.kind for twin in self.twins})),
                expected="ViT or V1T without locality self-attention",
                hint="Leave out --fp16.",
            )
        self.plan = {**self._plan_of_members(), **self._plan_of_mice()}
        self.files: dict[str, File] = {}

    def _plan_of_members(self) -> dict[str, Callable[[], Graph]]:
        """Path -> how to make the graph, for the graphs of members."""
        portable, with_gradients = self.options.portable, self.options.gradients
        makers: dict[str, tuple[Callable[[Twin], Graph], bool]] = {
            "core": (partial(forward.core, portable=portable), True),
            "attention": (forward.attention, all(has_attention(twin) for twin in self.twins)),
            "token_core": (partial(forward.token_core, portable=portable), self.folds),
            "half_core": (partial(forward.half_core, portable=portable), self.options.half),
            "core_tape": (partial(backward.core_tape, portable=portable), with_gradients),
            "core_gradient": (backward.core_gradient, with_gradients),
        }
        return {
            f"members/{i}/{name}.onnx": partial(make, twin)
            for name, (make, wanted) in makers.items()
            for i, twin in enumerate(self.twins)
            # A core that is not folded has no tape: its backward pass needs its inputs.
            if wanted and (name != "core_tape" or can_fold(twin.core))
        }

    def _plan_of_mice(self) -> dict[str, Callable[[], Graph]]:
        """Path -> how to make the graph, for the graphs of mice."""
        gradients, everyone = self.options.gradients, len(self.twins)
        stems = 1 if self.ensemble.shares_stems else everyone
        makers: dict[str, tuple[Callable[[Twin, str], Graph], int]] = {
            "stem": (forward.stem, stems),
            "readout": (forward.readout, everyone),
            "half_readout": (forward.half_readout, everyone if self.options.half else 0),
            "touched_tokens": (forward.touched_tokens, everyone if self.folds else 0),
            "stem_gradient": (backward.stem_gradient, stems if gradients else 0),
            "readout_gradient": (backward.readout_gradient, everyone if gradients else 0),
        }
        plan: dict[str, Callable[[], Graph]] = {}
        for mouse_id, combination in self.ensemble.combinations.items():
            place = f"mice/{mouse_id}"
            for name, (make, n) in makers.items():
                for i, twin in enumerate(self.twins[:n]):
                    plan[f"{place}/member{i}.{name}.onnx"] = partial(make, twin, mouse_id)
            plan[f"{place}/ensemble.onnx"] = partial(forward.ensemble, combination)
            if gradients:
                plan[f"{place}/ensemble_gradient.onnx"] = partial(backward.ensemble_gradient, combination)
            if self.options.single_file:
                plan[f"{place}/{TWIN}"] = partial(single_file.single_file, self.ensemble, mouse_id)
        return plan

    def write(self) -> Manifest:
        """Writes all graphs; returns the manifest, in which parity is not measured yet."""
        templates, progress = Templates(), Progress(self.plan)
        weights: dict[Path, SharedWeights] = {}
        for path, make in self.plan.items():
            progress.before(path)
            target = self.folder / path
            target.parent.mkdir(parents=True, exist_ok=True)
            if target.name == TWIN:
                mouse = self.ensemble.mice[target.parent.name]
                metadata = single_file.metadata(
                    mouse,
                    model=self.name,
                    notice=self._notice(),
                    licence=self._licence(),
                    citation=self._citation(),
                )
                templates.write(make(), target, metadata=metadata)
            else:
                templates.write(make(), target)
                weights.setdefault(target.parent, SharedWeights(target.parent)).take_from(target)
            self.files[path] = _file(self.folder, path)
            progress.after(path)
        progress.finish()
        shared = [one.path.relative_to(self.folder).as_posix() for one in weights.values() if one.path.exists()]
        return self._manifest([_file(self.folder, path) for path in shared])

    def _manifest(self, weights: list[File]) -> Manifest:
        cores, gradients = self._of_members("core"), self.options.gradients
        tapes = [self.files.get(f"members/{i}/core_tape.onnx", core) for i, core in enumerate(cores)]
        channels = {mouse.behavior_channels for mouse in self.ensemble.mice.values()}
        return Manifest(
            schema_version=1 if channels == {SENSORIUM_BEHAVIOR} else 2,
            name=self.name,
            members=len(self.twins),
            simulated=self.simulated,
            notice=self._notice(),
            configs=[twin.config.model_dump(mode="json") for twin in self.twins],
            cores=cores,
            attention=self._of_members("attention"),
            token_cores=self._of_members("token_core"),
            half_cores=self._of_members("half_core"),
            core_tapes=tapes if gradients else [],
            core_gradients=self._of_members("core_gradient"),
            weights=weights,
            mice={mouse_id: self._mouse(mouse) for mouse_id, mouse in self.ensemble.mice.items()},
            provenance=_provenance(self.ensemble),
            licence=self._licence(),
            citation=self._citation(),
        )

    def _mouse(self, mouse: Mouse) -> MouseRecord:
        mouse_id = mouse.mouse_id
        place = f"mice/{mouse_id}"
        scores = self.options.scores.get(mouse_id)
        table = neuron_table(self.ensemble, mouse, {} if scores is None else scores.neurons)
        table.save(self.folder / place / "neurons.npz")

        def each(name: str) -> list[File]:
            """The graphs of the members."""
            paths = [f"{place}/member{i}.{name}.onnx" for i in range(len(self.twins))]
            return [self.files[path] for path in paths if path in self.files]

        return MouseRecord(
            mouse_id=mouse_id,
            data_key=mouse.data_key,
            mouse_index=self.twins[0].mouse_indices[mouse_id],
            image_shape=mouse.image_shape,
            image_channels=image_channels(mouse),
            behavior=behavior_channels(mouse),
            pupil_center=pupil_center_channels(mouse),
            states=behavior_states(mouse),
            uses=self.ensemble.uses(),
            standardized_inputs=mouse.standardized_inputs,
            n_neurons=mouse.n_neurons,
            neurons=_file(self.folder, f"{place}/neurons.npz"),
            stems=each("stem"),
            readouts=each("readout"),
            half_readouts=each("half_readout"),
            ensemble=self.files[f"{place}/ensemble.onnx"],
            touched_tokens=each("touched_tokens"),
            stem_gradients=each("stem_gradient"),
            readout_gradients=each("readout_gradient"),
            ensemble_gradient=self.files.get(f"{place}/ensemble_gradient.onnx"),
            twin=self.files.get(f"{place}/{TWIN}"),
            parity=UNMEASURED,
            scores={} if scores is None else {k: v for k, v in scores.summary.items() if math.isfinite(v)},
        )

    def _of_members(self, name: str) -> list[File]:
        paths = [f"members/{i}/{name}.onnx" for i in range(len(self.twins))]
        return [self.files[path] for path in paths if path in self.files]

    def _notice(self) -> str | None:
        return self.options.notice or (SIMULATED_NOTICE if self.simulated else None)

    def _licence(self) -> str:
        return self.options.licence or self._stated("licence") or NOT_STATED

    def _citation(self) -> str:
        return self.options.citation or self._stated("citation") or V1T_CITATION

    def _stated(self, what: str) -> str:
        """What the members' provenances state, such as the importer's citation."""
        stated = [str(member.provenance.get(what, "")) for member in self.ensemble.members]
        return "; ".join(dict.fromkeys(text for text in stated if text))


def _write(ensemble: Ensemble, folder: Path, name: str, options: BundleOptions) -> Manifest:
    manifest = _Writer(ensemble, folder, name, options).write()
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
        # Of several students together it is not known how far they agree with a teacher.
        distillation=made[0].get("distillation") if len(made) == 1 else None,
    )


EXAMPLES = """examples:
  python -m training export runs/v1t --output exported_models/mine
  python -m training export runs/v1t --recordings runs/recordings --output exported_models/mine --name mine
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EXAMPLES
    add_checkpoints(parser)
    add_output(parser, "folder to write", metavar="BUNDLE", force=True)
    parser.add_argument("--name", help="name of the bundle in replies (default: name of the folder)")
    recordings = "score the ensemble on the test trials of these recordings, and save the neurons' scores in the bundle"
    add_recordings(parser, recordings, required=False)
    parser.add_argument("--licence", help="licence of the weights (default: the one of imported weights)")
    citation = "citation for the weights (default: the paper of imported weights, else the V1T paper)"
    parser.add_argument("--citation", help=citation)
    parser.add_argument("--notice", help="a sentence that the server adds to every reply")
    parser.add_argument("--portable", action="store_true", help="use only standard ONNX operators, for other runtimes")
    half = "also write the cores in float16, for GPUs with V1T_PRECISION=fp16 (ViT and V1T)"
    parser.add_argument("--fp16", dest="half", action="store_true", help=half)
    single_file = "also write mice/MOUSE/twin.onnx, from raw inputs to responses, which needs only an ONNX runtime"
    parser.add_argument("--single-file", action="store_true", help=single_file)
    gradients = "leave out the graphs for gradients: exports in about half of the time, to a smaller bundle"
    parser.add_argument("--no-gradients", dest="gradients", action="store_false", help=gradients)


def run(args: argparse.Namespace) -> int:
    check_place(args.output, force=args.force)
    ensemble = load_ensemble(args.checkpoints)
    scores = evaluate(ensemble, open_recordings(args.recordings, nan_trials=args.nan_trials)) if args.recordings else {}
    given = {one.name: getattr(args, one.name) for one in fields(BundleOptions) if one.name != "scores"}
    options = BundleOptions(**given, scores=scores)
    manifest = export_bundle(ensemble, args.output, name=args.name, options=options, force=args.force)
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
