"""`kbatchd produce`: what it sends, what it refuses, and what it says."""

from __future__ import annotations

import os
import pty
import stat
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import psycopg
import pytest

from tests.fix_daemon import wait_until
from tests.fix_produce import MakeProducing, Producing, failed, failures, record, written

if TYPE_CHECKING:
    from tests.fix_daemon import MakeDaemon

COUNT = 50


@pytest.mark.parametrize("suffix", [".ndjson", ".json", ".csv", ".ndjson.zst"])
def test_a_file_is_sent_and_its_failures_are_named(producing: Producing, suffix: str) -> None:
    file = producing.file(f"a{suffix}", written(suffix, range(COUNT), bad=[7, 20]))
    outcome = producing.run(file)
    assert (outcome.code, outcome.err) == (65, [])
    assert outcome.out[0] == f"{file}: 48 records acknowledged, 2 failed (see {file}.failed)"
    sent = {message.partition() or 0 for message in producing.messages()}
    assert [line.split(":")[0].strip() for line in outcome.out[1:]] == [f"{producing.topic}[{n}]" for n in sorted(sent)]
    assert producing.ids() == [number for number in range(COUNT) if number not in {7, 20}]
    refused = failures(producing.directory / f"a{suffix}.failed")
    assert [(each["record"], each["column"], each["code"]) for each in refused] == [
        (8, "id", "wrong_type"),
        (21, "id", "wrong_type"),
    ]
    assert all(each["line"] and each["reason"] and each["value"] for each in refused)


def test_values_of_json_are_the_files_own_bytes(producing: Producing) -> None:
    lines = [b'{ "id" : 1,\t"name":"\\u00e9" }', b'{"name":"b","id":2,"more":1.50}']
    producing.sends(producing.file("a.ndjson", b"\n".join(lines)))
    assert sorted(message.value() or b"" for message in producing.messages()) == sorted(lines)


def test_standard_input_is_sent_but_not_resumed(producing: Producing) -> None:
    assert "3 records acknowledged" in producing.sends("-", given=written(".ndjson", range(3)))[0]
    assert producing.ids() == [0, 1, 2]
    assert "cannot be read again" in producing.refuses("-", "--resume")


def test_a_key_field_makes_the_key(producing: Producing) -> None:
    producing.sends(producing.file("a.csv", written(".csv", range(20))), "--key-field", "name")
    assert {message.key() for message in producing.messages()} == {b"n%d" % number for number in range(20)}


def test_what_has_no_sound_key_fails(producing: Producing) -> None:
    file = producing.file("a.ndjson", record(1) + b"\n" + b'{"id":2,"name":"x","data":true}\n')
    outcome = producing.run(file, "--key-field", "data")
    assert outcome.code == 65
    assert [each["line"] for each in failures(producing.directory / "a.ndjson.failed")] == [1, 2]


def test_a_record_that_is_too_large_is_told_whose_limit_that_is(producing: Producing) -> None:
    file = producing.file("a.ndjson", b'{"id":1,"name":"%b"}' % (b"x" * 1_000_000))
    assert producing.run(file).code == 65
    [failure] = failures(producing.directory / "a.ndjson.failed")
    assert failure["reason"] == (
        "a record of 1,000,018 bytes; kbatchd's own limit as a client of Kafka is 999,488: it is raised by "
        '"message.max.bytes" in [kafka.librdkafka], and the topic\'s max.message.bytes must allow it too'
    )


def test_generated_records_are_rows_and_the_same_for_the_same_seed(
    make_producing: MakeProducing, make_daemon: MakeDaemon
) -> None:
    types = (
        "a bool, b int2, c int4, d int8 NOT NULL, e float4, f float8, g numeric, h numeric(8,3), i text, "
        "j varchar(5), k uuid, l date, m timestamp, n timestamptz, o json, p jsonb, q bytea"
    )
    producing = make_producing(f"CREATE TABLE public.sent ({types})")
    assert "200 records acknowledged" in producing.sends("--generate", "200", "--seed", "3")[0]
    first = {message.value() for message in producing.messages()}
    producing.sends("--generate", "200", "--seed", "3")
    assert {message.value() for message in producing.messages()} == first
    producing.sends("--generate", "200", "--seed", "4")
    assert len({message.value() for message in producing.messages()}) == 400
    make_daemon({"topic": producing.topic, "table": "public.sent"}).start()
    wait_until(lambda: _query(producing, "SELECT count(*) FROM public.sent") == [(600,)], 30, "the rows")
    assert _query(producing, "SELECT count(*) FROM kbatchd.dead_letters") == [(0,)]


