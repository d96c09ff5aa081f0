"""`kbatchd verify`: whether every record is where it should be, once."""

from __future__ import annotations

import argparse
import sys
import time
from typing import Any

import orjson

from kbatchd.audit import verify
from kbatchd.audit.comparison import Report, Verdict
from kbatchd.audit.verify import Audit
from kbatchd.commands import load_config, print_table, route_named
from kbatchd.config import Config
from kbatchd.errors import EX_DIFFERENT, EX_OK
from kbatchd.postgres.connection import connect, explained
from kbatchd.printable import printable
from kbatchd.schema.migrations import check_version

_COLUMNS = (
    "route", "partition", "in Kafka", "progress", "compared",
    "records", "rows", "dead letters", "passed over", "verdict",
)  # fmt: skip
_NUMBERS = frozenset({"partition", "progress", "records", "rows", "dead letters", "passed over"})
_SPARE = ("passed over", "in Kafka", "progress")


def run(arguments: argparse.Namespace) -> int:
    """Compare, and print what was found."""
    config = load_config(arguments)
    routes = [route_named(config, name) for name in dict.fromkeys(arguments.route)] or list(config.route)
    audits = []
    with connect(config.postgres, "kbatchd verify") as connection, explained():
        check_version(connection)
        for route in routes:
            with verify.snapshot(connection):
                audits.append(verify.verify(connection, config, route, arguments.since))
    reports = [report for audit in audits for report in audit.reports]
    fine = all(report.verdict in {Verdict.FINE, Verdict.UNKNOWN} for report in reports)
    if arguments.json:
        sys.stdout.buffer.write(orjson.dumps(_document(config, audits, fine=fine), option=orjson.OPT_APPEND_NEWLINE))
    else:
        _print(audits)
    return EX_OK if fine else EX_DIFFERENT


def _print(audits: list[Audit]) -> None:
    print_table(_COLUMNS, [_line(report) for audit in audits for report in audit.reports], _NUMBERS, _SPARE)
    for audit in audits:
        if not audit.reports:
            print(printable(f"route {audit.route}: there is no progress yet"))
        if audit.why_no_rows is not None:
            print(printable(f"route {audit.route}: its rows were not compared: {audit.why_no_rows}"))
        for report in audit.reports:
            for text in report.lines():
                print(printable(f"{report.route}: {report.partition}: {text}"))


def _line(report: Report) -> list[str]:
    values = (
        report.route,
        report.partition.number,
        None if report.start is None else f"{report.start}-{report.end}",
        report.next_offset,
        None if report.compared is None else f"{report.compared[0]}-{report.compared[1]}",
        report.records,
        report.rows,
        report.dead_letters,
        sum(end - first for first, end in report.passed),
        report.verdict,
    )
    return ["-" if value is None else str(value) for value in values]


def _document(config: Config, audits: list[Audit], *, fine: bool) -> dict[str, Any]:
    return {
        "pipeline": config.pipeline,
        "at": time.time(),
        "fine": fine,
        "routes": [
            {
                "route": audit.route,
                "rows_compared": audit.why_no_rows is None,
                "why_no_rows": audit.why_no_rows,
                "partitions": [_partition(report) for report in audit.reports],
            }
            for audit in audits
        ],
    }


def _partition(report: Report) -> dict[str, Any]:
    return {
        "topic": report.partition.topic,
        "partition": report.partition.number,
        "verdict": str(report.verdict),
        "start": report.start,
        "end": report.end,
        "next_offset": report.next_offset,
        "compared": report.compared,
        "records": report.records,
        "rows": report.rows,
        "dead_letters": report.dead_letters,
        "passed_over": report.passed,
        "missing": report.missing,
        "doubled": report.doubled,
        "lost": report.lost,
        "twice": report.twice,
        "unknown": report.unknown,
    }
