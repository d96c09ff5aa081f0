"""The command line without any server: arguments, help, faults and exit codes."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

from kbatchd import __version__, cli, commands
from kbatchd.commands import run
from kbatchd.errors import ConfigError, KbatchError, ServerUnavailable
from tests.minimal import MINIMAL


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "kbatchd.toml"
    path.write_text(MINIMAL, encoding="utf-8")
    return path


def _kbatchd(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "kbatchd", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


def test_version() -> None:
    done = _kbatchd("--version")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"kbatchd {__version__}\n", "")


def test_help_is_a_manual(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        cli.main(["--help"])
    assert exit_.value.code == 0
    manual = capsys.readouterr().out
    for word in ("migrate", "create-topic", "check-config", "progress", "demo", "DATABASE_URL", "examples:"):
        assert word in manual
    for code in (0, 2, 3, 65, 69, 70, 74, 78, 130):
        assert f"\n  {code} " in manual


def test_help_of_a_command_has_its_examples_to_their_ends(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["progress", "accept", "--help"])
    last = "where the breaker has halted them\n"
    assert capsys.readouterr().out.endswith(f"behind their gaps, or\n{' ' * 52}{last}")


def test_starts_without_the_heavy_libraries() -> None:
    script = "import sys, kbatchd.cli; print(*{'pydantic', 'psycopg', 'confluent_kafka', 'rich'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout == "\n"


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["check-config"],
        ["migrate"],
        ["create-topic", "requests"],
        ["progress"],
        ["progress", "show"],
        ["no-such-command"],
        ["--config"],
        ["progress", "set", "requests", "-1", "5", "--config", "x"],
        ["progress", "set", "requests", "0", "five", "--config", "x"],
        ["progress", "set", "requests", "0", "--config", "x"],
        ["demo", "--records", "many"],
        ["demo", "--records", "0"],
    ],
)
def test_wrong_command_line(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        cli.main(arguments)
    assert exit_.value.code == 2
    assert "usage: kbatchd" in capsys.readouterr().err


#: A part of the command `status`.
PARTS = {"look"}


def test_every_command_is_there() -> None:
    named = set(re.findall(r'"(\w+):(\w+)"', Path(cli.__file__).read_text(encoding="utf-8")))
    modules = {path.stem for path in Path(commands.__file__).parent.glob("[a-z]*.py")}
    assert {module for module, _ in named} == modules - PARTS
    for module, function in named:
        assert callable(getattr(import_module(f"kbatchd.commands.{module}"), function))


@pytest.mark.parametrize("order", [("check-config", "--config"), ("--config", "check-config")])
def test_config_may_stand_before_the_command(
    order: tuple[str, str], file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = (
        ["check-config", "--config", str(file)] if order[0] == "check-config" else ["--config", str(file), order[1]]
    )
    assert cli.main(arguments) == 0
    assert capsys.readouterr().out == f"{file}: no fault found\n"


def test_all_faults_one_line_each(file: Path) -> None:
    file.write_text(f"{MINIMAL}on_gap = 'stop'\nomitt = []\n[workers]\ncount = 0\n", encoding="utf-8")
    for arguments in (("check-config",), (), ("migrate",), ("create-topic",), ("progress", "show")):
        done = _kbatchd(*arguments, "--config", file)
        assert done.returncode == 78
        assert not done.stdout
        assert done.stderr.splitlines() == [
            f'kbatchd: {file}:8: route[0].on_gap: is "stop"; allowed: "halt" or "record"',
            f"kbatchd: {file}:9: route[0].omitt: is an unknown key; did you mean omit?",
            f"kbatchd: {file}:11: workers.count: is 0; allowed: a whole number from 1 to 256",
        ]


def test_broken_toml(file: Path) -> None:
    file.write_text("a = 1\nb = = 2\n", encoding="utf-8")
    done = _kbatchd("check-config", "--config", file)
    assert (done.returncode, done.stdout) == (78, "")
    fault = "is not TOML: Invalid value (at line 2, column 5); a text stands in quotes"
    assert done.stderr == f"kbatchd: {file}:2: {fault}\n"


def test_librdkafka_judges_its_own_properties(file: Path) -> None:
    text = '[kafka.librdkafka]\nfetch.wait.max.ms = -1\n"no.such" = 1\nqueued.min.messages = 1\n'
    file.write_text(MINIMAL + text, encoding="utf-8")
    done = _kbatchd("check-config", "--config", file)
    assert done.returncode == 78
    assert done.stderr.splitlines() == [
        (
            f"kbatchd: {file}:9: kafka.librdkafka.fetch.wait.max.ms: "
            'Configuration property "fetch.wait.max.ms" value -1 is outside allowed range 0..300000'
        ),
        f'kbatchd: {file}:10: kafka.librdkafka.no.such: No such configuration property: "no.such"',
    ]


def test_librdkafka_judges_properties_together(file: Path) -> None:
    text = '[kafka.librdkafka]\nsecurity.protocol = "ssl"\nssl.ca.location = "/no/where"\n'
    file.write_text(MINIMAL + text, encoding="utf-8")
    done = _kbatchd("check-config", "--config", file)
    assert done.returncode == 78
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"kbatchd: {file}:8: kafka.librdkafka: ")
    assert "ssl.ca.location" in line


@pytest.mark.parametrize("command", [(), ("check-config",)])
def test_a_library_that_is_not_installed_is_a_fault(command: tuple[str, ...], file: Path) -> None:
    file.write_text(f"{MINIMAL}[gateway]\n[monitor]\n", encoding="utf-8")
    program = (
        "import sys; sys.modules['httptools'] = None\n"  # as if it were not there
        "from kbatchd.cli import main; sys.exit(main())"
    )
    arguments = [sys.executable, "-c", program, *command, "--config", str(file)]
    done = subprocess.run(arguments, capture_output=True, text=True, check=False, timeout=30)
    assert (done.returncode, done.stdout) == (78, "")
    assert done.stderr.splitlines() == [
        f"kbatchd: {extra}: needs the package httptools; install it with: pip install 'kbatchd[{extra}]'"
        for extra in ("gateway", "monitor")
    ]


def test_migrate_print_needs_no_file() -> None:
    done = _kbatchd("migrate", "--print")
    assert done.returncode == 0
    assert done.stdout.startswith("BEGIN;\n\n-- Nothing that others")
    assert "\nCREATE SCHEMA kbatchd;\n" in done.stdout
    assert done.stdout.endswith("COMMIT;\n")


def test_a_reader_that_leaves_is_no_fault() -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "kbatchd", "migrate", "--print"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(120) == 0


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize(
    "arguments", [("migrate", "--print"), ("check-config",), ("--version",), ("--help",), ("infer", "--help")]
)
def test_a_full_disk_is_told_in_one_line(arguments: tuple[str, ...], unbuffered: str, file: Path) -> None:
    command = [sys.executable, "-m", "kbatchd", "--config", str(file), *arguments]
    environment = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            command, stdout=full, stderr=subprocess.PIPE, env=environment, text=True, check=False, timeout=30
        )
    assert (done.returncode, done.stderr) == (74, "kbatchd: cannot write: No space left on device\n")


@pytest.mark.parametrize(
    ("error", "code", "lines"),
    [
        (ConfigError("one", "two"), 78, ["kbatchd: one", "kbatchd: two"]),
        (ServerUnavailable("gone"), 69, ["kbatchd: gone"]),
        (KbatchError("odd"), 70, ["kbatchd: odd"]),
        (KeyboardInterrupt(), 130, []),
    ],
)
def test_exit_codes(
    error: BaseException,
    code: int,
    lines: list[str],
    file: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(*_: object, **__: object) -> int:
        raise error

    monkeypatch.setattr(run, "make_plan", fail)
    assert cli.main(["--config", str(file)]) == code
    assert capsys.readouterr().err.splitlines() == lines


@pytest.mark.parametrize("where", ["full disk", "pipe that nobody reads"])
@pytest.mark.parametrize("command", [[], ["check-config"]])
def test_a_fault_that_cannot_be_told_is_one_all_the_same(file: Path, command: list[str], where: str) -> None:
    """Exit code 1 would make systemd start it again and again, and 0 would pass for success."""
    file.write_text("pipeline =")
    if where == "full disk":
        writing = os.open("/dev/full", os.O_WRONLY)
    else:
        reading, writing = os.pipe()
        os.close(reading)
    try:
        arguments: list[str | Path] = [sys.executable, "-m", "kbatchd", *command, "--config", file]
        done = subprocess.run(arguments, stdout=subprocess.DEVNULL, stderr=writing, check=False, timeout=60)
    finally:
        os.close(writing)
    assert done.returncode == 78
