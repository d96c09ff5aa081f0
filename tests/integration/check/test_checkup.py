# ruff: noqa: E501 - the table of faults
# mypy: disable-error-code="func-returns-value"
"""`kbatchd check`: each seeded fault is found and named with its remedy, all at once, and nothing is left behind."""

from __future__ import annotations

import json
import sys
import uuid
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from confluent_kafka import Producer, TopicCollection, TopicPartition
from confluent_kafka.admin import AdminClient
from psycopg.conninfo import make_conninfo

from kbatchd.check import checkup
from kbatchd.cli import main
from tests.fix_kafka import _topics, group_ids

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from kbatchd.devstack.kafka import GivenKafka, Kafka
    from tests.fix_kafka import MakeTopic

NOBODY = "127.0.0.1:9"
AWAY = "host=127.0.0.1 port=9 user=x dbname=x"
GOOD = b'{"id":%d,"name":"ok"}'
ALL_RIGHTS = (
    "USAGE ON SCHEMA kbatchd",
    "SELECT ON kbatchd.migrations",
    "SELECT, INSERT, UPDATE ON kbatchd.progress",
    "INSERT, SELECT, DELETE ON kbatchd.dead_letters, kbatchd.batches",
    "INSERT ON kbatchd.gaps",
    "INSERT ON public.target",
)


@dataclass
class Seed:
    """An installation without a fault, for a test to put one in."""

    connection: psycopg.Connection
    bootstrap_servers: str
    directory: Path
    make_topic: MakeTopic
    role: str
    route: dict[str, Any]
    tables: dict[str, dict[str, Any]]
    findings: list[dict[str, str]] = field(default_factory=list)

    def sql(self, statement: str) -> None:
        self.connection.execute(statement.encode())

    def as_role(self, *rights: str) -> None:
        for right in rights:
            self.sql(f'GRANT {right} TO "{self.role}"')
        self.tables["postgres"]["dsn"] = make_conninfo(self.tables["postgres"]["dsn"], user=self.role)

    def records(
        self,
        *values: bytes | None,
        partitions: int = 1,
        key: bytes | None = None,
        headers: list[tuple[str, str | bytes | None]] | None = None,
    ) -> None:
        """Give the route a topic of its own with these records."""
        self.route["topic"] = self.make_topic(partitions)
        producer = Producer({"bootstrap.servers": self.bootstrap_servers})
        for number, value in enumerate(values):
            producer.produce(self.route["topic"], value, key=key, headers=headers or [], partition=number % partitions)
        assert producer.flush(30) == 0

    def progress(
        self, next_offset: int, partition: int = 0, target: str = '"public"."target"', topic_id: str = ""
    ) -> None:
        admin = AdminClient({"bootstrap.servers": self.bootstrap_servers})
        topic = self.route["topic"]
        found = admin.describe_topics(TopicCollection([topic]))[topic].result()
        self.connection.execute(
            """INSERT INTO kbatchd.progress (pipeline, route, topic, partition, topic_id, target, next_offset)
               VALUES ('kbatchd', 'r', %s, %s, %s, %s, %s)""",
            (topic, partition, topic_id or str(found.topic_id), target, next_offset),
        )

    def file(self) -> Path:
        lines = []
        for name, table in self.tables.items():
            lines += [f"[{name}]", *(f"{key} = {_toml(value)}" for key, value in table.items())]
        lines += ["[[route]]", *(f"{key} = {_toml(value)}" for key, value in self.route.items())]
        path = self.directory / "kbatchd.toml"
        path.write_text("\n".join(lines) + "\n")
        return path


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(key)} = {_toml(inner)}" for key, inner in value.items()) + "}"
    return json.dumps(value)


@pytest.fixture(scope="module")
def plain_topic(kafka: Kafka | GivenKafka) -> Iterator[str]:
    """A topic of good records for all tests that do not change it."""
    with _topics(kafka.bootstrap_servers, delete=True) as make:
        topic = make(4)
        producer = Producer({"bootstrap.servers": kafka.bootstrap_servers})
        for n in range(40):
            producer.produce(topic, GOOD % n, partition=n % 4)
        assert producer.flush(30) == 0
        yield topic


