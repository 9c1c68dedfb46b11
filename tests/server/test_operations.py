"""docs/operations.md: the settings, routes and metrics that it names exist."""

from __future__ import annotations

import re

from support.checkout import ROOT

from server.api.app import create_app
from server.serving.context import Context
from server.serving.telemetry.metrics import Metrics
from server.serving.watchdog import HUNG
from server.settings import Settings

TEXT = (ROOT / "docs" / "operations.md").read_text()


def test_every_setting_that_it_names_exists() -> None:
    named = set(re.findall(r"\bV1T_[A-Z_]+", TEXT))
    assert named <= {f"V1T_{name.upper()}" for name in Settings.model_fields}


def test_every_file_that_it_includes_exists() -> None:
    included = re.findall(r"```\{literalinclude\} (\S+)", TEXT)
    assert len(included) == 4
    assert all((ROOT / "docs" / path).is_file() for path in included)


def test_the_routes_metrics_and_codes_that_it_names_exist() -> None:
    routes = {route.path for route in create_app(Context.open(Settings())).routes} | {"/livez", "/readyz"}
    named = set(re.findall(r"(?<![A-Za-z_.])/(?:admin/\w+|\w+z|metrics|receptive_fields)\b", TEXT))
    assert {"/admin/reload", "/readyz", "/livez", "/metrics", "/receptive_fields"} <= named
    assert named <= routes
    families = re.findall(r"^# TYPE (\w+)", Metrics().text().decode(), re.M)
    assert set(re.findall(r"\bv1t_\w+", TEXT)) <= set(families)
    assert f"code {HUNG}" in TEXT
