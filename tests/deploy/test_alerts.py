"""deploy/prometheus: the alerts, by promtool."""

from __future__ import annotations

import re

import yaml
from support.checkout import ROOT
from support.tools import run, tool

from server.serving.telemetry.metrics import Metrics

PROMETHEUS = ROOT / "deploy" / "prometheus"
RULES = yaml.safe_load((PROMETHEUS / "alerts.yaml").read_text())["groups"][0]["rules"]
TESTS = yaml.safe_load((PROMETHEUS / "alerts.test.yaml").read_text())["tests"]


def test_promtool_accepts_the_rules_and_their_tests_pass() -> None:
    promtool = tool("promtool", "prometheus")
    run(promtool, "check", "rules", PROMETHEUS / "alerts.yaml")
    run(promtool, "test", "rules", PROMETHEUS / "alerts.test.yaml")


def test_every_alert_is_tested_when_it_fires_and_when_it_does_not() -> None:
    checks = [check for test in TESTS for check in test["alert_rule_test"]]
    alerts = {rule["alert"] for rule in RULES}
    assert {check["alertname"] for check in checks if check.get("exp_alerts")} == alerts
    assert {check["alertname"] for check in checks if not check.get("exp_alerts")} == alerts


def test_the_server_has_every_metric_and_label_that_an_alert_reads() -> None:
    families = set(re.findall(r"^# TYPE (\w+)", Metrics().text().decode(), re.M))
    expressions = " ".join(rule["expr"] for rule in RULES)
    asked = {name.removesuffix("_bucket") for name in re.findall(r"\b(?:v1t|process)_\w+", expressions)}
    assert len(asked) >= 8
    assert asked <= families
    reasons = re.search(r'reason=~"([\w|]+)"', expressions)
    assert reasons is not None
    limits = "".join(path.read_text() for path in (ROOT / "server" / "serving" / "limits").glob("*.py"))
    assert all(f'"{reason}"' in limits for reason in reasons[1].split("|"))
