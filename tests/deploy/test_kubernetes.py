"""deploy/kubernetes: what kustomize builds is valid, and fits the server."""

from __future__ import annotations

from typing import Any

import kubernetes_validate
import pytest
import yaml
from support.checkout import ROOT
from support.tools import run, tool

from server.api.endpoints.table import ENDPOINTS
from server.serving.shutdown import Shutdown
from server.serving.telemetry.metrics import Metrics
from server.settings import Settings

OVERLAYS = ("cpu", "gpu", "autoscaling")
KUBERNETES = ("1.30", "1.37")  # the oldest with these APIs that we check, and the newest that is published
OF_OPERATORS = {"ServiceMonitor", "PrometheusRule", "ServingRuntime", "InferenceService"}  # not of Kubernetes itself

Object = dict[str, Any]


def build(overlay: str) -> dict[str, Object]:
    """The objects of an overlay, by kind."""
    text = run(tool("kubectl", "kubectl"), "kustomize", ROOT / "deploy" / "kubernetes" / overlay)
    return {one["kind"]: one for one in yaml.safe_load_all(text)}


def container_of(objects: dict[str, Object]) -> Object:
    (container,) = objects["Deployment"]["spec"]["template"]["spec"]["containers"]
    return container


def settings_of(container: Object) -> Settings:
    return Settings.from_environment({one["name"]: one["value"] for one in container["env"]})


@pytest.mark.parametrize("version", KUBERNETES)
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_kubernetes_accepts_every_object(overlay: str, version: str) -> None:
    objects = build(overlay)
    assert {"Deployment", "Service", "PodDisruptionBudget", "NetworkPolicy"} <= set(objects)
    for kind, one in objects.items():
        if kind not in OF_OPERATORS:
            kubernetes_validate.validate(one, version, strict=True)


def test_a_misspelt_field_is_refused() -> None:
    deployment = build("cpu")["Deployment"]
    deployment["spec"]["template"]["spec"]["terminationGraceSeconds"] = 40
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(deployment, KUBERNETES[-1], strict=True)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_everything_selects_the_pods_of_the_deployment_and_only_those(overlay: str) -> None:
    objects = build(overlay)
    labels = objects["Deployment"]["spec"]["template"]["metadata"]["labels"]
    assert labels == {"app.kubernetes.io/name": "v1t"}
    assert objects["Deployment"]["spec"]["selector"]["matchLabels"] == labels
    assert objects["Service"]["spec"]["selector"] == labels
    assert objects["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"] == labels
    assert objects["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"] == labels


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_pod_leaves_time_for_requests_in_flight(overlay: str) -> None:
    objects = build(overlay)
    container = container_of(objects)
    waits = int(container["lifecycle"]["preStop"]["exec"]["command"][1])
    longest = waits + settings_of(container).drain + Shutdown.GRACE
    assert longest < objects["Deployment"]["spec"]["template"]["spec"]["terminationGracePeriodSeconds"]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_container_writes_only_where_it_has_a_volume(overlay: str) -> None:
    objects = build(overlay)
    container, pod = container_of(objects), objects["Deployment"]["spec"]["template"]["spec"]
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    assert pod["securityContext"]["runAsNonRoot"] is True
    environment = {one["name"]: one["value"] for one in container["env"]}
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    writable = {mount["mountPath"] for mount in container["volumeMounts"] if "emptyDir" in volumes[mount["name"]]}
    assert {environment["TMPDIR"], environment["BENTOML_HOME"].rsplit("/", 1)[0]} == writable
    mounted = tuple(mount["mountPath"] for mount in container["volumeMounts"])
    for name in ("V1T_BUNDLES", "V1T_API_KEYS_FILE", "V1T_ADMIN_KEYS_FILE"):
        assert environment[name].startswith(mounted)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_probes_ask_routes_that_need_no_key(overlay: str) -> None:
    container = container_of(build(overlay))
    open_routes = {endpoint.path for endpoint in ENDPOINTS if endpoint.key == "none"}
    paths = {name: container[f"{name}Probe"]["httpGet"]["path"] for name in ("startup", "readiness", "liveness")}
    assert paths == {"startup": "/readyz", "readiness": "/readyz", "liveness": "/livez"}
    assert set(paths.values()) <= open_routes
    startup = container["startupProbe"]
    assert startup["periodSeconds"] * startup["failureThreshold"] > settings_of(container).load_timeout


def test_the_gpu_overlay_sets_what_was_fastest_on_gpus() -> None:
    objects = build("gpu")
    container = container_of(objects)
    settings = settings_of(container)
    assert (settings.provider, settings.precision, settings.max_batch) == ("cuda", "fp16", 64)
    assert not settings.cuda_graphs  # faster for lone images only
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert objects["Deployment"]["spec"]["strategy"]["rollingUpdate"] == {"maxUnavailable": 1, "maxSurge": 0}


def test_replicas_follow_a_metric_that_the_server_has() -> None:
    objects = build("autoscaling")
    (metric,) = objects["HorizontalPodAutoscaler"]["spec"]["metrics"]
    name = metric["pods"]["metric"]["name"]
    assert f"# TYPE {name} gauge" in Metrics().text().decode()
    assert "replicas" not in objects["Deployment"]["spec"]  # `kubectl apply` would reset the number
    assert objects["HorizontalPodAutoscaler"]["spec"]["scaleTargetRef"]["name"] == "v1t"


def test_prometheus_scrapes_the_service_and_has_the_same_alerts() -> None:
    objects = build("autoscaling")
    (endpoint,) = objects["ServiceMonitor"]["spec"]["endpoints"]
    (port,) = objects["Service"]["spec"]["ports"]
    assert (endpoint["port"], endpoint["path"]) == (port["name"], "/metrics")
    assert objects["ServiceMonitor"]["spec"]["selector"]["matchLabels"] == objects["Service"]["metadata"]["labels"]
    alerts = yaml.safe_load((ROOT / "deploy" / "prometheus" / "alerts.yaml").read_text())
    assert objects["PrometheusRule"]["spec"] == alerts


def test_kserve_runs_the_server_as_a_runtime_of_the_open_inference_protocol() -> None:
    objects = build("kserve")
    runtime, service = objects["ServingRuntime"]["spec"], objects["InferenceService"]["spec"]["predictor"]["model"]
    (container,) = runtime["containers"]
    assert container["name"] == "kserve-container"  # the name that KServe looks for
    assert runtime["protocolVersions"] == [service["protocolVersion"]] == ["v2"]
    assert runtime["supportedModelFormats"][0]["name"] == service["modelFormat"]["name"]
    assert service["runtime"] == objects["ServingRuntime"]["metadata"]["name"]
    assert str(settings_of(container).bundles[0]) == "/mnt/models"  # where KServe puts them
    routes = {endpoint.path for endpoint in ENDPOINTS if endpoint.key == "none"}
    for probe in ("startup", "readiness", "liveness"):
        assert container[f"{probe}Probe"]["httpGet"]["path"] in routes
    pod = {"containers": [container], "volumes": runtime["volumes"]}
    of_kubernetes = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "v1t"}, "spec": pod}
    kubernetes_validate.validate(of_kubernetes, KUBERNETES[-1], strict=True)