def test_a_rate_is_kept(producing: Producing) -> None:
    began = time.monotonic()
    producing.sends("--generate", "400", "--rate", "200")
    assert time.monotonic() - began > 1.7


def test_a_progress_bar_on_a_terminal_only(producing: Producing) -> None:
    file = producing.file("a.ndjson", written(".ndjson", range(2_000)))
    ours, theirs = pty.openpty()
    arguments = ["--config", str(producing.config), "r", str(file), "--rate", "2000"]
    command = [sys.executable, "-m", "kbatchd", "produce", *arguments]
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=theirs, env={**os.environ, "TERM": "xterm", "COLUMNS": "140"}
    )
    os.close(theirs)
    drawn = b""
    try:
        while part := os.read(ours, 65_536):
            drawn += part
    except OSError:  # Linux says so at the other side's end
        pass
    os.close(ours)
    assert process.wait(60) == 0
    assert b"a.ndjson" in drawn
    assert b"2,000 records" in drawn
    assert b" MB" in drawn
    assert b"/s" in drawn


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (b"id,note\n1,x\n", "lacks name, which is NOT NULL"),
        (b"id,name,id\n1,x,2\n", "'id' is there twice"),
        (b'id,"name\n', "the header"),
    ],
)
def test_a_csv_file_without_a_sound_header_is_refused(producing: Producing, content: bytes, fault: str) -> None:
    assert fault in producing.refuses(producing.file("a.csv", content))
    assert not producing.messages()


def test_fields_of_csv_are_typed_by_their_columns(producing: Producing) -> None:
    rows = [b"id,name,note,data", b'1,"say ""hi"", twice",,"{""a"": [1.50]}"', b"2,,x,", b"x,a,b,c", b"3,a"]
    outcome = producing.run(producing.file("a.csv", b"\r\n".join(rows)))
    assert outcome.code == 65
    assert sorted(message.value() or b"" for message in producing.messages()) == [
        b'{"id":1,"name":"say \\"hi\\", twice","note":null,"data":{"a": [1.50]}}',
        b'{"id":2,"name":"","note":"x","data":null}',
    ]
    refused = failures(producing.directory / "a.csv.failed")
    assert [(each["line"], each["code"]) for each in refused] == [(4, "not_json"), (5, "wrong_width")]
    assert refused[1]["value"] == "3,a"


def test_fields_of_csv_go_where_the_route_says(make_producing: MakeProducing, make_daemon: MakeDaemon) -> None:
    columns = {"name": "who", "note": {"constant": "c"}, "at": {"field": "ts", "unit": "s"}}
    producing = make_producing(
        "CREATE TABLE public.sent (id bigint NOT NULL, name text NOT NULL, note text NOT NULL, at timestamptz)",
        keys={"columns": columns},
    )
    assert "lacks who, which is NOT NULL" in producing.refuses(producing.file("b.csv", b"id,name,ts\n1,x,\n"))
    producing.sends(producing.file("a.csv", b"id,who,ts\n1,x,1700000000\n2,y,\n"))
    assert sorted(message.value() or b"" for message in producing.messages()) == [
        b'{"id":1,"who":"x","ts":1700000000}',
        b'{"id":2,"who":"y","ts":null}',
    ]
    make_daemon({"topic": producing.topic, "table": "public.sent", "columns": columns}).start()
    rows = "SELECT id, name, note, extract(epoch FROM at)::bigint FROM public.sent ORDER BY id"
    wait_until(lambda: _query(producing, rows) == [(1, "x", "c", 1_700_000_000), (2, "y", "c", None)], 30, "the rows")


