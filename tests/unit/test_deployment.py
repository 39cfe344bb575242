"""The files of docker/: each is checked by itself, and against what the others and the server say."""

from __future__ import annotations

import itertools
import json
import re
import subprocess
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
import yaml
from pydantic import BaseModel, ConfigDict, Field

from service.app import create_app
from service.metrics import Metrics
from service.settings import Settings
from tests.programs import installed_program

ROOT = Path(__file__).parents[2]
DOCKER = ROOT / "docker"
BASE = DOCKER / "kubernetes" / "base"
OVERLAYS = ("cpu", "gpu")
HAPROXY = (DOCKER / "haproxy.cfg").read_text()
ALERTS = (DOCKER / "alerts.yml").read_text()
DASHBOARD = json.loads((DOCKER / "grafana/dashboards/clipserve.json").read_text())
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]


def read_yaml(path: Path) -> Any:
    return yaml.safe_load(path.read_text())


COMPOSE = read_yaml(DOCKER / "compose.yaml")
PROMETHEUS = read_yaml(DOCKER / "prometheus.yml")
RULES = [rule for group in yaml.safe_load(ALERTS)["groups"] for rule in group["rules"]]
DEPLOYMENT = read_yaml(BASE / "deployment.yaml")
POD = DEPLOYMENT["spec"]["template"]["spec"]
CONTAINER = POD["containers"][0]
NAME = {"app.kubernetes.io/name": "clipserve"}


def seconds(text: str) -> float:
    number, unit = re.fullmatch(r"(\d+)(ms|s|m)", text).groups()
    return float(number) * {"ms": 0.001, "s": 1, "m": 60}[unit]


# Shapes


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class ComposeService(Strict):
    image: Annotated[str, Field(pattern=r"^[a-z][a-z0-9/-]*(:[A-Za-z0-9.-]+)?$")]
    build: str | None = None
    deploy: dict[Literal["replicas"], str] | None = None
    environment: dict[str, str | int] = {}
    command: list[str] = []
    volumes: list[Annotated[str, Field(pattern=r"^(\./|[a-z]|\$\{)[^:]*(:-[a-z]+\})?:/[^:]+(:ro)?$")]] = []
    tmpfs: list[str] = []
    read_only: bool = False
    cap_drop: list[Literal["ALL"]] = []
    security_opt: list[str] = []
    stop_grace_period: str = "10s"
    stop_signal: str | None = None
    restart: Literal["unless-stopped"]
    ports: list[Annotated[str, Field(pattern=r"^((127\.0\.0\.1:)?\d+|\$\{PORT:-8000\}):\d+$")]] = []
    depends_on: list[str] = []


class Compose(Strict):
    name: str
    services: dict[str, ComposeService]
    volumes: dict[str, None]


class Alert(Strict):
    alert: Annotated[str, Field(pattern=r"^Clipserve[A-Z][A-Za-z]+$")]
    expr: str
    for_: Annotated[str, Field(alias="for", pattern=r"^\d+[sm]$")]
    labels: dict[Literal["severity"], Literal["page", "ticket"]]
    annotations: dict[Literal["summary", "action"], str]


class Target(BaseModel):
    expr: str
    datasource: dict[str, str]


class Panel(BaseModel):
    id: int
    title: str
    description: Annotated[str, Field(min_length=5)]
    grid: Annotated[dict[Literal["x", "y", "w", "h"], int], Field(alias="gridPos")]
    targets: Annotated[list[Target], Field(min_length=1)]


class KubernetesObject(Strict):
    version: Annotated[str, Field(alias="apiVersion")]
    kind: str
    metadata: dict[Literal["name", "labels"], Any]
    spec: dict[str, Any]


def test_compose_has_the_shape_of_compose() -> None:
    compose = Compose.model_validate(COMPOSE)
    for service in compose.services.values():
        assert set(service.depends_on) <= compose.services.keys()
        for volume in service.volumes:
            source = volume.split(":/")[0]
            if source.startswith("./"):
                assert (DOCKER / source).exists(), source
            else:
                assert source.removeprefix("${MODELS_DIR:-").rstrip("}") in compose.volumes
    assert compose.services["clipserve"].read_only
    assert (DOCKER / compose.services["clipserve"].build / "Dockerfile").exists()


