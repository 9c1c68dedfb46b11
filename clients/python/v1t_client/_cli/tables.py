"""The tables that the command line prints."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from v1t_client._answers.mice import BehaviorState, Channel, Mouse, MouseDetail, NeuronTable
from v1t_client._answers.prediction import Prediction, count

__all__ = [
    "mice_table",
    "mouse_card",
    "neurons_table",
    "notes",
    "prediction_table",
]


def notes(prediction: Prediction) -> list[str]:
    """What to know about a prediction: whether it is simulated, what was assumed, and the server's notes."""
    lines = []
    if prediction.model.simulated:
        lines.append(f"simulated: {prediction.model.notice or 'this twin was trained on a simulated recording'}")
    elif prediction.model.notice:
        lines.append(f"notice: {prediction.model.notice}")
    lines += [f"assumed: {line}" for line in prediction.assumed]
    return lines + [f"note: {note}" for note in prediction.notes]


def prediction_table(prediction: Prediction, *, top: int) -> str:
    """The `top` strongest responses to each image."""
    n_images, n_neurons = prediction.responses.shape
    model = prediction.model
    name = model.name if model.version is None else f"{model.name}@{model.version}"
    title = (
        f"{'SIMULATED ' if model.simulated else ''}mouse {prediction.mouse}, model {name} {model.hash[:12]}: "
        f"{count(n_images, 'image')} x "
        f"{count(n_neurons, 'neuron')}, {prediction.units} responses"
    )
    header = ["image", "neuron", "response"] + (["spread"] if prediction.spread is not None else [])
    rows = []
    for i, responses in enumerate(prediction.responses):
        for j in np.argsort(-responses, kind="stable")[:top]:
            row = [
                prediction.images[i] if prediction.images else str(i),
                str(prediction.neuron_ids[j]),
                f"{responses[j]:.4f}",
            ]
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
            "standardised" if mouse.standardized_inputs else "as recorded",
        ]
        for mouse in mice
    ]
    return _table(["mouse", "model", "neurons", "image (C x H x W)", "uses", "recording", "inputs"], rows)


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
    states = [_state_row(state, mouse) for state in mouse.states]
    channels = [*mouse.image_channels, *mouse.behavior, *mouse.pupil_center]
    table = _table(["input", "unit", "median", "mean", "std", "min", "max"], map(_channel_row, channels))
    for channel in mouse.image_channels:
        if channel.image_mean is not None and channel.image_contrast is not None:
            mean, contrast = (f"{low:.4g} to {high:.4g}" for low, high in (channel.image_mean, channel.image_contrast))
            table += f"\n{channel.name} of one image: mean {mean}, std over its pixels {contrast}"
    names = ["trials", *(channel.name for channel in (*mouse.behavior, *mouse.pupil_center)), "definition"]
    return "\n".join([*lines, "", table, *(["", _table(["state", *names], states)] if states else [])])


def neurons_table(neurons: NeuronTable) -> str:
    """One row per neuron."""
    looks_at = neurons.readout_position_px
    reads = [] if looks_at is None else ["reads x px", "reads y px"]
    header = ["neuron", "x um", "y um", "z um", *reads, "response std", *neurons.scores]
    rows = [
        [
            str(neurons.neuron_ids[i]),
            *(_value(c, ".1f") for c in neurons.coordinates_um[i].tolist()),
            *([] if looks_at is None else (f"{c:.1f}" for c in looks_at[i].tolist())),
            _value(neurons.response_std[i].item(), ".4g"),
            *(_value(score[i].item(), ".4f") for score in neurons.scores.values()),
        ]
        for i in range(len(neurons))
    ]
    return _table(header, rows)


def _channel_row(channel: Channel) -> list[str]:
    statistics = (channel.median, channel.mean, channel.std, channel.min, channel.max)
    return [channel.name, channel.unit, *(_value(value, ".4g") for value in statistics)]


def _state_row(state: BehaviorState, mouse: MouseDetail) -> list[str]:
    values = mouse.state_values(state.name)
    shown = [_value(values.get(channel.name), ".4g") for channel in (*mouse.behavior, *mouse.pupil_center)]
    return [state.name, f"{state.trials:,}", *shown, state.definition]


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