def test_what_nobody_makes_up_is_refused_at_once(make_producing: MakeProducing) -> None:
    table = "CREATE TABLE public.sent (id bigint NOT NULL, name text NOT NULL, price path NOT NULL)"
    producing = make_producing(table, keys={"columns": {"name": "id"}})
    fault = "column price is of type path, and --generate knows no values of it"
    assert fault in producing.refuses("--generate", "1")
    producing.keys = {"columns": {"name": "id", "price": {"constant": "((0,0))"}}}
    fault = "its mapping asks for more than --generate can make up: wrong_type: name: expected a string, got 1"
    assert fault in producing.refuses("--generate", "1")
    assert not producing.messages()


#: As root any will do; else it must be one of ours, and there may be none.
OTHER_GROUP = 54_321


@pytest.mark.skipif(os.getuid() != 0, reason="gives files to another group")
def test_what_failed_is_for_the_inputs_group(producing: Producing) -> None:
    """Its mode speaks of its group, and a new file has ours."""
    file = producing.file("group.ndjson", written(".ndjson", range(4), bad=[1]))
    file.chmod(0o640)
    os.chown(file, -1, OTHER_GROUP)
    assert producing.run(file).code == 65
    assert (failed(file).stat().st_gid, stat.S_IMODE(failed(file).stat().st_mode)) == (OTHER_GROUP, 0o640)
    # or, in a file that is there already and has another, that group may do nothing.
    file.write_bytes(written(".ndjson", range(8), bad=[1, 5]))
    os.chown(failed(file), -1, os.getgid())
    assert producing.run(file, "--resume").code == 65
    assert stat.S_IMODE(failed(file).stat().st_mode) == 0o600


def test_what_failed_is_for_those_who_may_read_the_input(producing: Producing) -> None:
    for mode in (0o600, 0o640, 0o644, 0o400):
        file = producing.file(f"{mode:o}.ndjson", written(".ndjson", range(4), bad=[1]))
        file.chmod(mode)
        before = os.umask(0o022)
        try:
            assert producing.run(file).code == 65
        finally:
            os.umask(before)
        assert stat.S_IMODE(failed(file).stat().st_mode) == mode

    # One failed file for several inputs is for those who may read all of them.
    files = [producing.file(f"{number}.ndjson", written(".ndjson", range(4), bad=[1])) for number in range(3)]
    for file, mode in zip(files, (0o644, 0o600, 0o664), strict=True):
        file.chmod(mode)
    shared = producing.directory / "shared"
    assert producing.run(*files, "--failed", shared).code == 65
    assert stat.S_IMODE(shared.stat().st_mode) == 0o600
    # A pipe is nobody else's either.
    assert producing.run("-", "--failed", producing.directory / "piped", given=b"no json\n").code == 65
    assert stat.S_IMODE((producing.directory / "piped").stat().st_mode) == 0o600


def test_a_file_is_not_sent_twice_by_mistake(producing: Producing) -> None:
    file = producing.file("a.ndjson", written(".ndjson", range(5)))
    producing.sends(file)
    assert "was sent already (5 records" in producing.refuses(file)
    assert "has grown since" in producing.refuses(producing.file("a.ndjson", written(".ndjson", range(6))))
    producing.sends(file, "--resume")
    assert producing.ids() == list(range(6))
    producing.sends(file, "--restart")
    assert len(producing.messages()) == 12


def test_what_cannot_be_sent_at_all_is_one_line(producing: Producing) -> None:
    assert "none.ndjson: is not there" in producing.refuses("none.ndjson")
    assert "no route" in producing.refuses("--generate", "1", route="other")
    outcome = producing.run()
    assert outcome.code == 2


def test_from_a_pipe_to_the_table(make_producing: MakeProducing, make_daemon: MakeDaemon) -> None:
    producing = make_producing()
    make_daemon({"topic": producing.topic, "table": "public.sent"}).start()
    producing.sends("-", "--format", "csv", given=written(".csv", range(30)))
    wait_until(lambda: _query(producing, "SELECT count(*) FROM public.sent") == [(30,)], 30, "the rows")
    rows = _query(producing, "SELECT id, name, note, data FROM public.sent ORDER BY id")
    assert rows == [(number, f"n{number}", None, {"a": [number]}) for number in range(30)]
    assert _query(producing, "SELECT count(*) FROM kbatchd.dead_letters") == [(0,)]


def _query(producing: Producing, statement: str) -> list[tuple[object, ...]]:
    with psycopg.connect(producing.dsn) as connection:
        return connection.execute(statement.encode()).fetchall()
