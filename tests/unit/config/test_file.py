"""The configuration file: defaults, rules, and one line for each fault."""

from __future__ import annotations

import json
import os
import re
import typing
from datetime import UTC, datetime
from pathlib import Path

import pytest
import tomli
from psycopg.conninfo import conninfo_to_dict
from pydantic import BaseModel, ValidationError

from kbatchd.config import Batch, Config, Gateway, Kafka, Log, Postgres, Route, Workers, credentials, load, located
from kbatchd.config.faults import keys
from kbatchd.errors import ConfigError
from tests.minimal import MINIMAL

EXAMPLE = Path(__file__).parents[3] / "config" / "kbatchd.toml"

#: Keys whose value in the example is not the default: there is none, or it comes from elsewhere.
WITHOUT_DEFAULT = {
    ("gateway", "tls_certificate_file"),
    ("gateway", "tls_key_file"),
    ("gateway", "tokens_file"),
    ("gateway", "tokens_command"),
    ("kafka", "bootstrap_servers"),
    ("kafka", "group_id"),
    ("kafka", "librdkafka"),
    ("kafka", "password_command"),
    ("kafka", "token_command"),
    ("kafka", "password_file"),
    ("kafka", "sasl_mechanism"),
    ("kafka", "sasl_username"),
    ("kafka", "tls_ca_file"),
    ("kafka", "tls_certificate_file"),
    ("kafka", "tls_key_file"),
    ("postgres", "dsn"),
    ("postgres", "password_command"),
    ("postgres", "password_file"),
    ("route", "columns"),
    ("route", "topic"),
    ("route", "value_field"),
    ("route", "table"),
    ("route", "name"),
    ("route", "delete_when"),
    ("route", "key_field"),
}

TABLES: dict[str, type[BaseModel]] = {
    "kafka": Kafka,
    "postgres": Postgres,
    "workers": Workers,
    "batch": Batch,
    "gateway": Gateway,
    "log": Log,
    "route": Route,
}


@pytest.fixture(autouse=True)
def _bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DATABASE_URL", raising=False)
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "kbatchd.toml"


def _write(file: Path, text: str) -> Path:
    file.write_text(text, encoding="utf-8")
    return file


def _faults(file: Path, text: str) -> list[str]:
    """Load a faulty text; return its faults without the file's name."""
    with pytest.raises(ConfigError) as caught:
        load(_write(file, text))
    assert caught.value.exit_code == 78
    assert all(fault.startswith(f"{file}:") and "\n" not in fault for fault in caught.value.faults)
    return [fault.removeprefix(f"{file}:") for fault in caught.value.faults]


def test_defaults(file: Path) -> None:
    config = load(_write(file, MINIMAL))
    assert config.pipeline == "kbatchd"
    assert config.kafka.group_id == "kbatchd"
    assert config.kafka.assignment == "pinned"
    assert config.workers == Workers()
    assert config.batch.linger_seconds == 3.0
    (route,) = config.route
    assert (route.name, route.start, route.omit, route.on_gap) == ("requests", "earliest", (), "halt")


def test_example_has_every_key_with_its_default() -> None:
    # Keys without a default are commented out: put them back.
    text = re.sub(r'^# (?=[\w"]+(?:\.\w+")? = )', "", EXAMPLE.read_text(encoding="utf-8"), flags=re.MULTILINE)
    example = tomli.loads(text)
    example["route"] = example["route"][0]
    del example["state_directory"]  # its default comes from the environment

    assert set(example) == set(Config.model_fields) - {"state_directory"}
    for table, model in TABLES.items():
        assert list(example[table]) == _order(list(example[table]), model), table
        for key, field in keys(model).items():
            if (table, key) not in WITHOUT_DEFAULT:
                default = list(field.default) if isinstance(field.default, tuple) else field.default
                assert example[table][key] == default, (table, key)
                assert type(example[table][key]) is type(default), (table, key)
    for key in ("pipeline", "startup_timeout_seconds", "ledger_keep_days", "dead_letters_keep_days"):
        assert example[key] == Config.model_fields[key].default


def _order(names: list[str], model: type[BaseModel]) -> list[str]:
    """Return all keys of the model, those of the example first: equal to them only if none is missing or unknown."""
    return [name for name in names if name in keys(model)] + [name for name in keys(model) if name not in names]


