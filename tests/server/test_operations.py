"""docs/operations.md: the settings, routes and metrics that it names exist."""

from __future__ import annotations

import configparser
import re

import yaml
from support.checkout import ROOT

from server.api.app import create_app
from server.serving.context import Context
from server.serving.shutdown import Shutdown
from server.serving.telemetry.metrics import Metrics
from server.serving.watchdog import HUNG
from server.settings import Settings

TEXT = (ROOT / "docs" / "operations.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", TEXT, re.DOTALL)


def test_every_setting_that_it_names_exists() -> None:
    named = set(re.findall(r"\bV1T_[A-Z_]+", TEXT))
    assert named <= {f"V1T_{name.upper()}" for name in Settings.model_fields}


def test_the_environment_that_it_gives_is_accepted() -> None:
    (environment,) = (block for block in blocks("sh") if block.startswith("V1T_"))
    given = dict(line.split("=", 1) for line in environment.splitlines())
    assert str(Settings.from_environment(given).api_keys_file) == "/etc/v1t/keys"
    deployment = next(yaml.safe_load_all(blocks("yaml")[0]))
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    given = {one["name"]: one["value"] for one in container["env"]}
    assert Settings.from_environment(given).watch == 30
    assert given["BENTOML_HOST"] == "0.0.0.0"


def test_it_leaves_time_for_requests_in_flight() -> None:
    deployment, service = yaml.safe_load_all(blocks("yaml")[0])
    pod = deployment["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    before = int(container["lifecycle"]["preStop"]["exec"]["command"][1])
    longest = Settings.model_fields["drain"].default + Shutdown.GRACE
    assert before + longest < pod["terminationGracePeriodSeconds"]
    unit = configparser.ConfigParser()
    unit.read_string(blocks("ini")[0].replace("Environment=", "Environment2=", 1))
    assert longest < int(unit["Service"]["TimeoutStopSec"])
    assert service["spec"]["selector"] == deployment["spec"]["template"]["metadata"]["labels"]


def test_the_routes_metrics_and_codes_that_it_names_exist() -> None:
    routes = {route.path for route in create_app(Context.open(Settings())).routes} | {"/livez", "/readyz"}  # type: ignore[attr-defined]
    named = set(re.findall(r"(?<![A-Za-z_.])/(?:admin/\w+|\w+z|metrics|receptive_fields)\b", TEXT))
    assert {"/admin/reload", "/readyz", "/livez", "/metrics", "/receptive_fields"} <= named
    assert named <= routes
    families = re.findall(r"^# TYPE (\w+)", Metrics().text().decode(), re.M)
    (group,) = yaml.safe_load(blocks("yaml")[1])["groups"]
    asked = set(re.findall(r"\bv1t_\w+", TEXT + str(group["rules"])))
    assert {metric.removesuffix("_bucket") for metric in asked} <= set(families)
    assert f"code {HUNG}" in TEXT
