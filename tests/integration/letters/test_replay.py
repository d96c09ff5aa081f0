"""`kbatchd dead-letters`: letters chosen, shown, replayed once, and discarded, by the command as a process."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import orjson
import psycopg
import pytest
from confluent_kafka import Producer

from kbatchd.cli import main
from kbatchd.schema.migrations import migrate
from tests.fix_daemon import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from kbatchd.devstack.kafka import GivenKafka, Kafka
    from tests.fix_daemon import MakeDaemon
    from tests.fix_kafka import MakeTopic
    from tests.fix_load import Delivery


@dataclass(frozen=True)
class Desk:
    """A file, its database, and the letters in it."""

    file: Path
    connection: psycopg.Connection

    def run(self, *arguments: str, stdin: bytes | None = None) -> subprocess.CompletedProcess[bytes]:
        command = [sys.executable, "-m", "kbatchd", "dead-letters", *arguments, "--config", str(self.file)]
        return subprocess.run(command, input=stdin, capture_output=True, check=False, timeout=180)

    def ok(self, *arguments: str, stdin: bytes | None = None) -> list[str]:
        """Run one command, which must succeed in silence; return the lines it printed."""
        done = self.run(*arguments, stdin=stdin)
        assert (done.returncode, done.stderr) == (0, b"")
        return done.stdout.decode().splitlines()

    def refused(self, *arguments: str) -> list[str]:
        """Run a replay that leaves some letters behind; return what it printed."""
        done = self.run("replay", *arguments)
        assert done.returncode == 65, done.stderr
        return done.stdout.decode().splitlines()

    def letter(self, value: bytes | None, **other: Any) -> int:
        """Write a dead letter as the daemon does; return its id."""
        row = {
            "route": "r",
            "partition": 0,
            "offset": 0,
            "code": "wrong_type",
            "message": "no",
            "value": value,
            **other,
        }
        names = ", ".join(f'"{name}"' for name in row)
        places = ", ".join(f"%({name})s" for name in row)
        query = f"""INSERT INTO kbatchd.dead_letters (pipeline, topic, {names})
                    VALUES ('kbatchd', 't', {places}) RETURNING id"""
        [(number,)] = self.connection.execute(query.encode(), row).fetchall()
        assert isinstance(number, int)
        return number

    def query(self, statement: str) -> list[tuple[Any, ...]]:
        return self.connection.execute(statement.encode()).fetchall()

    def ids(self) -> list[int]:
        return [number for (number,) in self.query("SELECT id FROM public.target ORDER BY id")]

    def states(self) -> dict[int, str]:
        return dict(self.query("SELECT id, state FROM kbatchd.dead_letters"))

    def listed(self, *arguments: str) -> list[int]:
        with contextlib.redirect_stdout(io.StringIO()) as output:  # not as a process: there are many
            assert main(["dead-letters", "list", *arguments, "--config", str(self.file)]) == 0
        names, *lines = (line.split("\t") for line in output.getvalue().splitlines())
        assert names[0] == "id"
        return [int(line[0]) for line in lines]


@pytest.fixture
def desk(tmp_path: Path, database: str) -> Iterator[Desk]:
    file = tmp_path / "kbatchd.toml"
    file.write_text(
        f"""\