def test_alerts_have_a_severity_and_say_what_to_do() -> None:
    alerts = [Alert.model_validate(rule) for rule in RULES]
    assert len({alert.alert for alert in alerts}) == len(alerts)
    assert all(alert.annotations.keys() == {"summary", "action"} for alert in alerts)


def test_dashboard_panels_do_not_overlap() -> None:
    panels = [Panel.model_validate(panel) for panel in PANELS]
    assert len({panel.id for panel in panels}) == len(panels)
    for panel in panels:
        assert panel.grid["x"] + panel.grid["w"] <= 24
    for one, other in itertools.combinations([panel.grid for panel in panels], 2):
        beside = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
        above = one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
        assert beside or above, (one, other)


# Metrics


def known_series() -> dict[str, set[str]]:
    """Names as Prometheus stores them, and their labels."""
    series = {}
    for metric in vars(Metrics()).values():
        if hasattr(metric, "_labelnames"):
            suffixes = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count")}
            for suffix in suffixes.get(metric._type, ("",)):
                series[metric._name + suffix] = {*metric._labelnames, "instance", "job", "le", "pod"}
    return series


QUERIES = [target["expr"] for panel in PANELS for target in panel["targets"]]
EXPRESSIONS = [*QUERIES, *(rule["expr"] for rule in RULES)]


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_queries_ask_for_metrics_and_labels_that_exist(expression: str) -> None:
    series = known_series()
    found = re.findall(r"\b(clipserve_\w+)(?:\{([^}]*)\})?", expression)
    assert found or re.search(r"\b(haproxy_|up\{)", expression)
    for name, selector in found:
        assert name in series
        assert set(re.findall(r'(\w+)\s*(?:=~|!~|!=|=)"', selector)) <= series[name]
    groups = ",".join(re.findall(r"by \(([^)]*)\)", expression))
    grouped = {label.strip() for label in groups.split(",") if label.strip()}
    assert grouped <= set().union(*(series[name] for name, _ in found))


def test_the_dashboard_shows_every_metric() -> None:
    shown = set(re.findall(r"\bclipserve_\w+?(?=_total|_bucket|_sum|_count|\b)", " ".join(QUERIES)))
    assert {metric.name for metric in Metrics().registry.collect()} - shown == set()


def test_the_autoscaler_asks_for_metrics_that_exist() -> None:
    series = known_series()
    for metric in read_yaml(BASE / "hpa.yaml")["spec"]["metrics"]:
        asked = metric["pods"]["metric"]
        assert asked["name"] in series
        assert set(asked.get("selector", {}).get("matchLabels", {})) <= series[asked["name"]]


# What one file says of another


def test_services_are_called_by_their_names() -> None:
    assert re.search(r"server-template \S+ \S+ clipserve:8000 ", HAPROXY)
    jobs = {job["job_name"]: job for job in PROMETHEUS["scrape_configs"]}
    assert jobs["clipserve"]["dns_sd_configs"][0]["names"] == ["clipserve"]
    [target] = jobs["haproxy"]["static_configs"][0]["targets"]
    assert target == "haproxy:8404"
    assert "bind :8404" in HAPROXY
    datasource = read_yaml(DOCKER / "grafana/provisioning/datasources/prometheus.yaml")["datasources"][0]
    assert datasource["url"] == "http://prometheus:9090"
    used = {target["datasource"]["uid"] for panel in PANELS for target in panel["targets"]}
    assert used == {datasource["uid"]}
    provider = read_yaml(DOCKER / "grafana/provisioning/dashboards/clipserve.yaml")["providers"][0]
    mounts = [volume.split(":")[1] for volume in COMPOSE["services"]["grafana"]["volumes"]]
    assert provider["options"]["path"] in mounts
    jobs_asked = set(re.findall(r'job="(\w+)"', " ".join(EXPRESSIONS)))
    assert jobs_asked <= jobs.keys()