@pytest.fixture
def seed(
    database: str,
    kafka: Kafka | GivenKafka,
    tmp_path: Path,
    make_topic: MakeTopic,
    plain_topic: str,
) -> Iterator[Seed]:
    role = f"r_{uuid.uuid4().hex[:12]}"
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute("CREATE TABLE public.target (id bigint NOT NULL, name text)")
        connection.execute(f"CREATE ROLE {role} LOGIN".encode())
        yield Seed(
            connection,
            kafka.bootstrap_servers,
            tmp_path,
            make_topic,
            role,
            {"name": "r", "topic": plain_topic, "table": "public.target"},
            {
                "kafka": {"bootstrap_servers": kafka.bootstrap_servers},
                "postgres": {"dsn": database},
                "workers": {"count": 1},
            },
        )
        connection.execute(f"DROP OWNED BY {role}; DROP ROLE {role}".encode())


def check(seed: Seed, capfdbinary: pytest.CaptureFixture[bytes]) -> tuple[int, list[dict[str, str]]]:
    """Run the command; return its exit code and what it found."""
    file = seed.file()
    with pytest.MonkeyPatch.context() as patch:
        if {NOBODY, AWAY} & {str(value) for table in seed.tables.values() for value in table.values()}:
            patch.setattr(checkup, "TIMEOUT_SECONDS", 2.0)  # nobody answers, however long that is
        code = main(["check", "--json", "--config", str(file)])
    output = capfdbinary.readouterr()
    assert b"kbatchd: " not in output.err, output.err  # whatever is wrong is a finding
    return code, [json.loads(line) for line in output.out.splitlines()]


def key_of(seed: Seed, *, unique: bool = True, not_null: bool = True) -> None:
    seed.route |= {"mode": "upsert", "key": ["name"]}
    if not_null:
        seed.sql("ALTER TABLE public.target ALTER name SET NOT NULL")
    if unique:
        seed.sql("CREATE UNIQUE INDEX ON public.target (name)")


def trigger(seed: Seed, body: str) -> None:
    seed.sql(f"CREATE FUNCTION public.f() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {body} RETURN new; END $$")
    seed.sql("CREATE TRIGGER t BEFORE INSERT ON public.target FOR EACH ROW EXECUTE FUNCTION public.f()")


def retention(seed: Seed) -> None:
    seed.records(*(GOOD % n for n in range(9)))
    seed.progress(2)
    admin = AdminClient({"bootstrap.servers": seed.bootstrap_servers})
    for deleted in admin.delete_records([TopicPartition(seed.route["topic"], 0, 5)]).values():
        deleted.result()


def change(name: str, **keys: Any) -> Callable[[Seed], None]:
    def apply(seed: Seed) -> None:
        table = seed.route if name == "route" else seed.tables.setdefault(name, {})
        table.update(keys)

    return apply


def sql(statement: str) -> Callable[[Seed], None]:
    return lambda seed: seed.sql(statement)


def both(*parts: Callable[[Seed], None]) -> Callable[[Seed], None]:
    def apply(seed: Seed) -> None:
        for part in parts:
            part(seed)

    return apply