[kafka]
bootstrap_servers = "127.0.0.1:9"
[postgres]
dsn = "{database}"
[[route]]
name = "r"
topic = "t"
table = "public.target"
[[route]]
name = "other"
topic = "t"
table = "public.other"
"""
    )
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute("CREATE TABLE public.target (id bigint NOT NULL, name varchar(5) CHECK (name <> 'bad'))")
        connection.execute("CREATE TABLE public.other (id bigint NOT NULL)")
        yield Desk(file, connection)


class TestChoosing:
    def test_filters(self, desk: Desk) -> None:
        first = desk.letter(b"{}", code="missing", column="id", offset=10, refused_at="2026-01-01T00:00:00Z")
        second = desk.letter(b"{}", code="23514", offset=11, refused_at="2026-01-02T00:00:00Z")
        third = desk.letter(b"{}", route="other", partition=3, offset=12, refused_at="2026-01-03T00:00:00Z")
        done = desk.letter(b"{}", offset=13, state="discarded", refused_at="2026-01-04T00:00:00Z")
        assert desk.listed() == [third, first, second]  # by route, partition and offset
        for expected, *arguments in (
            ([first, second], "--route", "r"),
            ([first], "--code", "missing"),
            ([first], "--column", "id"),
            ([third], "--partition", "3"),
            ([third, second], "--offsets", "11-12"),
            ([first], "--offsets", "10"),
            ([third, second], "--since", "2026-01-02T00:00:00Z"),
            ([first], "--until", "2026-01-02T01:00:00+01:00"),
            ([second], "--route", "r", "--code", "23514"),
            ([third], str(third)),
            ([first, second, done], "--all", "--route", "r"),
            ([], "--code", "nothing"),
        ):
            assert desk.listed(*arguments) == expected

    @pytest.mark.parametrize("locale", [{"PYTHONIOENCODING": "latin-1"}, {"PYTHONUTF8": "0", "LC_ALL": "C"}])
    def test_a_locale_without_the_letters_characters(
        self, desk: Desk, locale: dict[str, str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        desk.letter('{"name":"é€😀"}'.encode(), message="é€😀 is too long", headers=None)
        for name, value in {"PYTHONCOERCECLOCALE": "0", **locale}.items():
            monkeypatch.setenv(name, value)
        for command in ("list", "show"):
            done = desk.run(command)
            assert (done.returncode, done.stderr) == (0, b"")
            shown = done.stdout.decode("latin-1").encode("latin-1", "backslashreplace").decode("unicode_escape")
            assert "é€😀 is too long" in shown
        done = desk.run("list", "--ndjson")
        assert "é€😀 is too long" in done.stdout.decode(), "a program is given UTF-8"

    def test_another_pipeline_is_not_ours(self, desk: Desk) -> None:
        desk.letter(b"{}")
        desk.connection.execute("UPDATE kbatchd.dead_letters SET pipeline = 'theirs'")
        assert desk.listed() == []
        assert desk.ok("replay") == ["no open dead letter is chosen"]

    @pytest.mark.parametrize(
        "arguments",
        [("--since", "yesterday"), ("--until", "2026-01-01T00:00:00"), ("--offsets", "1-x"), ("--offsets", "9-1")],
    )
    def test_what_is_no_filter(self, desk: Desk, arguments: tuple[str, str]) -> None:
        assert desk.run("list", *arguments).returncode == 2

    @pytest.mark.parametrize("action", [("list",), ("list", "--ndjson"), ("show",), ("replay",), ("discard", "--yes")])
    def test_an_id_that_is_none_does_not_pass_and_others_do(self, desk: Desk, action: tuple[str, ...]) -> None:
        number = desk.letter(b'{"id":1}')
        done = desk.run(*action, "99999", str(number))
        (line,) = done.stderr.decode().splitlines()
        assert re.fullmatch("kbatchd: there is no (open )?dead letter 99999 among those chosen", line)
        assert (done.returncode, bool(done.stdout)) == (78, True)
        assert (desk.states()[number] == "open") == (action[0] in {"list", "show"})

    def test_no_such_letter(self, desk: Desk) -> None:
        done = desk.run("show", "99999")
        assert (done.returncode, done.stdout) == (78, b"")
        assert done.stderr == b"kbatchd: there is no dead letter 99999 among those chosen\n"

    def test_ndjson_has_all_of_it(self, desk: Desk) -> None:
        desk.letter(
            '{"id":"é\\u0000"}'.encode(),
            key=b"\xff\x00",
            headers='[["trace", "YWJj"], ["none", null]]',
            timestamp="2026-01-01T00:00:00.123Z",
            offset=7,
        )
        desk.letter(None, offset=8)
        first, second = map(json.loads, desk.ok("list", "--ndjson"))
        assert first["value"] == '{"id":"é\\u0000"}'
        assert first["key_base64"] == "/wA="
        assert first["headers"] == [["trace", "YWJj"], ["none", None]]
        assert first["timestamp"].startswith("2026-01-01T00:00:00.123")
        assert (first["route"], first["topic"], first["partition"], first["offset"]) == ("r", "t", 0, 7)
        assert (first["code"], first["message"], first["state"]) == ("wrong_type", "no", "open")
        assert second["value"] is None
        assert second["corrected"] is None

    def test_more_than_a_page(self, desk: Desk) -> None:
        desk.connection.execute(
            """INSERT INTO kbatchd.dead_letters (pipeline, route, topic, partition, "offset", code, message, value)
               SELECT 'kbatchd', 'r', 't', n % 3, n, 'x', 'y', '{}' FROM generate_series(1, 1050) AS n"""
        )
        offsets = [(letter["partition"], letter["offset"]) for letter in map(json.loads, desk.ok("list", "--ndjson"))]
        assert offsets == sorted((n % 3, n) for n in range(1, 1051))
        done = desk.run("list")
        assert len(done.stdout.splitlines()) == 1 + 1_000
        assert b"the first 1000" in done.stderr

    def test_show(self, desk: Desk) -> None:
        number = desk.letter(b'{"id":"x"}', key=b"k", headers='[["trace", "YWJj"]]', message="one\nline")
        text = "\n".join(desk.ok("show", str(number)))
        for part in ("r", "wrong_type", "one\\nline", "trace = YWJj", '{"id":"x"}'):
            assert part in text


class TestReplay:
    def test_once(self, desk: Desk) -> None:
        letters = [desk.letter(orjson.dumps({"id": n}), offset=n) for n in range(5)]
        assert desk.ok("replay", "--route", "r") == ["route r: 5 dead letters replayed"]
        assert desk.ids() == [0, 1, 2, 3, 4]
        assert desk.states() == dict.fromkeys(letters, "replayed")
        assert desk.ok("replay", "--route", "r") == ["no open dead letter is chosen"]
        assert desk.ids() == [0, 1, 2, 3, 4]
        assert desk.query("SELECT count(*) FROM kbatchd.dead_letters WHERE settled_at IS NULL") == [(0,)]

    def test_refused_again_by_the_encoder_and_by_postgres(self, desk: Desk) -> None:
        good = desk.letter(b'{"id":1,"name":"good"}', offset=1)
        bad = desk.letter(b'{"id":2,"name":"bad"}', offset=2)
        wrong = desk.letter(b'{"id":"three"}', offset=3, code="old", message="old", column="old")
        last = desk.letter(b'{"id":4}', offset=4)
        [line] = desk.refused()
        assert line.startswith("route r: 2 dead letters replayed, 2 not; for example ")
        assert desk.ids() == [1, 4]
        assert desk.states() == {good: "replayed", bad: "open", wrong: "open", last: "replayed"}
        reasons = desk.query("SELECT id, code, \"column\" FROM kbatchd.dead_letters WHERE state = 'open' ORDER BY id")
        assert reasons == [(bad, "23514", None), (wrong, "wrong_type", "id")]
        desk.connection.execute("ALTER TABLE public.target DROP CONSTRAINT target_name_check")
        assert desk.refused()[0].startswith("route r: 1 dead letter replayed, 1 not")
        assert desk.ids() == [1, 2, 4]

    def test_a_corrected_value(self, desk: Desk, tmp_path: Path) -> None:
        number, other = desk.letter(b'{"id":"x"}'), desk.letter(b'{"id":"y"}')
        file = tmp_path / "value.json"
        file.write_bytes(b'{"id":12}')
        assert b"2 are chosen" in desk.run("replay", "--value", str(file)).stderr
        assert desk.ok("replay", str(number), "--value", str(file)) == ["route r: 1 dead letter replayed"]
        assert desk.ids() == [12]
        done = desk.run("replay", str(number), "--value", str(file))
        assert (done.returncode, desk.ids()) == (78, [12])
        # Of two ids one is settled: whose value it is nobody can tell.
        for ids in ((number, other), (other, number), (other, 4711)):
            done = desk.run("replay", *map(str, ids), "--value", "-", stdin=b'{"id":14}')
            assert (done.returncode, desk.ids()) == (78, [12])
            assert b"--value is for one open letter" in done.stderr
        assert desk.run("replay", "--route", "r", "--value", "-", stdin=b'{"id":14}').returncode == 78
        desk.ok("replay", str(other), "--value", "-", stdin=b'{"id":13}')
        assert desk.query("SELECT convert_from(value, 'UTF8'), convert_from(corrected, 'UTF8') "
                          "FROM kbatchd.dead_letters ORDER BY id") == [
            ('{"id":"x"}', '{"id":12}'), ('{"id":"y"}', '{"id":13}')]  # fmt: skip

    @pytest.mark.parametrize("value", [b'{"name":"no id"}', b'{"id":1,"name":"bad"}'])
    def test_a_corrected_value_that_is_refused_is_not_the_letters_reason(self, desk: Desk, value: bytes) -> None:
        number = desk.letter(b'{"id":"x"}', code="wrong_type", message="its own", column="id")
        done = desk.run("replay", str(number), "--value", "-", stdin=value)
        assert done.returncode == 65
        assert b"0 dead letters replayed, 1 not; for example" in done.stdout
        kept = desk.query('SELECT state, code, message, "column", corrected FROM kbatchd.dead_letters')
        assert kept == [("open", "wrong_type", "its own", "id", None)]

    def test_a_corrected_value_is_shown(self, desk: Desk) -> None:
        number = desk.letter(b'{"id":"x"}')
        other = desk.letter(b"\xff", offset=1, state="replayed", corrected=b"\xfe")
        desk.ok("replay", str(number), "--value", "-", stdin=b'{"id":\n12}')
        first, second = map(json.loads, desk.ok("list", "--all", "--ndjson"))
        assert (first["value"], first["corrected"]) == ('{"id":"x"}', '{"id":\n12}')
        assert (second["value_base64"], second["corrected_base64"]) == ("/w==", "/g==")
        assert desk.ok("show", str(number))[-3:] == ['value:        {"id":"x"}', 'corrected:    {"id":', "12}"]
        assert desk.ok("show", str(other))[-2:] == ["value_base64: /w==", "corrected_base64: /g=="]

    def test_nothing_in_a_record_is_obeyed_by_a_terminal(self, desk: Desk) -> None:
        """ESC, BEL, CR, marks of direction, lines that look like ours: shown, not done; JSON stays over its lines."""
        evil = "\x1b]0;owned\x07\x1b[2J\rid:  1\u202e\u2066\x9b31m\nstate:        replayed\u2028id:           7\x7f\x00"
        names = ("key", "value", "corrected")
        number = desk.letter(**dict.fromkeys(names, evil.encode()), message=evil.replace("\0", ""), column=evil[:-1])
        desk.connection.execute(
            "UPDATE kbatchd.dead_letters SET headers = %s::jsonb", (json.dumps([[evil[:-1], None]]),)
        )
        neat = desk.letter(b'{\r\n\t"id": 1,\n "name": "\xe2\x80\xae\x7f"\n}')
        for command in (("list",), ("show", str(number)), ("show", str(neat)), ("list", "--ndjson"), ("replay",)):
            output = desk.run(*command).stdout.decode()
            assert not {each for each in output if not each.isprintable()} - {"\n", "\t"}, command
            assert not [line for line in output.splitlines() if line.startswith("state:        replayed")]
        shown = desk.ok("show", str(number))
        assert [line.partition(":")[0] for line in shown].count("id") == 1
        assert desk.ok("show", str(neat))[-3:] == ['\t"id": 1,', ' "name": "\\u202e\\x7f"', "}"]
        assert json.loads(desk.ok("list", "--ndjson")[0])["value"] == evil

    def test_several_routes_one_of_them_gone(self, desk: Desk) -> None:
        desk.letter(b'{"id":1}')
        desk.letter(b'{"id":2}', route="other")
        lost = desk.letter(b'{"id":3}', route="former")
        done = desk.run("replay")
        assert done.returncode == 65
        assert b"route former: is not in the file" in done.stderr
        assert desk.ids() == [1]
        assert desk.query("SELECT id FROM public.other") == [(2,)]
        assert desk.states()[lost] == "open"

    def test_a_table_that_is_gone_leaves_its_letters(self, desk: Desk) -> None:
        desk.letter(b'{"id":1}')
        desk.letter(b'{"id":2}', route="other")
        desk.connection.execute("DROP TABLE public.other")
        done = desk.run("replay")
        assert (done.returncode, desk.ids()) == (65, [1])
        assert b"route other: table public.other does not exist" in done.stderr

    def test_many_at_once_from_several_sides(self, desk: Desk) -> None:
        """Two replays at the same time: each row once, whichever comes first."""
        desk.connection.execute(
            """INSERT INTO kbatchd.dead_letters (pipeline, route, topic, partition, "offset", code, message, value)
               SELECT 'kbatchd', 'r', 't', 0, n, 'x', 'y', convert_to('{"id":' || n || '}', 'UTF8')
               FROM generate_series(0, 999) AS n"""
        )
        with ThreadPoolExecutor(4) as executor:
            codes = [done.returncode for done in executor.map(lambda _: desk.run("replay"), range(4))]
        assert 0 in codes
        assert set(codes) <= {0, 70}
        if set(codes) != {0}:
            desk.ok("replay")
        assert desk.ids() == list(range(1000))

    def test_a_timestamp_that_no_time_can_hold(self, desk: Desk) -> None:
        """Kafka's is any 64-bit number: the row has what it would have had at once."""
        desk.connection.execute("ALTER TABLE public.target ADD at timestamptz, ADD ms bigint")
        mapping = '[route.columns]\nat = { source = "timestamp" }\nms = { source = "timestamp" }\n'
        desk.file.write_text(
            desk.file.read_text().replace('[[route]]\nname = "other"', mapping + '[[route]]\nname = "other"')
        )
        desk.letter(b'{"id":1,"name":"x"}', timestamp_ms=300_000_000_000_000)
        desk.letter(b'{"id":2,"name":"x"}', timestamp="2026-01-31T08:00:00Z")  # of a former version
        desk.letter(b'{"id":3,"name":"x"}', timestamp_ms=None)
        desk.ok("replay", "--route", "r")
        rows = desk.query("SELECT id, extract(year FROM at AT TIME ZONE 'UTC')::int, ms FROM public.target ORDER BY id")
        assert rows == [(1, 11476, 300_000_000_000_000), (2, 2026, 1_769_846_400_000), (3, None, None)]

    def test_a_table_altered_since_takes_its_new_columns(self, desk: Desk) -> None:
        desk.letter(b'{"id":99999999999999999999}', code="out_of_range")
        desk.refused()
        desk.connection.execute("ALTER TABLE public.target ALTER id TYPE numeric")
        desk.ok("replay")
        assert desk.query("SELECT id::text FROM public.target") == [("99999999999999999999",)]

    def test_the_daemon_s_own_letters(self, delivery: Delivery, make_daemon: MakeDaemon) -> None:
        delivery.execute(f"ALTER TABLE {delivery.table} ADD CHECK (seq <> 7)")
        daemon = make_daemon(delivery.route).start()
        daemon.wait_ready()
        delivery.send(40)
        delivery.wait_drained()
        letters = delivery.query("SELECT partition FROM kbatchd.dead_letters WHERE code = '23514'")
        assert len(letters) == delivery.partitions
        delivery.execute(
            f"ALTER TABLE {delivery.table} DROP CONSTRAINT {delivery.table.split('.')[1].strip(chr(34))}_seq_check"
        )
        done = daemon.command("dead-letters", "replay")  # beside the daemon at work
        assert (done.returncode, done.stderr) == (0, "")
        assert daemon.stop() == 0
        assert {p: sorted(seqs) for p, seqs in delivery.stored().items()} == {
            p: sorted(seq for _, seq in seqs) for p, seqs in delivery.read_topic().items()
        }