def compose_environment() -> dict[str, str]:
    return {
        name: re.sub(r"\$\{\w+:-(.*)\}", r"\1", str(value))
        for name, value in COMPOSE["services"]["clipserve"]["environment"].items()
    }


def kubernetes_environment(overlay: str) -> dict[str, str]:
    patch = read_yaml(DOCKER / "kubernetes" / "overlays" / overlay / "deployment.yaml")
    patched = patch["spec"]["template"]["spec"]["containers"][0]["env"]
    given = {entry["name"]: entry.get("value") for entry in [*CONTAINER["env"], *patched]}
    return {name: "redis://state" if value is None else value for name, value in given.items()}


ENVIRONMENTS = {"compose": compose_environment()} | {name: kubernetes_environment(name) for name in OVERLAYS}


@pytest.mark.parametrize("where", ENVIRONMENTS)
def test_variables_are_settings_with_good_values(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    environment = ENVIRONMENTS[where]
    assert {name.removeprefix("CLIPSERVE_").lower() for name in environment} <= Settings.model_fields.keys()
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    settings = Settings()
    assert settings.models == ("shapes",)
    assert settings.state_url is not None


def test_times_fit_together() -> None:
    """A replica is out before it closes its port, and is killed only after its longest request."""
    drain = float(ENVIRONMENTS["compose"]["CLIPSERVE_DRAIN_SECONDS"])
    longest = Settings.model_fields["request_timeout"].default
    [check] = re.findall(r"default-server check (.*)", HAPROXY)
    interval, fall = re.search(r"\binter (\S+)", check)[1], re.search(r"\bfall (\d+)", check)[1]
    assert seconds(interval) * (int(fall) + 1) <= drain
    assert seconds(re.search(r"timeout server (\S+)", HAPROXY)[1]) > longest
    assert seconds(COMPOSE["services"]["clipserve"]["stop_grace_period"]) > drain + longest + 1
    pre_stop = float(CONTAINER["lifecycle"]["preStop"]["exec"]["command"][1])
    drain = float(ENVIRONMENTS["cpu"]["CLIPSERVE_DRAIN_SECONDS"])
    assert POD["terminationGracePeriodSeconds"] > pre_stop + drain + longest + 1


def test_haproxy_does_what_is_promised() -> None:
    for line in (
        "balance leastconn",
        "retry-on conn-failure empty-response response-timeout 503",
        "option redispatch 1",
        "http-request disable-l7-retry if METH_DELETE",
        "http-check send meth GET uri /health/ready",
        "http-check expect status 200",
    ):
        assert f"    {line}\n" in HAPROXY
    assert "on-marked-down" not in HAPROXY, "it would cut the requests of a replica that drains"
    for status, body in re.findall(r"http-error status (\d+) \S+ \S+ string '(.*?)'", HAPROXY):
        assert json.loads(body)["status"] == int(status)


# Kubernetes


@pytest.mark.parametrize("path", sorted(BASE.glob("*.yaml")), ids=lambda path: path.stem)
def test_objects_of_the_base(path: Path) -> None:
    if path.stem == "kustomization":
        listed = read_yaml(path)["resources"]
        assert sorted([*listed, path.name]) == sorted(file.name for file in BASE.iterdir())
        return
    found = KubernetesObject.model_validate(read_yaml(path))
    assert found.metadata["name"] == "clipserve"


def test_selectors_choose_the_pods() -> None:
    assert DEPLOYMENT["spec"]["template"]["metadata"]["labels"] == NAME
    assert DEPLOYMENT["spec"]["selector"]["matchLabels"] == NAME
    assert "replicas" not in DEPLOYMENT["spec"], "it would fight the autoscaler at every apply"
    service = read_yaml(BASE / "service.yaml")
    assert service["spec"]["selector"] == NAME
    assert read_yaml(BASE / "pdb.yaml")["spec"]["selector"]["matchLabels"] == NAME
    monitor = read_yaml(BASE / "servicemonitor.yaml")["spec"]
    assert monitor["selector"]["matchLabels"] == service["metadata"]["labels"]
    assert [endpoint["port"] for endpoint in monitor["endpoints"]] == [service["spec"]["ports"][0]["name"]]
    target = read_yaml(BASE / "hpa.yaml")["spec"]["scaleTargetRef"]
    assert (target["kind"], target["name"]) == ("Deployment", DEPLOYMENT["metadata"]["name"])


def test_probes_and_ports_are_the_servers_own(tmp_path: Path) -> None:
    routes = set(create_app(Settings(home=tmp_path)).openapi()["paths"])
    ports = {port["name"]: port["containerPort"] for port in CONTAINER["ports"]}
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        asked = CONTAINER[probe]["httpGet"]
        assert asked["path"] in routes
        assert asked["port"] in ports
    assert read_yaml(BASE / "servicemonitor.yaml")["spec"]["endpoints"][0]["path"] in routes
    assert read_yaml(BASE / "service.yaml")["spec"]["ports"][0]["targetPort"] in ports
    assert ports["http"] == int(re.search(r"CLIPSERVE_PORT=(\d+)", (ROOT / "Dockerfile").read_text())[1])
    assert POD["enableServiceLinks"] is False, "the service's variables would take CLIPSERVE_PORT"


def test_the_container_may_do_nothing_but_serve() -> None:
    user = int(re.findall(r"^USER (\d+):", (ROOT / "Dockerfile").read_text(), flags=re.MULTILINE)[-1])
    assert POD["securityContext"]["runAsNonRoot"] is True
    assert POD["securityContext"]["runAsUser"] == user
    assert CONTAINER["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    volumes = {volume["name"] for volume in POD["volumes"]}
    mounts = {mount["mountPath"]: mount["name"] for mount in CONTAINER["volumeMounts"]}
    assert set(mounts.values()) == volumes
    assert {"/tmp", "/var/lib/clipserve"} <= mounts.keys()


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_overlays_patch_what_is_there(overlay: str) -> None:
    folder = DOCKER / "kubernetes" / "overlays" / overlay
    kustomization = read_yaml(folder / "kustomization.yaml")
    assert [(folder / resource).resolve() for resource in kustomization["resources"]] == [BASE]
    [patch] = [read_yaml(folder / one["path"]) for one in kustomization["patches"]]
    assert (patch["kind"], patch["metadata"]["name"]) == ("Deployment", DEPLOYMENT["metadata"]["name"])
    [container] = patch["spec"]["template"]["spec"]["containers"]
    assert container["name"] == CONTAINER["name"]
    limits = container["resources"]["limits"]
    assert "memory" in limits
    assert ("nvidia.com/gpu" in limits) == (overlay == "gpu")


# The programs' own opinion


def check(*command: str | Path) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_haproxy_accepts_its_file() -> None:
    check(installed_program("haproxy"), "-c", "-f", DOCKER / "haproxy.cfg")


def test_prometheus_accepts_its_files() -> None:
    promtool = installed_program("promtool")
    check(promtool, "check", "config", DOCKER / "prometheus.yml")
    assert f"{len(RULES)} rules found" in check(promtool, "check", "rules", DOCKER / "alerts.yml")


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_kustomize_builds_the_overlays(overlay: str) -> None:
    text = check(installed_program("kubectl"), "kustomize", DOCKER / "kubernetes" / "overlays" / overlay)
    built = {one["kind"]: one for one in yaml.safe_load_all(text)}
    container = built["Deployment"]["spec"]["template"]["spec"]["containers"][0]
    environment = {entry["name"]: entry.get("value", "redis://state") for entry in container["env"]}
    assert environment == ENVIRONMENTS[overlay]
    assert container["readinessProbe"] == CONTAINER["readinessProbe"]
    assert container["image"] == ("clipserve:gpu" if overlay == "gpu" else "clipserve")
