"""config/Dockerfile and config/compose.yaml, read back: they cannot be run where there is no container engine."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import tomli
import yaml

from kbatchd import cli
from kbatchd.config import Config, load

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / "config"
MOUNTED = "/etc/kbatchd/kbatchd.toml"

#: What a stage may be made of here; a typing error in a name is a fault.
INSTRUCTIONS = {
    "FROM", "RUN", "WORKDIR", "COPY", "ENV", "USER", "EXPOSE", "HEALTHCHECK", "STOPSIGNAL", "ENTRYPOINT", "CMD",
}  # fmt: skip


class Instruction(NamedTuple):
    name: str
    text: str


def stages() -> list[list[Instruction]]:
    """Read the Dockerfile: joined lines without comments, a list of instructions for each FROM."""
    lines = [line for line in (CONFIG / "Dockerfile").read_text().splitlines() if not line.lstrip().startswith("#")]
    found: list[list[Instruction]] = []
    for line in re.sub(r"\\\n\s*", " ", "\n".join(lines)).splitlines():
        if not line.strip():
            continue
        name, _, text = line.partition(" ")
        assert name in INSTRUCTIONS, line
        if name == "FROM":
            found.append([])
        found[-1].append(Instruction(name, text.strip()))
    return found


def one(stage: list[Instruction], name: str) -> str:
    (text,) = (each.text for each in stage if each.name == name)
    return text


@pytest.fixture
def config(monkeypatch: pytest.MonkeyPatch) -> Config:
    """Load the file that is mounted, with the environment that compose.yaml gives."""
    url = compose()["services"]["kbatchd"]["environment"]["DATABASE_URL"]
    monkeypatch.setenv("DATABASE_URL", re.sub(r"\$\{\w+:-(\w+)\}", r"\1", url))
    return load(CONFIG / "compose.toml")


def compose() -> Any:
    return yaml.safe_load((CONFIG / "compose.yaml").read_text())


def test_what_is_copied_is_there() -> None:
    build, last = stages()
    for each in (each for each in build if each.name == "COPY"):
        *sources, target = each.text.split()
        assert all((ROOT / source).exists() for source in sources), each.text
        assert target.endswith("/") or len(sources) == 1
    stage = one(build, "FROM").split(" AS ")[1]
    assert one(last, "COPY").startswith(f"--from={stage} /opt/kbatchd ")


def test_all_that_the_package_is_made_of_is_copied() -> None:
    settings = tomli.loads((ROOT / "pyproject.toml").read_text())
    copied = {
        source for each in stages()[0] if each.name == "COPY" for source in each.text.split()[:-1] if ":" not in source
    }
    wanted = {settings["project"]["readme"], *settings["project"]["license-files"], "pyproject.toml"}
    wanted |= {path.partition("/")[0] for path in settings["tool"]["setuptools"]["package-dir"].values()}
    for paths in settings["tool"]["setuptools"]["data-files"].values():
        wanted |= {path.partition("/")[0] for path in paths}
    assert wanted - copied == set()
    install = next(each.text for each in stages()[0] if "pip install" in each.text)
    (extras,) = re.findall(r"\.\[([\w,]+)\]", install)
    assert set(extras.split(",")) <= set(settings["project"]["optional-dependencies"])


def test_it_runs_slim_and_not_as_root() -> None:
    last = stages()[-1]
    assert one(last, "FROM").endswith("-slim")
    names = [each.name for each in last]
    assert int(one(last, "USER")) > 0
    assert names.index("USER") < names.index("ENTRYPOINT")
    assert not [each for each in last[names.index("USER") :] if each.name in ("RUN", "COPY")]


def test_process_1_is_the_supervisor_itself() -> None:
    last = stages()[-1]
    entry, command = json.loads(one(last, "ENTRYPOINT")), json.loads(one(last, "CMD"))  # no shell in between
    assert entry == ["kbatchd"]
    assert cli._parse(command).config == Path(MOUNTED)
    assert one(last, "STOPSIGNAL") == "SIGTERM"


def test_the_health_check_asks_the_monitor(config: Config) -> None:
    _, _, command = one(stages()[-1], "HEALTHCHECK").partition(" CMD ")
    program = json.loads(command)
    (port, path) = re.findall(r"http://127\.0\.0\.1:(\d+)(/[\w/]+)", program[-1])[0]
    assert config.monitor is not None
    assert config.monitor.listen.endswith(f":{port}")
    assert f'"{path}"' in (ROOT / "kbatchd/monitor/app.py").read_text()
    compile(program[2], "HEALTHCHECK", "exec")


def test_ports_are_those_of_the_file(config: Config) -> None:
    assert config.gateway is not None
    assert config.monitor is not None
    ports = {config.gateway.listen.rpartition(":")[2], config.monitor.listen.rpartition(":")[2]}
    assert set(one(stages()[-1], "EXPOSE").split()) == ports
    published = compose()["services"]["kbatchd"]["ports"]
    assert published == [f"127.0.0.1:{port}:{port}" for port in sorted(ports)]


def test_every_service_can_begin() -> None:
    services = compose()["services"]
    for name, service in services.items():
        for other, how in service.get("depends_on", {}).items():
            checked = "test" in services[other].get("healthcheck", {})
            one_off = services[other].get("command", ["--config"])[0] in ("migrate", "create-topic")
            assert how["condition"] in (["service_healthy"] * checked + ["service_completed_successfully"] * one_off), (
                name
            )
        for volume in service.get("volumes", []):
            source, target, *_ = volume.split(":")
            assert source in compose()["volumes"] or (CONFIG / source).resolve().is_file(), volume
            assert target.startswith("/")
        if "build" in service:
            assert (CONFIG / service["build"]["context"] / service["build"]["dockerfile"]).is_file()
            assert f"./compose.toml:{MOUNTED}:ro" in service["volumes"]
            assert cli._parse(service["command"]).config == Path(MOUNTED)
        else:
            assert re.fullmatch(r"[\w/]+:\d[\w.]*", service["image"]), "an image with a version"


def test_servers_are_those_of_the_file(config: Config) -> None:
    services = compose()["services"]
    host, _, port = config.kafka.bootstrap_servers.partition(":")
    settings = services[host]["environment"]
    inside = settings["KAFKA_INTER_BROKER_LISTENER_NAME"]
    assert f"{inside}://{host}:{port}" in settings["KAFKA_ADVERTISED_LISTENERS"].split(",")
    assert f"{inside}://:{port}" in settings["KAFKA_LISTENERS"].split(",")
    names = {each.partition(":")[0] for each in settings["KAFKA_LISTENERS"].split(",")}
    assert names == {each.partition(":")[0] for each in settings["KAFKA_LISTENER_SECURITY_PROTOCOL_MAP"].split(",")}
    postgres = services["postgres"]["environment"]
    assert f"//{postgres['POSTGRES_USER']}:" in config.postgres.conninfo
    assert f"@postgres/{postgres['POSTGRES_DB']}" in config.postgres.conninfo


def test_the_table_is_made(config: Config) -> None:
    mounts = compose()["services"]["postgres"]["volumes"]
    (script,) = (CONFIG / mount.split(":")[0] for mount in mounts if "initdb.d" in mount)
    assert f"CREATE TABLE {config.route[0].table} (" in script.read_text()


def test_they_say_that_they_are_not_run() -> None:
    for name in ("Dockerfile", "compose.yaml"):
        head = (CONFIG / name).read_text()[:900]
        assert "no container engine" in " ".join(head.replace("#", "").split())