class TestUpsert:
    @pytest.fixture
    def keyed(self, desk: Desk) -> Desk:
        text = desk.file.read_text().replace('name = "r"', 'name = "r"\nmode = "upsert"\nkey = ["id"]')
        desk.file.write_text(text)
        desk.connection.execute("ALTER TABLE public.target ADD PRIMARY KEY (id)")
        desk.connection.execute("INSERT INTO public.target VALUES (1, 'newer')")
        return desk

    def route(self, topic: str) -> dict[str, object]:
        """Return a route in which a record may delete the row of its key."""
        upsert = {"topic": topic, "table": "public.target", "mode": "upsert", "key": ["id"]}
        return upsert | {"columns": {"id": {"source": "key"}}, "delete_when": {"field": "op", "equals": "d"}}

    def rows(self, desk: Desk) -> list[tuple[Any, ...]]:
        return desk.query("SELECT id, name FROM public.target ORDER BY id")

    def test_a_row_that_is_there_is_left_alone(self, keyed: Desk) -> None:
        old = keyed.letter(b'{"id":1,"name":"old"}', offset=1)
        first = keyed.letter(b'{"id":2,"name":"first"}', offset=2)
        second = keyed.letter(b'{"id":2,"name":"next"}', offset=3)
        bad = keyed.letter(b'{"id":3,"name":"bad"}', offset=4)
        assert keyed.refused()[0].startswith("route r: 1 dead letter replayed, 3 not")
        assert self.rows(keyed) == [(1, "newer"), (2, "next")]
        assert keyed.states() == {old: "open", first: "open", second: "replayed", bad: "open"}
        codes = keyed.query("SELECT code FROM kbatchd.dead_letters WHERE state = 'open' ORDER BY id")
        assert codes == [("row_exists",), ("row_exists",), ("23514",)]

    @pytest.mark.parametrize("copied_as_text", [False, True])
    def test_a_letter_that_deletes(self, keyed: Desk, copied_as_text: bool) -> None:
        if copied_as_text:
            keyed.connection.execute("ALTER TABLE public.target ADD spans int4range")
        mapping = (
            'delete_when = {field = "op", equals = "d"}\n[route.columns]\nid = {source = "key"}\n[[route]]\nname = "o'
        )
        keyed.file.write_text(keyed.file.read_text().replace('[[route]]\nname = "o', mapping))
        tombstone = keyed.letter(None, key=b"1", offset=1, code="no_value")
        said = keyed.letter(b'{"op":"d"}', key=b"1", offset=2)
        of_nothing = keyed.letter(b'{"op":"d","name":"x"}', key=b"2", offset=3)
        without_key = keyed.letter(None, key=b"x", offset=4, code="no_value")
        kept = keyed.letter(b'{"op":"u","name":"kept"}', key=b"3", offset=5)
        assert keyed.refused()[0].startswith("route r: 0 dead letters replayed, 5 not")
        assert self.rows(keyed) == [(1, "newer")]
        codes = dict(keyed.query("SELECT id, code FROM kbatchd.dead_letters WHERE state = 'open'"))
        assert codes.pop(without_key) == "wrong_type"
        # Kafka does not answer: whether the row was deleted since nobody knows.
        assert codes.pop(kept) == "row_deleted"
        assert codes == dict.fromkeys((tombstone, said, of_nothing), "row_exists")
        messages = keyed.query("SELECT DISTINCT message FROM kbatchd.dead_letters WHERE code = 'row_exists'")
        assert ["--overwrite" in message for (message,) in messages] == [True]

        assert keyed.ok("replay", "--overwrite", "--code", "row_exists") == ["route r: 3 dead letters replayed"]
        assert keyed.ok("replay", "--overwrite", "--code", "row_deleted") == ["route r: 1 dead letter replayed"]
        assert self.rows(keyed) == [(3, "kept")]

    def test_a_row_that_was_deleted_since_stays_deleted(
        self, kafka: Kafka | GivenKafka, make_topic: MakeTopic, make_daemon: MakeDaemon, database: str
    ) -> None:
        # Given: refused records of six keys, and deletes before, between and behind them.
        topic = make_topic(2)
        with psycopg.connect(database, autocommit=True) as connection:
            connection.execute("CREATE TABLE public.target (id bigint PRIMARY KEY, name text)")
            connection.execute("ALTER TABLE public.target ADD CONSTRAINT fine CHECK (name <> 'bad')")
            daemon = make_daemon(self.route(topic), batch={"linger_seconds": 0.05}).start()
            producer = Producer({"bootstrap.servers": kafka.bootstrap_servers})
            bad, deletes = b'{"name":"bad"}', b'{"op":"d"}'
            records: list[tuple[int, bytes | None]] = [
                (1, b'{"name":"first"}'), (1, bad), (1, None),  # deleted since
                (2, bad), (2, deletes),  # also where there was nothing to delete
                (3, None), (3, bad),  # deleted before: the letter is newer
                (4, bad),
                (5, bad), (5, None), (5, bad),  # the first was deleted since, the second is newer
                (6, bad), (6, None), (6, b'{"name":"newer"}'), (7, b'{"name":"other"}'),
            ]  # fmt: skip
            done = "SELECT sum(next_offset) FROM kbatchd.progress"
            for count, (number, value) in enumerate(records, 1):
                producer.produce(topic, value, key=b"%d" % number, partition=number % 2)
                assert producer.flush(30) == 0
                # Each in a batch of its own: in one batch a later record of the key would spare an earlier one.
                wait_until(lambda n=count: connection.execute(done).fetchone() == (n,), 20, "the record dealt with")  # type: ignore[misc]
            assert daemon.stop() == 0
            connection.execute("ALTER TABLE public.target DROP CONSTRAINT fine")

            # Then: what was deleted stays so, and is told of.
            assert daemon.command("dead-letters", "replay").returncode == 65
            rows = connection.execute("SELECT id, name FROM public.target ORDER BY id").fetchall()
            assert rows == [(3, "bad"), (4, "bad"), (5, "bad"), (6, "newer"), (7, "other")]
            letters = "SELECT convert_from(key, 'UTF8'), state, code FROM kbatchd.dead_letters"
            assert sorted(connection.execute(letters).fetchall()) == [
                ("1", "open", "row_deleted"), ("2", "open", "row_deleted"), ("3", "replayed", "23514"),
                ("4", "replayed", "23514"), ("5", "open", "row_deleted"), ("5", "replayed", "23514"),
                ("6", "open", "row_deleted"),
            ]  # fmt: skip
            assert daemon.command("dead-letters", "replay", "--overwrite").returncode == 0
            assert connection.execute("SELECT count(*) FROM public.target WHERE id < 3").fetchone() == (2,)

    def test_a_letter_of_a_topic_that_was_recreated_is_not_taken_for_what_stands_there_now(
        self, kafka: Kafka | GivenKafka, make_topic: MakeTopic, make_daemon: MakeDaemon, database: str
    ) -> None:
        """Its row may have been deleted in the former topic; the new one has a record of its key at its offset."""
        topic = make_topic(1)
        with psycopg.connect(database, autocommit=True) as connection:
            connection.execute("CREATE TABLE public.target (id bigint PRIMARY KEY, name text)")
            connection.execute("ALTER TABLE public.target ADD CONSTRAINT fine CHECK (name <> 'bad')")
            daemon = make_daemon(self.route(topic), batch={"linger_seconds": 0.05}).start()
            producer = Producer({"bootstrap.servers": kafka.bootstrap_servers})
            producer.produce(topic, b'{"name":"bad"}', key=b"1")
            assert producer.flush(30) == 0
            done = "SELECT sum(next_offset) FROM kbatchd.progress"
            wait_until(lambda: connection.execute(done).fetchone() == (1,), 20, "the dead letter")
            assert daemon.stop() == 0
            connection.execute("ALTER TABLE public.target DROP CONSTRAINT fine")
            connection.execute("UPDATE kbatchd.dead_letters SET topic_id = 'former'")

            assert daemon.command("dead-letters", "replay").returncode == 65
            assert connection.execute("SELECT code FROM kbatchd.dead_letters").fetchall() == [("row_deleted",)]
            connection.execute("UPDATE kbatchd.dead_letters SET topic_id = (SELECT topic_id FROM kbatchd.progress)")
            assert daemon.command("dead-letters", "replay").returncode == 0
            assert connection.execute("SELECT id, name FROM public.target").fetchall() == [(1, "bad")]

    def test_overwrite(self, keyed: Desk) -> None:
        keyed.letter(b'{"id":1,"name":"old"}', offset=1)
        keyed.letter(b'{"id":1,"name":"last"}', offset=2)
        assert keyed.ok("replay", "--overwrite") == ["route r: 2 dead letters replayed"]
        assert self.rows(keyed) == [(1, "last")]