def test_example_explains_every_key() -> None:
    lines = EXAMPLE.read_text(encoding="utf-8").splitlines()
    assert not [line for line in lines if re.match(r"(# )?\w+ = |\[", line) and "#" not in line[1:] and line[0] != "["]


def test_example_of_a_mapping_loads(file: Path) -> None:
    _, _, mapping = EXAMPLE.read_text(encoding="utf-8").partition("[route.columns]")
    entries = re.findall(r"^# (\w+ = \{.*)$", mapping, re.MULTILINE)
    assert len(entries) == 4
    (route,) = load(_write(file, "\n".join([MINIMAL, "[route.columns]", *entries]))).route
    assert route.columns["created_at"].unit == "ms"


def test_example_loads() -> None:
    load(EXAMPLE)


def test_every_key_has_a_description() -> None:
    models: list[type[BaseModel]] = [Config, *TABLES.values()]
    for model in models:
        for key, field in keys(model).items():
            assert field.description, (model, key)
            assert field.description.endswith("."), (model, key)


def test_nothing_changes_later(file: Path) -> None:
    config = load(_write(file, MINIMAL))
    with pytest.raises(ValidationError):
        config.workers.count = 2


def test_all_faults_at_once(file: Path) -> None:
    faults = _faults(
        file,
        """\
pipline = "x"
linger_seconds = 1
[kafka]
assignment = "pined"
[kafka.librdkafka]
fetch.wait.max.ms = [1]
[postgres]
dsn = "postgresql://u:secret@h/d"
[workers]
count = 0
heartbeat_timeout_seconds = 2
buffer_bytes = 4096
[batch]
max_rows = 20_000
[[route]]
topic = "a b"
table = "t"
omit = ["x", 3]
[[route]]
topic = "a"
name = "n"
tabel = "t"
[[route]]
topic = "n"
table = "t"
[[route]]
topic = "b"
table = ""
name = "n"
start = "yesterday"
""",
    )
    assert faults == [
        "1: pipline: is an unknown key; did you mean pipeline?",
        "2: linger_seconds: is an unknown key; linger_seconds belongs to [batch]",
        "3: kafka.bootstrap_servers: is missing; Brokers to start from: host:port, more after commas. Required.",
        '4: kafka.assignment: is "pined"; allowed: "pinned" or "group"',
        "6: kafka.librdkafka.fetch.wait.max.ms: is a list; allowed: a string, a number or a boolean for each property",
        (
            "8: postgres.dsn: holds password; put a password into a file with mode 0600 and name that in "
            "postgres.password_file, or into the systemd credential postgres_password; anything else into a service "
            "file (service=NAME) that nobody else can read"
        ),
        "10: workers.count: is 0; allowed: a whole number from 1 to 256",
        (
            "16: route[0].topic: is not a topic's name; "
            "allowed: 1 to 249 letters, digits, '.', '_' and '-', but not '.' or '..'"
        ),
        "18: route[0].omit[1]: is 3; allowed: a list of strings",
        "19: route[1].table: is missing; The table to write: schema.table. Required.",
        "22: route[1].tabel: is an unknown key; did you mean table?",
        '24: route[2].topic: "n" is the name of route[1] too; give this route a `name` of its own',
        "28: route[3].table: is empty or has control characters; allowed: a line of printable characters",
        '29: route[3].name: "n" is the name of route[1] too; allowed: a name of its own',
        (
            '30: route[3].start: is not a start; allowed: "earliest", "latest" or a time with its offset, '
            "as 2026-01-31T08:00:00Z"
        ),
    ]


@pytest.mark.parametrize(
    ("lines", "fault"),
    [
        (
            'mode = "upsert"',
            'key: is missing; allowed with mode = "upsert": the columns of a unique index, such as ["id"]',
        ),
        ('mode = "upsert"\nkey = ["a", "a"]', "key: names a column twice"),
        ('key = ["a"]', 'key: is for mode = "upsert", which this route does not have'),
        ("insert_only = true", 'insert_only: is for mode = "upsert", which this route does not have'),
        (
            'delete_when = {field = "op", equals = "d"}',
            'delete_when: is for mode = "upsert", which this route does not have',
        ),
        (
            'mode = "upsert"\nkey = ["a"]\ninsert_only = true\ndelete_when = {field = "op", equals = "d"}',
            "delete_when: contradicts insert_only = true, which deletes nothing; allowed: one of them",
        ),
        (
            'mode = "upsert"\nkey = ["a"]\ndelete_when = {field = "op", equals = 1.5}',
            "delete_when.equals: is a number with a fraction; allowed: a string, an integer or a boolean",
        ),
        (
            'mode = "upsert"\nkey = ["a"]\ndelete_when = {field = "op", equals = []}',
            "delete_when.equals: is not a plain value; allowed: a string, a number or a boolean",
        ),
    ],
)
def test_rules_of_an_upsert(file: Path, lines: str, fault: str) -> None:
    [found] = _faults(file, MINIMAL + lines + "\n")
    assert found.partition("route[0].")[2] == fault


