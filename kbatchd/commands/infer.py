"""`kbatchd infer`: a table for the records of a topic, and its route: `infer | psql`, and the daemon can start."""

from __future__ import annotations

import argparse

from kbatchd import log
from kbatchd.commands import print_as_utf8
from kbatchd.config import load_kafka
from kbatchd.errors import EX_OK, ConfigError
from kbatchd.kafka import excerpt, topics
from kbatchd.shapes.inference import infer
from kbatchd.shapes.table_text import check_name, commented, create_table, route, table_of_topic


def run(arguments: argparse.Namespace) -> int:
    """Read a sample, and print what was made of it."""
    if arguments.config is None:
        arguments.parser.error("--config FILE is required")
    log.setup("error", "kbatchd")
    topic = arguments.topic
    table = table_of_topic(topic) if arguments.table is None else arguments.table
    check_name(table)
    kafka = load_kafka(arguments.config)
    admin = topics.make_admin(kafka)
    description = topics.describe(admin, [topic])[topic]
    if description is None:
        raise ConfigError(f"topic {topic} does not exist; name one that has records")
    marks = excerpt.marks(admin, description, topics.REQUEST_TIMEOUT_SECONDS)
    records = excerpt.read(kafka, marks.known or marks.all(), arguments.records)
    inferred = infer([record.value() for record in records])
    if not inferred.columns:
        what = f"none of its {len(records):,} newest records is a JSON object with fields" if records else "is empty"
        raise ConfigError(f"topic {topic}: {what}; no table can be made of it")
    print_as_utf8()
    if arguments.route:
        print(route(topic, table, inferred.columns), end="")
        return EX_OK
    count = f"the {len(records):,} newest records" if len(records) > 1 else "one record"
    print(f"-- Made by `kbatchd infer` from {count} of topic {topic}. Look it through: a sample proves little.")
    print(create_table(inferred, table), end="")
    print(f"\n-- The route for the file:\n--\n{commented(route(topic, table, inferred.columns))}", end="")
    return EX_OK