class TestDiscard:
    def test_marked_after_yes(self, desk: Desk) -> None:
        letters = [desk.letter(b"{}", code="a"), desk.letter(b"{}", code="b")]
        assert desk.ok("discard", "--code", "a", "--yes") == ["1 dead letter discarded"]
        assert desk.states() == {letters[0]: "discarded", letters[1]: "open"}
        assert desk.ok("replay", "--code", "a") == ["no open dead letter is chosen"]
        assert desk.ok("discard", "--delete", "--yes") == ["1 dead letter deleted"]
        assert desk.states() == {letters[0]: "discarded"}

    def test_nobody_is_asked_without_a_terminal(self, desk: Desk) -> None:
        desk.letter(b"{}")
        done = desk.run("discard")
        assert done.returncode == 2
        assert b"--yes" in done.stderr
        assert set(desk.states().values()) == {"open"}

    @pytest.mark.parametrize(("answer", "state"), [(b"n\n", "open"), (b"\n", "open"), (b"yes\n", "discarded")])
    def test_somebody_is_asked(self, desk: Desk, answer: bytes, state: str) -> None:
        desk.letter(b"{}")
        ours, theirs = os.openpty()
        command = [sys.executable, "-m", "kbatchd", "dead-letters", "discard", "--config", str(desk.file)]
        with subprocess.Popen(command, stdin=theirs, stdout=subprocess.PIPE) as process:
            os.write(ours, answer)
            output, _ = process.communicate(timeout=120)
        os.close(ours)
        os.close(theirs)
        assert process.returncode == 0
        assert b"discard 1 dead letter?" in output
        assert list(desk.states().values()) == [state]


def test_the_migration_upgrades_a_schema_with_letters_in_it(empty_database: str) -> None:
    with psycopg.connect(empty_database, autocommit=True) as connection:
        migrate(connection)
        # Back to what 0001 made, with a letter of then.
        connection.execute(
            "ALTER TABLE kbatchd.dead_letters DROP COLUMN state, DROP COLUMN settled_at, DROP COLUMN corrected"
        )
        connection.execute("DELETE FROM kbatchd.migrations WHERE number = 2")
        connection.execute(
            """INSERT INTO kbatchd.dead_letters (pipeline, route, topic, partition, "offset", code, message)
               VALUES ('p', 'r', 't', 0, 0, 'x', 'y')"""
        )
        assert migrate(connection) == ["0002_dead_letters"]
        assert connection.execute("SELECT state FROM kbatchd.dead_letters").fetchall() == [("open",)]
