"""The file's text: whatever is wrong with it is one fault, and no crash, which systemd would try again for ever."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from kbatchd.config import HOMELESS_STATE_DIRECTORY, load, load_kafka
from kbatchd.errors import EX_CONFIG, EX_OK, ConfigError
from tests.minimal import MINIMAL

if TYPE_CHECKING:
    from pathlib import Path

TOO_DEEP = "has tables or lists within each other, or a key, more than 100 deep"
TOO_LONG = "a whole number of more than 4,300 digits"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "kbatchd.toml"


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        (f"a = {'[' * 1_000}{']' * 1_000}", TOO_DEEP),
        (f"a = {'[' * 200}{']' * 200}", TOO_DEEP),
        (f"a = {'{b=' * 1_000}1{'}' * 1_000}", TOO_DEEP),
        (f"a = {'[' * 100_000}", TOO_DEEP),
        (f"{'.'.join('a' * 1_000)} = 1", TOO_DEEP),
        (f"[{'.'.join('a' * 1_000)}]", TOO_DEEP),
        (f"[[{'.'.join('a' * 1_000)}]]", TOO_DEEP),
        (f"[kafka.librdkafka]\n{'.'.join('a' * 1_000)} = 1", TOO_DEEP),
        (f"[route.columns.note]\nconstant = {'[' * 200}{']' * 200}", TOO_DEEP),
        (f"a = {'9' * 5_000}", TOO_LONG),
        (f"a = -{'9' * 5_000}", TOO_LONG),
        (f"[workers]\ncount = 1_{'9' * 5_000}", TOO_LONG),
        (f"[workers]\ncount = 0x{'f' * 5_000}", TOO_LONG),
        (f"[route.columns.note]\nconstant = 0b{'1' * 50_000}", TOO_LONG),
        (f"[[route]]\nmax_dead_letters = 0o{'7' * 9_000}", TOO_LONG),
    ],
)
def test_what_no_parser_takes_is_a_fault(file: Path, text: str, fault: str) -> None:
    file.write_text(f"{MINIMAL}{text}\n", encoding="utf-8")
    for load_it in (load, load_kafka):
        with pytest.raises(ConfigError, match=fault):
            load_it(file)


def test_the_line_of_a_long_number(file: Path) -> None:
    file.write_text(f"{MINIMAL}# {'1' * 5_000}\n[workers]\ncount = {'9' * 5_000}\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"kbatchd\.toml:10: "):
        load(file)


@pytest.mark.parametrize("text", [f"a = {'[' * 1_000}{']' * 1_000}", f"{'a.' * 1_000}a = 1", f"a = {'9' * 5_000}"])
def test_the_commands_and_the_daemon_end_with_78(file: Path, text: str) -> None:
    file.write_text(f"{text}\n{MINIMAL}", encoding="utf-8")
    for command in (["check-config"], ["check"], []):
        done = kbatchd(*command, "--config", str(file))
        assert done.returncode == EX_CONFIG
        [said] = (done.stdout + done.stderr).splitlines()[-1:]
        assert str(file) in said, "in our words, and no traceback"


def test_a_byte_order_mark_is_no_part_of_the_text(file: Path) -> None:
    file.write_bytes(MINIMAL.encode("utf-8-sig"))
    assert load(file).route[0].topic == "requests"
    assert load_kafka(file).bootstrap_servers == "localhost:9092"


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le", "utf-32-be"])
def test_another_encoding_is_named(file: Path, encoding: str) -> None:
    file.write_bytes(MINIMAL.encode(encoding))
    with pytest.raises(ConfigError, match=rf"is .*{encoding[:6].upper()}.*; save it as UTF-8"):
        load(file)


@pytest.mark.parametrize(
    "line",
    [
        'table = "public.{long}"',
        'table = "{long}.orders"',
        'table = \'"{long}"."orders"\'',
        'key = ["{long}"]\nmode = "upsert"',
        'omit = ["id", "{long}"]',
        'unknown_fields = "{long}"',
        'columns."{long}" = "field"',
    ],
)
def test_a_name_that_postgresql_would_cut_is_refused(file: Path, line: str) -> None:
    text = MINIMAL if not line.startswith("table") else MINIMAL.replace('table = "public.requests"\n', "")
    file.write_text(text + line.format(long="n" * 63), encoding="utf-8")
    load(file)
    for long in ("n" * 64, "ü" * 32):
        file.write_text(text + line.format(long=long), encoding="utf-8")
        with pytest.raises(
            ConfigError, match=f'names "{long}", of 64 bytes; allowed: 63, PostgreSQL cuts what is longer'
        ):
            load(file)


@pytest.mark.parametrize("dsn", ["postgresql://{long}@localhost/app", "host=localhost user=u dbname={long}"])
def test_so_is_a_role_or_a_database(file: Path, dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    text = MINIMAL.replace('"postgresql://kbatchd@localhost/app"', f'"{dsn}"')
    file.write_text(text.format(long="n" * 63), encoding="utf-8")
    load(file)
    file.write_text(text.format(long="n" * 64), encoding="utf-8")
    with pytest.raises(ConfigError, match=r"postgres\.dsn: names .* of 64 bytes"):
        load(file)
    monkeypatch.setenv("DATABASE_URL", dsn.format(long="n" * 64))
    file.write_text(MINIMAL.replace('dsn = "postgresql://kbatchd@localhost/app"\n', ""), encoding="utf-8")
    with pytest.raises(ConfigError, match=r"postgres\.dsn: names .* of 64 bytes"):
        load(file)


def test_names_that_an_index_could_not_hold(file: Path) -> None:
    file.write_text(f'pipeline = "{"p" * 3_000}"\n{MINIMAL}name = "{"r" * 250}"\n', encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        load(file)
    assert [fault.partition(": ")[2] for fault in caught.value.faults] == [
        "pipeline: is longer than 249 bytes",
        "route[0].name: is longer than 249 bytes",
    ]


def test_tokens_are_checked(file: Path, tmp_path: Path) -> None:
    tokens = tmp_path / "tokens"
    tokens.touch(mode=0o600)
    file.write_text(f'{MINIMAL}[gateway]\ntokens_file = "tokens"\n', encoding="utf-8")
    for content, fault in (
        ("# none yet\n", "holds no token; leave the key out to let everybody send"),
        ("short orders\n", "line 1: not a token; allowed: 16 or more"),
    ):
        tokens.write_text(content)
        done = kbatchd("check-config", "--config", str(file))
        assert done.returncode == EX_CONFIG
        assert done.stderr.startswith(f"kbatchd: {file}:9: gateway.tokens_file: {fault}")
    tokens.write_text("a-token-long-enough\n")
    assert kbatchd("check-config", "--config", str(file)).returncode == EX_OK
    file.write_text(f'{MINIMAL}[gateway]\ntokens_command = ["/bin/echo", "short"]\n', encoding="utf-8")
    done = kbatchd("check-config", "--config", str(file))
    assert (done.returncode, "gateway.tokens_command: line 1: not a token" in done.stderr) == (EX_CONFIG, True)


#: Loads the file as somebody whom /etc/passwd does not know. What root may import it may not: so all is loaded before.
HOMELESS = """
import os, sys
from pathlib import Path
from kbatchd.config import load
if not os.geteuid():
    os.setuid(54_321)
else:  # who may not change it has no entry if there is none to be found
    import pwd
    pwd.getpwuid = lambda uid: (_ for _ in ()).throw(KeyError(uid))
print(load(Path(sys.argv[1])).state_directory)
"""


@pytest.mark.parametrize(
    ("environment", "directory"),
    [
        ({}, str(HOMELESS_STATE_DIRECTORY)),
        ({"STATE_DIRECTORY": "/srv/state:/srv/other"}, "/srv/state"),
        ({"XDG_STATE_HOME": "/srv/xdg"}, "/srv/xdg/kbatchd"),
        ({"HOME": "/srv/home"}, "/srv/home/.local/state/kbatchd"),
    ],
)
def test_nobody_at_home(file: Path, environment: dict[str, str], directory: str) -> None:
    file.write_text(MINIMAL, encoding="utf-8")
    for path in (file, *file.parents):
        if path.stat().st_uid == os.geteuid():
            path.chmod(path.stat().st_mode | 0o055)
    done = subprocess.run(
        [sys.executable, "-c", HOMELESS, file],
        env={"PATH": os.environ["PATH"], **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.stdout, done.stderr) == (f"{directory}\n", "")


def kbatchd(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "kbatchd", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
