"""`python -m training card`: a bundle's model card, written from its manifest."""

from __future__ import annotations

import argparse
from pathlib import Path

import yaml

from server.bundle.manifest import Channel, Manifest, MouseRecord, load_manifest
from server.errors import BundleError
from training.errors import CheckpointError
from training.files import write_atomically
from training.tables import counted, markdown_table

__all__ = ["CARD", "add_arguments", "card", "run"]

CARD = "README.md"  # beside the manifest, which does not name it: the bundle's hash stays the same

EXAMPLES = """examples:
  python -m training card exported_models/mine
  python -m training card exported_models/mine --force      # after another export
"""


def card(manifest: Manifest) -> str:
    """The model card in Markdown, with the metadata of a Hugging Face model card."""
    mice = list(manifest.mice.values())
    neurons = sum(mouse.n_neurons for mouse in mice)
    metadata = {
        "license": manifest.licence.lower() if manifest.licence in ("MIT", "Apache-2.0") else "other",
        "library_name": "onnx",
        "tags": ["neuroscience", "visual-cortex", "digital-twin", *(["simulated"] if manifest.simulated else [])],
    }
    what = "simulated mouse" if manifest.simulated else "mouse"
    whats = "simulated mice" if manifest.simulated else "mice"
    about = f"A digital twin of {counted(len(mice), what, whats)} with {counted(neurons, 'neuron')} in all: it predicts"
    about += " each neuron's response to an image, from the image, the mouse's behaviour and its gaze."
    parts = [
        f"---\n{yaml.safe_dump(metadata, sort_keys=False)}---",
        f"# {manifest.name}",
        *([f"**{manifest.notice}**"] if manifest.notice else []),
        about,
        "## The model",
        "\n".join([*_members(manifest), f"- SHA-256 of the bundle: `{manifest.hash}`"]),
        "## Mice",
        markdown_table(
            ["mouse", "recording", "neurons", "image (C, H, W)", "inputs it uses", "largest difference from torch"],
            [_mouse(mouse) for mouse in mice],
        ),
        "## Scores on the test trials",
        _scores(mice),
        "## Inputs over the training trials",
        _inputs(mice),
        "## Intended use, and limits",
        "Predictions of the mean response of these neurons in this recording, and in-silico experiments on them. "
        "Compare each neuron's score with its noise ceiling first. The twin extrapolates on images and behaviour "
        "unlike those of the table above; replies say so under `notes`, and `strict=true` refuses them. It describes "
        "associations, not causes, and neither other sessions nor other animals.",
        "## Where it comes from",
        _provenance(manifest),
        "## Licence and citation",
        f"Licence of the weights: {manifest.licence}.\n\n> {manifest.citation}",
    ]
    return "\n\n".join(part.rstrip("\n") for part in parts) + "\n"


def _members(manifest: Manifest) -> list[str]:
    """A line for each configuration that members share."""
    lines: dict[str, int] = {}
    for config in manifest.configs:
        core = {name: value for name, value in config.get("core", {}).items() if value is not None}
        settings = ", ".join(f"{name} {value}" for name, value in core.items() if name != "kind")
        line = f"core {core.get('kind', 'not stated')}" + (f" ({settings})" if settings else "")
        for name in ("behavior", "shifter"):
            if name in config:
                line += f"; {name} {config[name]}"
        lines[line] = lines.get(line, 0) + 1
    return [f"- {counted(n, 'member')}: {line}" for line, n in lines.items()]


def _mouse(mouse: MouseRecord) -> list[str]:
    shape = " x ".join(map(str, mouse.image_shape))
    parity = f"{mouse.parity.max_abs_error:.1e}"
    return [mouse.mouse_id, mouse.data_key or "-", str(mouse.n_neurons), shape, ", ".join(mouse.uses), parity]


def _scores(mice: list[MouseRecord]) -> str:
    names = list(dict.fromkeys(name for mouse in mice for name in mouse.scores))
    if not names:
        return "Not evaluated: `python -m training export --recordings` writes scores into the bundle."
    rows = [
        [mouse.mouse_id, *(f"{mouse.scores[name]:.3f}" if name in mouse.scores else "-" for name in names)]
        for mouse in mice
    ]
    return markdown_table(["mouse", *names], rows)


def _inputs(mice: list[MouseRecord]) -> str:
    if all(mouse.standardized_inputs for mouse in mice):
        return "Not known: inputs have to be standardised already."
    rows = [
        [mouse.mouse_id, channel.name, channel.unit, *_statistics(channel)]
        for mouse in mice
        for channel in (*mouse.image_channels, *mouse.behavior, *mouse.pupil_center)
    ]
    return markdown_table(["mouse", "input", "unit", "mean", "std", "smallest", "largest"], rows)


def _statistics(channel: Channel) -> list[str]:
    values = (channel.mean, channel.std, channel.min, channel.max)
    return ["-" if value is None else f"{value:.4g}" for value in values]


def _provenance(manifest: Manifest) -> str:
    provenance = manifest.provenance
    rows = [["source", provenance.source], ["made", provenance.created]]
    if provenance.seeds:
        rows.append(["seeds", ", ".join(map(str, provenance.seeds))])
    if provenance.commit:
        rows.append(["commit", provenance.commit])
    if provenance.versions:
        rows.append(["versions", ", ".join(f"{name} {version}" for name, version in provenance.versions.items())])
    rows += [[f"SHA-256 of the recording of {mouse}", value] for mouse, value in provenance.data_hashes.items()]
    rows += [[f"SHA-256 of member {i}", value] for i, value in enumerate(provenance.checkpoints)]
    return markdown_table(["", ""], rows)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EXAMPLES
    parser.add_argument("bundle", type=Path, metavar="BUNDLE", help=f"a bundle; the card is its {CARD}")
    parser.add_argument("--force", action="store_true", help="replace the card that is there")


def run(args: argparse.Namespace) -> int:
    if not args.bundle.is_dir():
        hint = "`python -m training export` writes one."
        raise CheckpointError(f"{args.bundle} is not a folder", expected="a bundle", hint=hint)
    try:
        manifest = load_manifest(args.bundle)
    except BundleError as error:
        raise CheckpointError(str(error)) from error
    path = args.bundle / CARD
    if path.exists() and not args.force:
        raise CheckpointError(f"{path} exists", hint="Give --force to replace it.")
    write_atomically(path, card(manifest).encode())
    print(path)
    return 0
