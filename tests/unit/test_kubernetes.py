"""config/kubernetes, read back: against the API's own schemas, and against the program. There is no cluster here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from kbatchd import cli
from kbatchd.config import Config, host_and_port, load
from kbatchd.config.conninfo import CREDENTIAL as POSTGRES_CREDENTIAL
from kbatchd.config.kafka import CREDENTIAL as KAFKA_CREDENTIAL

ROOT = Path(__file__).parents[2]
DIRECTORY = ROOT / "config/kubernetes"
FILE = Path("/etc/kbatchd/kbatchd.toml")
CREDENTIALS = "/run/secrets/kbatchd"


def documents() -> list[Any]:
    return [each for path in sorted(DIRECTORY.glob("*.yaml")) for each in yaml.safe_load_all(path.read_text())]


def of_kind(kind: str) -> Any:
    (found,) = (each for each in documents() if each["kind"] == kind)
    return found


def pods() -> list[Any]:
    return [of_kind(kind)["spec"]["template"]["spec"] for kind in ("Deployment", "Job")]


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    """Load the ConfigMap's file, with a secret mounted as the manifests say: readable for the pod's group."""
    for name in (POSTGRES_CREDENTIAL, KAFKA_CREDENTIAL):
        (tmp_path / name).write_text("s3cret\n")
        (tmp_path / name).chmod(0o440)
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    (name, text), *others = of_kind("ConfigMap")["data"].items()
    assert (name, others) == (FILE.name, [])
    file = tmp_path / name
    file.write_text(text)
    return load(file)


@pytest.mark.parametrize("document", documents(), ids=lambda each: each["kind"])
def test_the_api_takes_it(document: Any) -> None:
    kubernetes_validate.validate(document, kubernetes_validate.latest_version(), strict=True)


def test_a_typing_error_is_found() -> None:
    deployment = of_kind("Deployment")
    deployment["spec"]["template"]["spec"]["containers"][0]["livenesProbe"] = {}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(deployment, kubernetes_validate.latest_version(), strict=True)


@pytest.mark.parametrize("pod", pods(), ids=["Deployment", "Job"])
def test_a_pod_may_do_little(pod: Any) -> None:
    assert pod["automountServiceAccountToken"] is False
    assert pod["securityContext"]["runAsNonRoot"] is True
    (container,) = pod["containers"]
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert container["resources"].keys() == {"requests", "limits"}


@pytest.mark.parametrize("pod", pods(), ids=["Deployment", "Job"])
def test_a_pod_finds_its_file_and_its_secrets(pod: Any, config: Config) -> None:
    (container,) = pod["containers"]
    assert cli._parse(container["args"]).config == FILE
    places = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    assert set(places.values()) == volumes.keys()
    assert volumes[places[str(FILE.parent)]]["configMap"]["name"] == of_kind("ConfigMap")["metadata"]["name"]
    environment = {each["name"]: each["value"] for each in container["env"]}
    assert environment["CREDENTIALS_DIRECTORY"] == CREDENTIALS
    secret = volumes[places[CREDENTIALS]]["secret"]
    assert secret["defaultMode"] == 0o440
    assert pod["securityContext"]["fsGroup"]
    create = f"create secret generic {secret['secretName']}"
    names = f"--from-file={POSTGRES_CREDENTIAL} --from-file={KAFKA_CREDENTIAL}"
    assert f"{create} {names}" in (DIRECTORY / "kbatchd.yaml").read_text()
    assert "s3cret" in config.postgres.conninfo
    assert config.kafka.client["sasl.password"] == "s3cret"
    assert environment["STATE_DIRECTORY"] in {*places, "/tmp"}


def test_pods_share_the_partitions(config: Config) -> None:
    assert config.kafka.assignment == "group"
    deployment = of_kind("Deployment")["spec"]
    assert deployment["replicas"] > 1
    labels = deployment["template"]["metadata"]["labels"]
    assert deployment["selector"]["matchLabels"] == labels
    budget = of_kind("PodDisruptionBudget")["spec"]
    assert budget["selector"]["matchLabels"] == labels
    assert 0 < budget["maxUnavailable"] < deployment["replicas"]


def test_probes_ask_the_monitor(config: Config) -> None:
    assert config.monitor is not None
    host, port = host_and_port(config.monitor.listen)
    assert host == "0.0.0.0"
    (container,) = of_kind("Deployment")["spec"]["template"]["spec"]["containers"]
    ports = {each["name"]: each["containerPort"] for each in container["ports"]}
    pages = (ROOT / "kbatchd/monitor/app.py").read_text()
    for name, path in (("startup", "live"), ("liveness", "live"), ("readiness", "ready")):
        ask = container[f"{name}Probe"]["httpGet"]
        assert ask["path"] == f"/health/{path}"
        assert f'"{ask["path"]}"' in pages
        assert ports[ask["port"]] == port
    annotations = of_kind("Deployment")["spec"]["template"]["metadata"]["annotations"]
    assert annotations["prometheus.io/port"] == json.dumps(port)


def test_a_stop_has_the_time_that_it_may_take(config: Config) -> None:
    given = of_kind("Deployment")["spec"]["template"]["spec"]["terminationGracePeriodSeconds"]
    assert given > config.workers.grace_seconds + 10  # the monitor, and what a child is given beyond its grace


def test_memory_is_enough_for_the_buffers(config: Config) -> None:
    (container,) = of_kind("Deployment")["spec"]["template"]["spec"]["containers"]
    assert container["resources"]["limits"]["memory"] == "1Gi"
    each = config.workers.buffer_bytes + (132 << 20)  # librdkafka's queue, and Python
    assert config.workers.count * each + (100 << 20) < 1 << 30