#: What is done to a sound installation; the level; words of the finding; words of its remedy.
FAULTS: dict[str, tuple[Callable[[Seed], Any], str, str, str]] = {
    # The file.
    "unknown key": (change("route", tabel="x"), "fault", "tabel", "did you mean table?"),
    "linger beyond heartbeat": (change("batch", linger_seconds=40.0), "fault", "linger_seconds", "heartbeat"),
    "upsert without a key": (change("route", mode="upsert"), "fault", "key: is missing", "unique index"),
    "librdkafka": (change("kafka", librdkafka={"fetch.wait.max.ms": -3}), "fault", "fetch.wait.max.ms", "fix it"),
    "idle workers": (change("workers", count=5), "warning", "5 workers, and 4 partitions", "workers.count"),
    # The servers.
    "Kafka away": (change("kafka", bootstrap_servers=NOBODY), "fault", "Kafka cannot be reached", "its address"),
    "PostgreSQL away": (change("postgres", dsn=AWAY), "fault",
                        "PostgreSQL cannot be reached", "its address"),
    "no database": (lambda seed: seed.tables["postgres"].update(
        dsn=make_conninfo(seed.tables["postgres"]["dsn"], dbname="nowhere")), "fault",
        'database "nowhere" does not exist', "create the database, or correct postgres.dsn"),
    "no role": (lambda seed: seed.tables["postgres"].update(
        dsn=make_conninfo(seed.tables["postgres"]["dsn"], user="nobody_we_know")), "fault", "nobody_we_know", "postgres.dsn"),
    "no schema": (sql("DROP SCHEMA kbatchd CASCADE"), "fault", "the schema kbatchd lacks 0001_kbatchd", "kbatchd migrate"),
    "an older schema": (sql("DELETE FROM kbatchd.migrations WHERE number = 2"), "fault",
                        "lacks 0002_dead_letters", "kbatchd migrate"),
    "a newer schema": (sql("INSERT INTO kbatchd.migrations (number, name) VALUES (9999, 'x')"), "fault",
                       "version 9999", "run the program that made it"),
    "no right to write dead letters": (lambda seed: seed.as_role(
        *(right for right in ALL_RIGHTS if "dead_letters" not in right), "INSERT, SELECT, DELETE ON kbatchd.batches"),
        "fault", "no right to INSERT on kbatchd.dead_letters", "GRANT INSERT ON kbatchd.dead_letters TO"),
    "read-only": (lambda seed: (seed.as_role(*ALL_RIGHTS), seed.sql(
        f'ALTER ROLE "{seed.role}" SET default_transaction_read_only = on')), "fault", "read-only", "primary"),
    # The tables.
    "no table": (change("route", table="public.nowhere"), "fault", "public.nowhere does not exist", "create it"),
    "no name of a table": (change("route", table="a.b.c.d"), "fault", "is not a table's name", "correct"),
    "a view": (both(sql("CREATE VIEW public.v AS TABLE public.target"), change("route", table="public.v")), "fault",
               "public.v is a view", "tables"),
    "no right to insert": (lambda seed: seed.as_role(*ALL_RIGHTS[:-1]), "fault", "may not be written", "GRANT INSERT"),
    "row-level security": (lambda seed: (seed.sql("ALTER TABLE public.target ENABLE ROW LEVEL SECURITY"),
                                         seed.as_role(*ALL_RIGHTS)), "fault", "row-level security", "BYPASSRLS"),
    "omit of nothing": (change("route", omit=["nam"]), "fault", "omit names column nam", "take it out"),
    "omit without a default": (change("route", omit=["id"]), "fault", "omitted column id is NOT NULL", "give it one"),
    "progress of another table": (lambda seed: seed.progress(0, target='"public"."former"'), "fault",
                                  "its progress was made for table", "another name"),
    "unlogged": (sql("ALTER TABLE public.target SET UNLOGGED"), "warning", "is UNLOGGED", "SET LOGGED"),
    "an unlogged partition": (sql(
        "DROP TABLE public.target; CREATE TABLE public.target (id bigint NOT NULL, name text) PARTITION BY RANGE (id);"
        "CREATE UNLOGGED TABLE public.low PARTITION OF public.target FOR VALUES FROM (0) TO (200)"), "warning",
        "table low is UNLOGGED", "ALTER TABLE low SET LOGGED"),
    "a partition on another server": (sql(
        "DROP TABLE public.target; CREATE TABLE public.target (id bigint NOT NULL, name text) PARTITION BY RANGE (id);"
        "CREATE TABLE public.low PARTITION OF public.target FOR VALUES FROM (0) TO (200);"
        "CREATE FOREIGN DATA WRAPPER far; CREATE SERVER far FOREIGN DATA WRAPPER far;"
        "CREATE FOREIGN TABLE public.high PARTITION OF public.target FOR VALUES FROM (200) TO (300) SERVER far"), "fault",
        "public.target has its partition high on another server", "detach it"),
    "a rule": (sql("CREATE RULE r AS ON INSERT TO public.target DO ALSO NOTIFY r"), "warning",
               "has the rule r ON INSERT, which COPY passes over", "trigger"),
    "progress of a partition that is lost": (lambda seed: [seed.progress(3, partition=n) for n in (0, 1, 3)], "fault",
                                             "is gone from kbatchd.progress for partition 2", "progress set"),
    "no right on a sequence": (lambda seed: (
        seed.sql("ALTER TABLE public.target ADD serial bigserial"), seed.route.update(omit=["serial"]),
        seed.as_role(*ALL_RIGHTS)), "fault", "sequence target_serial_seq", "GRANT USAGE ON SEQUENCE"),
    "a column that nothing feeds": (sql("ALTER TABLE public.target ADD nme text"), "warning",
                                    "column nme is a field of none of 40 records", "omit"),
    "a misspelt column": (sql("ALTER TABLE public.target RENAME name TO nmae"), "warning",
                          "column nmae is a field of none", "if field name is meant"),
    # Remedies that are lines of the mapping.
    "a number for a time": (lambda seed: (seed.sql("ALTER TABLE public.target ADD at timestamptz"),
                                          seed.records(*[b'{"id":%d,"name":"x","at":1763855045123}' % n for n in range(3)])),
                            "fault", "3 of 3 records would be dead letters: wrong_type, column at",
                            'the line  at = { field = "at", unit = "ms" }'),
    "a mapped number for a time": (lambda seed: (seed.sql('ALTER TABLE public.target ADD "at" date'),
                                                 seed.route.update(columns={"at": "meta.ts"}),
                                                 seed.records(b'{"id":1,"name":"x","meta":{"ts":"1763855045"}}')),
                                   "fault", "1 of 1 records would be dead letters: not_a_date, column at",
                                   'the line  at = { field = "meta.ts", unit = "s" }'),
    "a field in another object": (lambda seed: (seed.sql("ALTER TABLE public.target ADD customer_city text"),
                                                seed.records(b'{"id":1,"name":"x","customer":{"city":"Ulm"}}')),
                                  "warning", "column customer_city is a field of none of 1 records",
                                  'the line  customer_city = "customer.city"'),
    "a field in another object that must be": (
        lambda seed: (seed.sql("ALTER TABLE public.target ADD city text NOT NULL"),
                      seed.records(b'{"id":1,"name":"x","customer":{"address":{"city":"Ulm"}}}')),
        "fault", "missing, column city", 'the line  city = "customer.address.city"'),
    "a number for a time in an array": (
        lambda seed: (seed.sql('ALTER TABLE public.target ADD "at" timestamp'),
                      seed.route.update(columns={"at": {"field": "meta[1].ts", "default": "2026-01-01T00:00:00"}}),
                      seed.records(b'{"id":1,"name":"x","meta":[{},{"ts":1763855045123456}]}')),
        "fault", "1 of 1 records would be dead letters: wrong_type, column at",
        'to the line  at = { field = "meta[1].ts", default = "2026-01-01T00:00:00", unit = "us" }'),
    "a number for a time in JSON in an envelope": (
        lambda seed: (seed.sql('ALTER TABLE public.target ADD "at" timestamptz'),
                      seed.route.update(value_field="payload"),
                      seed.records(b'{"payload":"{\\"id\\":1,\\"name\\":\\"x\\",\\"at\\":1763855045.5}"}')),
        "fault", "wrong_type, column at", 'the line  at = { field = "at", unit = "s" }'),
    "a number for a time beside an envelope": (
        lambda seed: (seed.sql('ALTER TABLE public.target ADD "at" timestamptz'),
                      seed.route.update(value_field="payload", columns={"at": {"source": "value", "field": "ts"}}),
                      seed.records(b'{"ts":1763855045123,"payload":{"id":1,"name":"x"}}')),
        "fault", "wrong_type, column at", 'the line  at = { field = "ts", source = "value", unit = "ms" }'),
    "a number for a time in a header": (
        lambda seed: (seed.sql('ALTER TABLE public.target ADD "at" timestamptz'),
                      seed.route.update(columns={"at": {"source": "header:at"}}),
                      seed.records(b'{"id":1,"name":"x"}', headers=[("at", "1763855045123")])),
        "fault", "column at", 'the line  at = { source = "header:at", unit = "ms" }'),
    "a field beside the envelope": (
        lambda seed: (seed.sql("ALTER TABLE public.target ADD op text; ALTER TABLE public.target ADD source_db text"),
                      seed.route.update(value_field="after"),
                      seed.records(b'{"op":"c","source":{"db":"x"},"after":{"id":1,"name":"x"}}')),
        "warning", "column op is a field of none of 1 records", 'the line  op = { field = "op", source = "value" }'),
    "a mapped field that is not there": (
        lambda seed: (seed.sql("ALTER TABLE public.target ADD city text"),
                      seed.route.update(columns={"city": "custmer.city"}),
                      seed.records(b'{"id":1,"name":"x","customer":{"city":"Ulm"}}')),
        "warning", "column city is a field of none of 1 records", 'to the line  city = "customer.city"'),
    "a field of a name that cannot be printed": (
        lambda seed: (seed.sql("ALTER TABLE public.target ADD city text"),
                      seed.records('{"id":1,"name":"x","custo\u00a0mer\x7f":{"city":"Ulm"}}'.encode())),
        "warning", "column city is a field of none of 1 records", r'city = "custo\U000000a0mer\U0000007f.city"'),
    "a time without an offset": (lambda seed: (seed.sql("ALTER TABLE public.target ADD at timestamptz"),
                                               seed.records(b'{"id":1,"name":"x","at":"2026-01-01T00:00:00"}')),
                                 "fault", "not_a_timestamp, column at", "make the column a timestamp"),
    "a table in another schema": (lambda seed: seed.sql("CREATE SCHEMA app; ALTER TABLE public.target SET SCHEMA app"),
                                  "fault", "table public.target does not exist, but app.target", 'table = "app.target"'),
    "a table with capitals": (sql('ALTER TABLE public.target RENAME TO "Target"'), "fault",
                              'does not exist, but public."Target"', "table = 'public.\"Target\"'"),
    # The mapping.
    "a mapping of a column that is not there": (change("route", columns={"nam": "x"}), "fault", "the mapping names column nam",
                                                "correct it"),
    "a mapping of a generated column": (both(
        sql("ALTER TABLE public.target ADD twice bigint GENERATED ALWAYS AS (id * 2) STORED"),
        change("route", columns={"twice": "x"})), "fault", "column twice is generated", "take it out of the mapping"),
    "a path that is none": (change("route", columns={"name": "a..b"}), "fault", "is not a path to a field", "address.city"),
    "fields that are refused": (lambda seed: (seed.route.update(unknown_fields="reject"),
                                              seed.records(GOOD % 1, b'{"id":2,"extra":1}')), "warning",
                                "1 of 2 records would be dead letters", "fix the producer"),
    # Upserts.
    "no unique index": (lambda seed: key_of(seed, unique=False), "fault", "no unique index on (name)",
                        "CREATE UNIQUE INDEX"),
    "another collation": (both(lambda seed: key_of(seed, unique=False),
                               sql('CREATE UNIQUE INDEX ON public.target (name COLLATE "C")')), "fault",
                          "has another collation than its column", "without COLLATE"),
    "a key that may be NULL": (lambda seed: key_of(seed, not_null=False), "fault", "key column name may be NULL",
                               "SET NOT NULL"),
    "no right to update": (lambda seed: (key_of(seed), seed.as_role(*ALL_RIGHTS, "SELECT ON public.target")), "fault",
                           "may not be merged into", "GRANT"),
    "keys in several partitions": (lambda seed: (key_of(seed), seed.records(GOOD % 1, GOOD % 2, partitions=2)),
                                   "warning", "do not determine the table's key (name)", "as its own"),
    # The topics.
    "no topic": (change("route", topic="t-nowhere"), "fault", "topic t-nowhere does not exist", "create-topic"),
    "a recreated topic": (lambda seed: seed.progress(0, topic_id="another"), "fault", "was recreated", "progress accept"),
    "a truncated topic": (lambda seed: seed.progress(1000), "fault", "was truncated at 10", "progress accept"),
    "records deleted unread": (retention, "fault", "offsets 2 to 4 were deleted", "progress accept"),
    "partitions that are gone": (lambda seed: [seed.progress(3, partition=n) for n in (0, 1, 2, 3, 9)], "warning", "knows of partition 9",
                                 "recreated"),
    "a compacted topic": (lambda seed: seed.route.update(topic=seed.make_topic(1, cleanup_policy="compact")), "warning",
                          "is compacted", "upsert"),
    # The records.
    "not JSON": (lambda seed: seed.records(GOOD % 1, b"{"), "warning", "1 of 2 records would be dead letters: not_json",
                 "fix the producer"),
    "no objects": (lambda seed: seed.records(b"[1]", b"[2]"), "fault", "2 of 2 records would be dead letters: not_object",
                   "fix the producer"),
    "tombstones": (lambda seed: seed.records(GOOD % 1, None), "warning", "no_value", "upsert"),
    "a wrong type": (lambda seed: seed.records(b'{"id":true}'), "fault", "wrong_type, column id", "type"),
    "out of range": (both(sql("ALTER TABLE public.target ALTER id TYPE smallint"),
                          lambda seed: seed.records(GOOD % 1, GOOD % 99999)), "warning", "out_of_range, column id", "wider"),
    "a missing field": (lambda seed: seed.records(GOOD % 1, b"{}"), "warning", "missing, column id", "NULL"),
    "a constraint": (sql("ALTER TABLE public.target ADD CHECK (id <> 7)"), "warning", "1 of 40 records", "constraint"),
    "a partition of the table": (both(
        sql("DROP TABLE public.target; CREATE TABLE public.target (id bigint NOT NULL, name text) PARTITION BY RANGE (id);"
            "CREATE TABLE public.low PARTITION OF public.target FOR VALUES FROM (0) TO (20)")), "fault",
        "20 of 40 records have no partition to go to, and the route would wait", "FOR VALUES FROM ('20') TO (...)"),
    "a partition of the table, as dead letters": (both(
        sql("DROP TABLE public.target; CREATE TABLE public.target (id bigint NOT NULL, name text) PARTITION BY RANGE (id);"
            "CREATE TABLE public.low PARTITION OF public.target FOR VALUES FROM (0) TO (20)"),
        change("route", on_missing_partition="dead_letter")), "warning",
        "20 of 40 records would be dead letters: 23514", "partition that is missing"),
    "a trigger with a code": (lambda seed: trigger(
        seed, "IF new.id = 3 THEN RAISE 'not three' USING ERRCODE = '42501'; END IF;"), "warning",
        "1 of 40 records would be dead letters: 42501: not three", "triggers, checks and functions"),
    "a trigger that finds nothing": (lambda seed: trigger(
        seed, "SELECT new.name INTO STRICT new.name WHERE new.id <> 3;"), "warning",
        "1 of 40 records would be dead letters: P0002", "triggers, checks and functions"),
    "a trigger": (lambda seed: trigger(seed, "IF new.id = 3 THEN RAISE 'not three'; END IF;"), "warning", "not three",
                  "triggers"),
    "a trigger without its right": (lambda seed: (
        seed.sql("CREATE TABLE public.secret (n int)"), trigger(seed, "INSERT INTO public.secret VALUES (1);"),
        seed.as_role(*ALL_RIGHTS)), "fault", "permission denied for table secret", "GRANT"),
    "a foreign key": (sql("CREATE TABLE public.p (id bigint PRIMARY KEY); INSERT INTO public.p VALUES (0), (1);"
                          "ALTER TABLE public.target ADD FOREIGN KEY (id) REFERENCES public.p DEFERRABLE INITIALLY DEFERRED"),
                      "warning", "38 of 40 records would be dead letters: 23503", "foreign key"),
    "records that come twice": (both(sql("ALTER TABLE public.target ADD PRIMARY KEY (id)"),
                                     lambda seed: seed.records(GOOD % 1, GOOD % 1)), "warning", "23505", "upsert"),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
def test_a_seeded_fault(seed: Seed, name: str, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    spoil, level, what, remedy = FAULTS[name]
    spoil(seed)
    code, found = check(seed, capfdbinary)
    matching = [f for f in found if what in f["what"] and remedy in f["remedy"]]
    assert [f["level"] for f in matching] == [level], found
    assert code == (78 if any(f["level"] == "fault" for f in found) else 0)
    if level == "warning":
        assert code == 0, found


def test_enough_of_them() -> None:
    assert len(FAULTS) >= 30


def test_nothing_wrong_and_nothing_left(seed: Seed, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    seed.tables["kafka"]["group_id"] = "kbatchd-check-test"
    seed.progress(5)
    before = seed.connection.execute("SELECT * FROM kbatchd.progress").fetchall()
    assert check(seed, capfdbinary) == (0, [])
    assert main(["check", "--config", str(seed.file())]) == 0
    assert b"no fault found" in capfdbinary.readouterr().out
    assert seed.connection.execute("SELECT * FROM kbatchd.progress").fetchall() == before
    for relation in ("public.target", "kbatchd.dead_letters", "kbatchd.batches"):
        assert seed.connection.execute(f"SELECT count(*) FROM {relation}".encode()).fetchall() == [(0,)]
    locks = """SELECT count(*) FROM pg_locks JOIN pg_database AS d ON d.oid = database
               WHERE locktype = 'advisory' AND datname = current_database()"""
    assert seed.connection.execute(locks.encode()).fetchall() == [(0,)]
    assert "kbatchd-check-test" not in group_ids(seed.bootstrap_servers)


def test_records_that_are_in_the_table_already_are_no_fault(
    seed: Seed, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    seed.sql("ALTER TABLE public.target ADD PRIMARY KEY (id)")
    seed.records(*(GOOD % n for n in range(20)))
    seed.sql("INSERT INTO public.target SELECT n, 'ok' FROM generate_series(0, 14) AS n")
    seed.progress(15)
    assert check(seed, capfdbinary) == (0, [])


def test_a_library_that_is_not_installed(
    seed: Seed, capfdbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "kbatchd.monitor.server", raising=False)
    monkeypatch.setitem(sys.modules, "uvloop", None)  # as if it were not there
    seed.tables["monitor"] = {}
    what, remedy = "needs the package uvloop", "install it with: pip install 'kbatchd[monitor]'"
    assert check(seed, capfdbinary) == (
        78,
        [{"level": "fault", "where": "monitor", "what": what, "remedy": remedy}],
    )


def test_faults_of_both_servers_and_of_a_table_at_once(seed: Seed, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    seed.sql("DROP SCHEMA kbatchd CASCADE; DROP TABLE public.target")
    seed.tables["kafka"]["bootstrap_servers"] = NOBODY
    code, found = check(seed, capfdbinary)
    assert code == 78
    assert [f["where"] for f in found] == ["kafka", "postgres", "route r"]
