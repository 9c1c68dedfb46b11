"""The tables that the command line prints."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from v1t_client._answers.mice import Channel, Mouse, MouseDetail, NeuronTable
from v1t_client._answers.prediction import Prediction, count

__all__ = [
    "mice_table",
    "mouse_card",
    "neurons_table",
    "notes",
    "prediction_table",
]


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