def test_rules_between_tables(file: Path) -> None:
    text = MINIMAL + "[workers]\nheartbeat_timeout_seconds = 3.0\nbuffer_bytes = 4096\n[batch]\nmax_bytes = 2049\n"
    assert _faults(file, text) == [
        "11: batch.linger_seconds: is 3; allowed: less than workers.heartbeat_timeout_seconds, which is 3",
        (
            "12: batch.max_bytes: is 2_049; allowed: at most half of workers.buffer_bytes, which is 4_096: "
            "one batch fills while another is copied"
        ),
    ]


def test_rules_between_tables_hold_for_defaults_too(file: Path) -> None:
    faults = _faults(file, MINIMAL + "[workers]\nbuffer_bytes = 4096\n")
    assert len(faults) == 1
    assert "batch.max_bytes: is 8_388_608; allowed: at most half of workers.buffer_bytes" in faults[0]


@pytest.mark.parametrize(
    ("lines", "fault"),
    [
        ("[workers]\ncount = true", "workers.count: is a boolean; allowed: a whole number from 1 to 256"),
        ("[workers]\ncount = 1.0", "workers.count: is 1.0; allowed: a whole number from 1 to 256"),
        ("[workers]\ncount = '4'", "workers.count: is a string; allowed: a whole number from 1 to 256"),
        ("[batch]\nlinger_seconds = 0.001", "batch.linger_seconds: is 0.001; allowed: a number of seconds from 0.01"),
        ("[batch]\nlinger_seconds = inf", "batch.linger_seconds: is inf; allowed: a number of seconds from 0.01"),
        ("[batch]\nlinger_seconds = nan", "batch.linger_seconds: is nan; allowed: a number of seconds from 0.01"),
        ("[batch]\nmax_rows = 1_000_001", "batch.max_rows: is 1000001; allowed: a whole number from 1 to 1_000_000"),
        ("[log]\nlevel = 'INFO'", 'log.level: is "INFO"; allowed: "debug" or "info" or "warning" or "error"'),
        ("[batch]\nlinger_seconds = 4e3", "batch.linger_seconds: is 4000.0; allowed: a number of seconds from"),
        ("log = 3", "log: is 3; allowed: a table"),
        (
            "[metrics]",
            ("metrics: is an unknown key; allowed: pipeline, startup_timeout_seconds, ledger_keep_days, "
            "dead_letters_keep_days, state_directory"),
        ),
    ],
)  # fmt: skip
def test_one_fault(lines: str, fault: str, file: Path) -> None:
    text = f"{lines}\n{MINIMAL}" if lines.startswith("log") else f"{MINIMAL}{lines}\n"
    (found,) = _faults(file, text)
    assert found.partition(": ")[2].startswith(fault)


@pytest.mark.parametrize("seconds", ["1", "1.0", "0.05"])
def test_whole_numbers_are_seconds_too(seconds: str, file: Path) -> None:
    assert load(_write(file, f"{MINIMAL}[batch]\nlinger_seconds = {seconds}\n")).batch.linger_seconds == float(seconds)


def test_an_empty_file(file: Path) -> None:
    assert [fault.partition(" ")[2].partition(":")[0] for fault in _faults(file, "")] == [
        "kafka.bootstrap_servers",
        "postgres.dsn",
        "route",
    ]


@pytest.mark.parametrize("route", ["route = 3", "route = []", "route = [1]", "[route]\ntopic = 'a'"])
def test_routes_of_a_wrong_kind(route: str, file: Path) -> None:
    (fault,) = _faults(file, f"{route}\n{MINIMAL.partition('[[route]]')[0]}")
    assert "allowed: " in fault


