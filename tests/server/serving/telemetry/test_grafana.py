"""The Grafana dashboard: every metric and label in it exists in the server, and every metric of the server is in it."""

from __future__ import annotations

import json
import re
from typing import Any

from prometheus_client.parser import text_string_to_metric_families
from support.checkout import ROOT

from server.serving.telemetry.metrics import GPUMemory, Metrics

DASHBOARD = json.loads((ROOT / "docs" / "grafana.json").read_text())
OF_PROMETHEUS = {"le", "instance"}


def labels_of_samples() -> dict[str, set[str]]:
    """The labels of every sample that the server can give, once each collector has been used."""
    metrics = Metrics()
    collectors = [value for value in vars(metrics).values() if hasattr(value, "_labelnames")]
    for collector in collectors:
        labelled = collector.labels(*["x"] * len(collector._labelnames)) if collector._labelnames else collector
        for touch in ("observe", "inc"):
            if hasattr(labelled, touch):
                getattr(labelled, touch)(1)
                break
    found: dict[str, set[str]] = {}
    families = [*text_string_to_metric_families(metrics.text().decode())]
    for family in [*families, *GPUMemory().describe()]:
        if not family.samples:  # of the GPU, which this machine may not have
            found[family.name] = {"gpu", "state"}
        for sample in family.samples:
            found.setdefault(sample.name, set()).update(sample.labels)
    return found


def expressions() -> list[str]:
    variables = DASHBOARD["templating"]["list"]
    asked = [one["query"]["query"] for one in variables if one["type"] == "query"]
    return asked + [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]


def names(expression: str) -> set[str]:
    return set(re.findall(r"\b(?:v1t|process)_\w+", expression))


def test_every_metric_of_the_dashboard_exists() -> None:
    known = labels_of_samples()
    for expression in expressions():
        assert names(expression), expression
        assert names(expression) <= known.keys(), expression


def test_every_label_of_the_dashboard_is_one_of_its_metric() -> None:
    known = labels_of_samples()

    def check(expression: str, legend: str) -> None:
        allowed = OF_PROMETHEUS.union(*(known[name] for name in names(expression)))
        used = set(re.findall(r"(\w+)(?:!~|=~|!=|=)\"", expression)) | set(re.findall(r"{{(\w+)}}", legend))
        for grouping in re.findall(r"\bby \(([^)]*)\)", expression):
            used |= {label.strip() for label in grouping.split(",")}
        assert used <= allowed, expression

    for panel in DASHBOARD["panels"]:
        for target in panel["targets"]:
            check(target["expr"], target["legendFormat"])


def test_every_metric_of_the_server_is_on_the_dashboard() -> None:
    shown = set().union(*map(names, expressions()))
    ours = {family.name for family in Metrics().registry.collect() if family.name.startswith("v1t_")}
    missing = {name for name in ours if not any(one.startswith(name) for one in shown)}
    assert not missing


def test_panels_do_not_overlap_and_have_unique_ids() -> None:
    panels: list[dict[str, Any]] = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    cells = [
        (x, y)
        for place in (panel["gridPos"] for panel in panels)
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]
    assert len(set(cells)) == len(cells)
    assert max(x for x, _ in cells) < 24
