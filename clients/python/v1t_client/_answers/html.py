"""The HTML by which notebooks show an answer: facts and a small table, without scripts, pictures or links."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from v1t_client._answers.attention import Attention
    from v1t_client._answers.gradient import Gradient
    from v1t_client._answers.prediction import Model, Prediction

__all__ = ["html_card", "model_facts", "origin_facts"]

_CELL = "padding:1px 8px 1px 0;vertical-align:top"


def origin_facts(answer: Prediction | Gradient | Attention) -> list[tuple[str, str]]:
    """Where an answer comes from: mouse, model, whether it is simulated, state, assumptions and notes."""
    facts = [("mouse", answer.mouse), *model_facts(answer.model)]
    facts += [("state", answer.state)] if answer.state else []
    facts += [("assumed", line) for line in answer.assumed]
    return facts + [("note", str(note)) for note in answer.notes]


def model_facts(model: Model) -> list[tuple[str, str]]:
    """Name, version, hash and members of a model, and whether it is simulated."""
    name = model.name if model.version is None else f"{model.name}@{model.version}"
    members = f"{model.members} member" + ("s" if model.members != 1 else "")
    facts = [("model", f"{name} {model.hash[:12]}, {members}")]
    if model.simulated:
        return [("simulated", model.notice or "trained on a simulated recording"), *facts]
    return [*facts, ("notice", model.notice)] if model.notice else facts


def html_card(
    title: str, facts: Iterable[tuple[str, str]], columns: Mapping[str, Iterable[Any]] | None = None, caption: str = ""
) -> str:
    """A title, a row per fact, and a table of columns with its caption. All texts are escaped.

    Args:
        columns: heading -> values, of equal lengths.
    """
    rows = "".join(
        f'<tr><th style="text-align:left;{_CELL}">{escape(name)}</th>'
        f'<td style="text-align:left;{_CELL}">{escape(value)}</td></tr>'
        for name, value in facts
    )
    html = f"<div><strong>{escape(title)}</strong><table>{rows}</table>"
    if columns:
        heads = "".join(f'<th style="text-align:right;{_CELL}">{escape(name)}</th>' for name in columns)
        body = "".join(
            "<tr>" + "".join(f'<td style="text-align:right;{_CELL}">{escape(_cell(value))}</td>' for value in row)
            + "</tr>"
            for row in zip(*columns.values(), strict=True)
        )  # fmt: skip
        html += (
            f"<table><caption>{escape(caption)}</caption><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table>"
        )
    return html + "</div>"


def _cell(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float | np.floating) else str(value)