@pytest.mark.parametrize(
    ("start", "value"),
    [
        ('"latest"', "latest"),
        ('"2026-01-31T08:00:00Z"', datetime(2026, 1, 31, 8, tzinfo=UTC)),
        ('"2026-01-31T09:00:00+01:00"', datetime(2026, 1, 31, 8, tzinfo=UTC)),
        ("2026-01-31T08:00:00Z", datetime(2026, 1, 31, 8, tzinfo=UTC)),
    ],
)
def test_start(start: str, value: object, file: Path) -> None:
    assert load(_write(file, f"{MINIMAL}start = {start}\n")).route[0].start == value


@pytest.mark.parametrize(
    "start", ['"2026-01-31"', '"2026-01-31T08:00:00"', "2026-01-31T08:00:00", "2026-01-31", "5", "[]", '""']
)
def test_start_without_an_offset_is_a_fault(start: str, file: Path) -> None:
    (fault,) = _faults(file, f"{MINIMAL}start = {start}\n")
    assert fault.startswith("8: route[0].start: is not a start; allowed: ")


def test_librdkafka_keys_quoted_or_not(file: Path) -> None:
    properties = '"fetch.wait.max.ms" = 50\nqueued.min.messages = 1\nsocket.keepalive.enable = true\n'
    text = f"{MINIMAL}[kafka.librdkafka]\n{properties}"
    assert load(_write(file, text)).kafka.librdkafka == {
        "fetch.wait.max.ms": 50,
        "queued.min.messages": 1,
        "socket.keepalive.enable": True,
    }


def test_faults_found_by_others_get_their_line(file: Path) -> None:
    _write(file, f"{MINIMAL}[kafka.librdkafka]\nfetch.wait = 50\n")
    error = located(file, {("kafka", "librdkafka", "fetch.wait"): "no such property"})
    assert error.faults == (f"{file}:9: kafka.librdkafka.fetch.wait: no such property",)


