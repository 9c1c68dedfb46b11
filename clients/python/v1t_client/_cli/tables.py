"""The output of the command line: tables on the terminal, and files."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from v1t_client._answers.mice import Channel, Mouse, MouseDetail, NeuronTable
from v1t_client._answers.prediction import Prediction, count
from v1t_client._errors import InvalidArgument

__all__ = [
    "check_output",
    "mice_table",
    "mouse_card",
    "neurons_table",
    "notes",
    "prediction_table",
    "write_prediction",
]

_ENDINGS = (".npy", ".csv", ".json")


def notes(prediction: Prediction) -> list[str]:
    """Notes about a prediction: whether it is simulated, and what was assumed."""
    lines = []
    if prediction.model.simulated:
        lines.append(f"simulated: {prediction.model.notice or 'this twin was trained on a simulated recording'}")
    elif prediction.model.notice:
        lines.append(f"notice: {prediction.model.notice}")
    return lines + [f"assumed: {line}" for line in prediction.assumed]


def prediction_table(prediction: Prediction, *, top: int) -> str:
    """The `top` strongest responses to each image."""
    n_images, n_neurons = prediction.responses.shape
    model = prediction.model
    title = (
        f"mouse {prediction.mouse}, model {model.name} {model.hash[:12]}: {count(n_images, 'image')} x "
        f"{count(n_neurons, 'neuron')}, {prediction.units} responses"
    )
    header = ["image", "neuron", "response"] + (["spread"] if prediction.spread is not None else [])
    rows = []
    for i, responses in enumerate(prediction.responses):
        for j in np.argsort(-responses, kind="stable")[:top]:
            row = [str(i), str(prediction.neuron_ids[j]), f"{responses[j]:.4f}"]
            rows.append(row if prediction.spread is None else [*row, f"{prediction.spread[i, j]:.4f}"])
    shown = f"the {top} strongest of each image" if top < n_neurons else "strongest first"
    return f"{title}; {shown}\n{_table(header, rows)}"


def mice_table(mice: Sequence[Mouse]) -> str:
    """One row per mouse."""
    rows = [
        [
            mouse.mouse_id,
            mouse.model,
            f"{mouse.n_neurons:,}",
            " x ".join(map(str, mouse.image_shape)),
            ", ".join(mouse.uses),
            "simulated" if mouse.simulated else mouse.data_key or "",
        ]
        for mouse in mice
    ]
    return _table(["mouse", "model", "neurons", "image (C x H x W)", "uses", "recording"], rows)


def mouse_card(mouse: MouseDetail) -> str:
    """All information about one mouse."""
    recording = mouse.data_key or "unnamed"
    facts = [
        ("mouse", mouse.mouse_id),
        ("recording", f"{recording} (simulated)" if mouse.simulated else recording),
        ("model", f"{mouse.model} {mouse.bundle.hash[:12]}, {count(mouse.members, 'member')}"),
        ("neurons", f"{mouse.n_neurons:,}"),
        ("image", " x ".join(map(str, mouse.image_shape)) + " (C x H x W)"),
        ("uses", ", ".join(mouse.uses)),
        *((name, f"{score:.4f}") for name, score in mouse.scores.items()),
        ("licence", mouse.licence),
        ("citation", mouse.citation),
        ("notice", mouse.bundle.notice or ""),
    ]
    width = max(len(name) for name, value in facts if value)
    lines = [f"{name:<{width}}  {value}" for name, value in facts if value]
    if mouse.standardized_inputs:
        lines.append("inputs must be standardised, because the statistics of the recording are not known")
    channels = [*mouse.image_channels, *mouse.behavior, *mouse.pupil_center]
    return "\n".join([*lines, "", _table(["input", "unit", "mean", "std", "min", "max"], map(_channel_row, channels))])


def neurons_table(neurons: NeuronTable) -> str:
    """One row per neuron."""
    header = ["neuron", "x um", "y um", "z um", "response std", *neurons.scores]
    rows = [
        [
            str(neurons.neuron_ids[i]),
            *(_value(c, ".1f") for c in neurons.coordinates_um[i].tolist()),
            _value(neurons.response_std[i].item(), ".4g"),
            *(_value(score[i].item(), ".4f") for score in neurons.scores.values()),
        ]
        for i in range(len(neurons))
    ]
    return _table(header, rows)


def check_output(path: Path | None, *, force: bool) -> None:
    """Refuses an output file before the request is sent, not afterwards.

    Raises:
        InvalidArgument: unknown file type, no such folder, or the file exists already.
    """
    if path is None:
        return
    if path.suffix not in _ENDINGS:
        raise InvalidArgument("--output has an unknown file type", got=path.name, expected=" or ".join(_ENDINGS))
    if not path.parent.is_dir():
        raise InvalidArgument("--output is in a folder that does not exist", got=path)
    if path.exists() and not force:
        raise InvalidArgument("--output exists already", got=path, hint="Choose another name, or add --force.")


def write_prediction(prediction: Prediction, path: Path) -> None:
    """Writes all responses: .npy (B, n), or (2, B, n) with spread; .csv with a row per image and neuron; .json.

    Raises:
        InvalidArgument: the file cannot be written.
    """
    try:
        if path.suffix == ".npy":
            arrays = prediction.responses if prediction.spread is None else [prediction.responses, prediction.spread]
            with path.open("wb") as stream:
                np.save(stream, np.asarray(arrays, dtype=np.float32), allow_pickle=False)
        elif path.suffix == ".json":
            path.write_text(json.dumps(prediction.to_dict(), indent=1) + "\n", encoding="utf-8")
        else:
            _write_csv(prediction, path)
    except OSError as error:
        raise InvalidArgument(f"--output cannot be written: {error.strerror or error}", got=path) from error


def _write_csv(prediction: Prediction, path: Path) -> None:
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(["image", "neuron_id", "response"] + (["spread"] if prediction.spread is not None else []))
        for i in range(len(prediction)):
            columns = [prediction.neuron_ids.tolist(), prediction.responses[i].tolist()]
            if prediction.spread is not None:
                columns.append(prediction.spread[i].tolist())
            writer.writerows([i, *row] for row in zip(*columns, strict=True))


def _channel_row(channel: Channel) -> list[str]:
    statistics = (channel.mean, channel.std, channel.min, channel.max)
    return [channel.name, channel.unit, *(_value(value, ".4g") for value in statistics)]


def _value(value: float | None, form: str) -> str:
    return "-" if value is None or np.isnan(value) else format(value, form)


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Aligned columns: numbers to the right, words to the left."""
    rows = list(rows)
    columns = list(zip(header, *rows, strict=True))
    widths = [max(map(len, column)) for column in columns]
    numeric = [bool(rows) and all(_is_number(cell) for cell in column[1:]) for column in columns]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(row, widths, numeric, strict=True)
        ).rstrip()
        for row in [header, *rows]
    )


def _is_number(cell: str) -> bool:
    try:
        float(cell.replace(",", ""))
    except ValueError:
        return cell == "-"
    return True