class TestFile:
    """What is no configuration at all."""

    def test_missing(self, file: Path) -> None:
        with pytest.raises(ConfigError, match=re.escape(f"{file}: cannot be read: No such file or directory")):
            load(file)

    def test_directory(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
            load(tmp_path)

    def test_not_utf8(self, file: Path) -> None:
        file.write_bytes(b"a = 1\nb = '\xff'\n")
        with pytest.raises(ConfigError, match=re.escape(f"{file}:2: is not UTF-8: byte 0xff")):
            load(file)

    @pytest.mark.parametrize(
        ("text", "line", "message"),
        [
            ("a = 1\nb = = 2\n", 2, "Invalid value (at line 2, column 5); a text stands in quotes"),
            ("a = 1\na = 2\n", 2, "Cannot overwrite a value (at line 2, column 6)"),
            ('a = "', 1, "Unterminated string (at end of document)"),
        ],
    )
    def test_broken_toml(self, text: str, line: int, message: str, file: Path) -> None:
        assert _faults(file, text) == [f"{line}: is not TOML: {message}"]


class TestPassword:
    """Where a password may come from, and where it must not be seen."""

    SECRET = "p'a \\s%s"

    @pytest.mark.parametrize(
        "dsn",
        [
            "postgresql://u:pw@h/d",
            "postgres://u:@h/d",
            "postgresql://u@h/d?sslmode=require&password=pw",
            "host=h password=pw dbname=d",
            "host=h password = 'p w'",
            "host=h PASSWORD=pw",
            "postgresql://u@h/d?Password=pw",
            "postgresql://u:p#pw@h/d",  # to others the address ends at the #, to libpq it does not
            "postgresql://u:p?pw@h/d",
            "postgresql://u:pw/@h/d",
            "postgresql://u:pw@[h/d",
            "postgresql://u@h/d?%70assword=pw",
            "postgresql://u:pw@",
        ],
    )
    def test_not_in_the_file(self, dsn: str, file: Path) -> None:
        (fault,) = _faults(file, MINIMAL.replace("postgresql://kbatchd@localhost/app", dsn))
        assert fault.startswith("4: postgres.dsn: holds password; ")
        assert "pw" not in fault
        assert "p w" not in fault

    @pytest.mark.parametrize("option", ["sslpassword", "oauth_client_secret", "scram_client_key"])
    @pytest.mark.parametrize("form", ["postgresql://u@h/d?{}=pw", "host=h {}=pw", "{}=''"])
    def test_no_other_secret_in_the_file(self, option: str, form: str, file: Path) -> None:
        (fault,) = _faults(file, MINIMAL.replace("postgresql://kbatchd@localhost/app", form.format(option)))
        assert fault.startswith(f"4: postgres.dsn: holds {option}; ")
        assert "pw" not in fault

    @pytest.mark.parametrize(
        "dsn",
        ["host=/h passfile=/x", "postgresql://u@[::1]:1,localhost:2/d?passfile=x", "options='-c a.password=b'"],
    )
    def test_dsn_without_a_password(self, dsn: str, file: Path) -> None:
        assert load(_write(file, MINIMAL.replace("postgresql://kbatchd@localhost/app", dsn))).postgres.conninfo == dsn

    @pytest.mark.parametrize("dsn", ["app", "mysql://h/d", "http://h"])
    def test_not_a_connection_string(self, dsn: str, file: Path) -> None:
        (fault,) = _faults(file, MINIMAL.replace("postgresql://kbatchd@localhost/app", dsn))
        assert fault.startswith("4: postgres.dsn: is not a connection string; allowed: ")

    @pytest.mark.parametrize(
        "dsn",
        [
            "postgresql://u@h/d?sslmode=verify-full",
            "postgresql://u@127.0.0.1:1,[::1]:2/d?sslmode=prefer",
            "host=localhost user=u",
            "host='localhost' user=u ",
        ],
    )
    @pytest.mark.parametrize("mode", [0o600, 0o400])
    def test_from_its_file(self, dsn: str, mode: int, file: Path) -> None:
        (file.parent / "secret").write_text(f"{self.SECRET}\n")
        (file.parent / "secret").chmod(mode)
        text = MINIMAL.replace('postgresql://kbatchd@localhost/app"', f'{dsn}"\npassword_file = "secret"')
        config = load(_write(file, text))
        assert conninfo_to_dict(config.postgres.conninfo) == {**conninfo_to_dict(dsn), "password": self.SECRET}
        assert self.SECRET not in repr(config)
        assert self.SECRET not in str(config.model_dump())

    @pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o666])
    def test_file_open_to_others(self, mode: int, file: Path) -> None:
        secret = file.parent / "secret"
        secret.write_text("pw")
        secret.chmod(mode)
        (fault,) = _faults(file, MINIMAL.replace("[postgres]", '[postgres]\npassword_file = "secret"'))
        assert fault == (
            f"4: postgres.password_file: is {secret} with mode {mode:04o}; allowed: 0600 or 0400 (chmod 600 {secret})"
        )

    @pytest.mark.parametrize("content", [b"", b"\n", b"\xff", b"a\0b"])
    def test_file_without_a_password(self, content: bytes, file: Path) -> None:
        secret = file.parent / "secret"
        secret.write_bytes(content)
        secret.chmod(0o600)
        (fault,) = _faults(file, MINIMAL.replace("[postgres]", '[postgres]\npassword_file = "secret"'))
        assert fault.startswith(f"4: postgres.password_file: is {secret}, which ")

    def test_file_that_is_missing(self, file: Path) -> None:
        (fault,) = _faults(file, MINIMAL.replace("[postgres]", '[postgres]\npassword_file = "/no/{where}"'))
        assert fault.endswith(
            "is /no/{where}, which cannot be read: No such file or directory; allowed: a file that this user can read"
        )

    def test_from_a_systemd_credential(self, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (file.parent / "postgres_password").write_text(self.SECRET)
        monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(file.parent))
        config = load(_write(file, MINIMAL))
        assert conninfo_to_dict(config.postgres.conninfo)["password"] == self.SECRET

    def test_database_url_may_hold_one(self, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("DATABASE_URL", "postgresql://u:first@localhost/d")
        text = MINIMAL.replace('dsn = "postgresql://kbatchd@localhost/app"\n', "")
        config = load(_write(file, text))
        assert config.postgres.dsn is None
        assert config.postgres.conninfo == "postgresql://u:first@localhost/d"
        assert "first" not in repr(config)

        (file.parent / "secret").write_text("second")
        (file.parent / "secret").chmod(0o600)
        config = load(_write(file, text.replace("[postgres]", '[postgres]\npassword_file = "secret"')))
        assert conninfo_to_dict(config.postgres.conninfo)["password"] == "second"

    def test_the_file_outranks_database_url(self, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("DATABASE_URL", "postgresql://other/d")
        assert load(_write(file, MINIMAL)).postgres.conninfo == "postgresql://kbatchd@localhost/app"

    def test_database_url_of_a_wrong_kind(self, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("DATABASE_URL", "mysql://u:secret@h/d")
        (fault,) = _faults(file, MINIMAL.replace('dsn = "postgresql://kbatchd@localhost/app"\n', ""))
        assert fault.startswith("3: postgres.dsn: is missing, and $DATABASE_URL is not a connection string; allowed: ")
        assert "secret" not in fault

    @pytest.mark.parametrize("content", [r"pw\c; $(id) `id`", r"pw\n\c; $(id) `id`"])
    def test_from_a_command(self, content: str, file: Path) -> None:
        """Without a shell: its words are the program's own, whatever is in them."""
        words = ["printf", "%b", content]
        command = f"password_command = {json.dumps(words)}\n"
        config = load(_write(file, MINIMAL.replace("[postgres]\n", f"[postgres]\n{command}")))
        assert conninfo_to_dict(config.postgres.conninfo)["password"] == "pw"

    @pytest.mark.parametrize(
        ("words", "what"),
        [
            (["/no/such"], "/no/such cannot be run: No such file or directory"),
            (["false"], "false ended with exit status 1"),
            (["sh", "-c", "echo s3cret; echo s3cret >&2; exit 3"], "sh ended with exit status 3"),
            (["true"], "true holds no password; allowed: one line"),
            (["printf", r"a\nb"], "printf holds no password; allowed: one line"),
            (["sleep", "60"], "sleep did not end within 0 s"),
        ],
    )
    def test_a_command_that_fails(
        self, words: list[str], what: str, file: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        if words[0] == "sleep":
            monkeypatch.setattr(credentials, "COMMAND_SECONDS", 0.1)
        command = f"password_command = {json.dumps(words)}\n"
        (fault,) = _faults(file, MINIMAL.replace("[postgres]\n", f"[postgres]\n{command}"))
        assert fault == f"3: postgres: password: {what}"

    def test_a_command_does_not_see_database_url(self, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("DATABASE_URL", "postgresql://u:first@localhost/d")
        command = 'password_command = ["sh", "-c", "echo got=$DATABASE_URL"]\n'
        config = load(_write(file, MINIMAL.replace("[postgres]\n", f"[postgres]\n{command}")))
        assert conninfo_to_dict(config.postgres.conninfo)["password"] == "got="

    def test_from_one_origin_only(self, file: Path) -> None:
        (file.parent / "secret").write_text("pw")
        (file.parent / "secret").chmod(0o600)
        both = 'password_file = "secret"\npassword_command = ["true"]\n'
        (fault,) = _faults(file, MINIMAL.replace("[postgres]\n", f"[postgres]\n{both}"))
        assert fault == "3: postgres: has both password_file and password_command; allowed: one of them"

    def test_environment_is_bare(self) -> None:
        assert "DATABASE_URL" not in os.environ


class TestTrust:
    """Whom the daemon speaks to must be known, or the file must say that it need not be."""

    @pytest.mark.parametrize(
        ("dsn", "host"),
        [
            ("postgresql://u@db.example/d", "db.example"),
            ("postgresql://u@10.0.0.7/d?sslmode=require", "10.0.0.7"),
            ("postgresql://u@db.example/d?sslmode=verify-ca", "db.example"),
            ("host=localhost,db.example dbname=d", "db.example"),
            ("host=localhost hostaddr=10.0.0.7 dbname=d", "10.0.0.7"),
            ("service=app", "service app"),
        ],
    )
    def test_a_host_beyond_needs_verify_full(self, dsn: str, host: str, file: Path) -> None:
        text = MINIMAL.replace("postgresql://kbatchd@localhost/app", dsn)
        (fault,) = _faults(file, text)
        what = f"is false, and {host} is beyond this machine without sslmode=verify-full; "
        assert fault.startswith(f"3: postgres.allow_insecure: {what}")
        load(_write(file, text.replace("[postgres]\n", "[postgres]\nallow_insecure = true\n")))
        separator = "&" if "?" in dsn else "?" if "://" in dsn else " "
        load(_write(file, text.replace(dsn, f"{dsn}{separator}sslmode=verify-full")))

    @pytest.mark.parametrize("dsn", ["host=/run/postgresql", "postgresql:///d", "postgresql://[::1],127.0.0.2/d"])
    def test_this_machine_needs_nothing(self, dsn: str, file: Path) -> None:
        load(_write(file, MINIMAL.replace("postgresql://kbatchd@localhost/app", dsn)))

    def test_the_environment_counts(self, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PGHOST", "db.example")
        text = MINIMAL.replace("postgresql://kbatchd@localhost/app", "dbname=app")
        assert "db.example is beyond" in _faults(file, text)[0]
        monkeypatch.setenv("PGSSLMODE", "verify-full")
        load(_write(file, text))

    def kafka(self, file: Path, *lines: str) -> Config:
        (file.parent / "pw").write_text("s3cret\n")
        (file.parent / "pw").chmod(0o600)
        return load(_write(file, MINIMAL.replace("[kafka]\n", "\n".join(["[kafka]", *lines, ""]))))

    OAUTH = ("tls = true", 'sasl_mechanism = "OAUTHBEARER"')
    LOGIN = ('sasl_mechanism = "SCRAM-SHA-256"', 'sasl_username = "u"', 'password_file = "pw"')

    def test_sasl_needs_tls(self, file: Path) -> None:
        config = self.kafka(file, *self.LOGIN, "tls = true")
        assert config.kafka.client == {
            "bootstrap.servers": "localhost:9092",
            "security.protocol": "sasl_ssl",
            "sasl.mechanism": "SCRAM-SHA-256",
            "sasl.username": "u",
            "sasl.password": "s3cret",
        }
        assert "s3cret" not in repr(config) + str(config.model_dump())
        with pytest.raises(ConfigError, match=r"kafka\.allow_insecure: is false, and SASL without TLS"):
            self.kafka(file, *self.LOGIN)
        allowed = self.kafka(file, *self.LOGIN, "allow_insecure = true")
        assert allowed.kafka.client["security.protocol"] == "sasl_plaintext"

    @pytest.mark.parametrize(
        ("lines", "fault"),
        [
            (['librdkafka."security.protocol" = "SASL_PLAINTEXT"'], "kafka.allow_insecure: is false, and SASL"),
            (
                ["tls = true", 'librdkafka."enable.ssl.certificate.verification" = false'],
                "kafka.allow_insecure: is false, and enable.ssl.certificate.verification lets anybody",
            ),
            (
                ["tls = true", 'librdkafka."ssl.endpoint.identification.algorithm" = "none"'],
                "kafka.allow_insecure: is false, and ssl.endpoint.identification.algorithm lets anybody",
            ),
            *(
                ([f'librdkafka."{name}" = "s3cret"'], f"kafka.librdkafka: holds {name}; put a password, or")
                for name in (
                    "sasl.password",
                    "sasl.oauthbearer.client.secret",
                    "sasl.oauthbearer.client.credentials.client.secret",
                    "sasl.oauthbearer.assertion.private.key.passphrase",
                    "sasl.oauthbearer.assertion.private.key.pem",
                    "sasl.oauthbearer.config",
                    "sasl.jaas.config",
                    "ssl.key.pem",
                    "ssl.key.password",
                    "ssl.keystore.password",
                )
            ),
            *(
                (
                    [f'librdkafka."sasl.oauthbearer.token.endpoint.url" = "https://{address}"'],
                    "kafka.librdkafka: holds sasl.oauthbearer.token.endpoint.url; put a password, or",
                )
                for address in (
                    "u:s3cret@h/token",
                    "s3cret@h",
                    "h/token?client_secret=s3cret",
                    "h?a=1&access_token=s3cret",
                )
            ),
            (["tls = true", 'sasl_username = "u"'], "kafka: has one of sasl_mechanism and sasl_username"),
            (
                ["tls = true", 'sasl_mechanism = "PLAIN"', 'sasl_username = "u"'],
                "kafka: has sasl_mechanism and no password; ",
            ),
            (
                ["tls = true", 'sasl_mechanism = "OAUTHBEARER"'],
                'kafka: has sasl_mechanism = "OAUTHBEARER" and no way to a token; allowed: token_command, or "sasl.',
            ),
            (
                [*OAUTH, 'token_command = ["cat"]', 'librdkafka."sasl.oauthbearer.method" = "OIDC"'],
                'kafka: has sasl_mechanism = "OAUTHBEARER" and two ways to a token; allowed: ',
            ),
            (
                [*OAUTH, 'token_command = ["cat"]', 'password_command = ["cat"]'],
                "kafka: has token_command; allowed: without sasl_username and a password",
            ),
            (
                [*OAUTH, 'token_command = ["cat"]', 'sasl_username = "u"'],
                "kafka: has token_command; allowed: without sasl_username and a password",
            ),
            (['token_command = ["cat"]'], "kafka: has token_command; allowed with sasl_mechanism = "),
            ([*OAUTH, 'token_command = ["/no/such"]'], "kafka.token_command: names /no/such, and there is no such"),
            ([*OAUTH, "token_command = []"], "kafka.token_command: is empty; allowed: a program"),
            (
                ['sasl_mechanism = "OAUTHBEARER"', 'token_command = ["cat"]'],
                "kafka.allow_insecure: is false, and SASL without TLS shows the login",
            ),
            (['sasl_mechanism = "SCRAM"'], 'kafka.sasl_mechanism: is "SCRAM"; allowed: "PLAIN" or "SCRAM-SHA-256" or '),
            (['tls_ca_file = "pw"'], "kafka.tls_ca_file: goes with tls = true"),
        ],
    )
    def test_what_is_wrong_with_kafka(self, lines: list[str], fault: str, file: Path) -> None:
        with pytest.raises(ConfigError) as caught:
            self.kafka(file, *lines)
        assert any(fault in line for line in caught.value.faults), caught.value.faults
        assert "s3cret" not in str(caught.value)

    def test_a_credential(self, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(file.parent))
        (file.parent / "kafka_password").write_text("from systemd")
        config = self.kafka(file, *self.LOGIN[:2], "tls = true")
        assert config.kafka.client["sasl.password"] == "from systemd"

    @pytest.mark.parametrize("prefix", ["sasl.oauthbearer.", "sasl.oauthbearer.client.credentials."])
    def test_the_secret_of_a_client_comes_from_where_a_password_does(self, prefix: str, file: Path) -> None:
        (file.parent / "secret").write_text("s3cret")
        (file.parent / "secret").chmod(0o600)
        properties = {"sasl.mechanisms": "oauthbearer", "sasl.oauthbearer.method": "oidc", f"{prefix}client.id": "us"}
        lines = [f'librdkafka."{name}" = "{value}"' for name, value in properties.items()]
        config = self.kafka(file, 'password_file = "secret"', *lines)
        assert config.kafka.client[f"{prefix}client.secret"] == "s3cret"
        assert "sasl.password" not in config.kafka.client
        assert "s3cret" not in repr(config)

    def test_a_token_command(self, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(file.parent))
        (file.parent / "kafka_password").write_text("of no use here")
        kafka = self.kafka(file, *self.OAUTH, 'token_command = ["echo", "s3cret"]').kafka
        assert kafka.client["sasl.mechanism"] == "OAUTHBEARER"
        assert kafka.client["security.protocol"] == "sasl_ssl"
        assert not {name for name in kafka.client if "password" in name or "secret" in name}
        assert kafka.ask_token() == "s3cret\n"

    def test_oidc(self, file: Path) -> None:
        (file.parent / "secret").write_text("s3cret")
        (file.parent / "secret").chmod(0o600)
        lines = ['sasl_username = "us"', 'password_file = "secret"', 'librdkafka."sasl.oauthbearer.method" = "oidc"']
        config = self.kafka(file, *self.OAUTH, *lines)
        prefix = "sasl.oauthbearer.client.credentials.client"
        assert config.kafka.client[f"{prefix}.id"] == "us"
        assert config.kafka.client[f"{prefix}.secret"] == "s3cret"
        assert not {"sasl.username", "sasl.password"} & config.kafka.client.keys()


def test_sections_can_be_built_in_code() -> None:
    kafka = Kafka(bootstrap_servers="h:1")
    assert typing.get_type_hints(Kafka)["assignment"] == typing.Literal["pinned", "group"]
    assert kafka.librdkafka == {}
    assert Route(topic="t", table="public.t").name == "t"


@pytest.mark.parametrize("url", [None, "postgresql://nobody@localhost/app"], ids=["alone", "with DATABASE_URL"])
def test_an_empty_dsn_is_a_fault(file: Path, monkeypatch: pytest.MonkeyPatch, url: str | None) -> None:
    if url is not None:
        monkeypatch.setenv("DATABASE_URL", url)
    text = '[kafka]\nbootstrap_servers = "b:9092"\n[postgres]\ndsn = ""\n[[route]]\ntopic = "t"\ntable = "public.t"\n'
    (fault,) = _faults(file, text)
    assert fault.startswith("4: postgres.dsn: is not a connection string")
