"""All scenarios, by name: what runs in every test, what runs for minutes, and what a planted defect is found by."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from tests.faults import answered, moved, recreated, torn, unanswered
from tests.faults.kafka_wire import Api
from tests.faults.matrix import perform, row_of
from tests.faults.oracle import Unbalanced

if TYPE_CHECKING:
    from tests.faults.stage import Stage

Moment = Callable[["Stage", Api, str], None]

#: Of the statements of a flush, where not all are tried.
SOME = 2


@dataclass(frozen=True, slots=True)
class Scenario:
    """What is done to a stage, and the stage that it wants."""

    run: Callable[[Stage], None]
    #: In `make test`, too: one of each kind, two minutes together. The elections of there are in test_truncation.py.
    short: bool = False
    #: Two brokers, and topics with two replicas.
    of_two: bool = False


def _some_statements(stage: Stage, *, behind: bool) -> None:
    """Let PostgreSQL die at some statements of a flush, and at its COMMIT."""
    daemon, statements = torn.statements_of_a_flush(stage)
    for text in {*random.sample(statements, SOME), "COMMIT"}:
        torn.the_server_dies_at(stage, daemon, text, behind=behind)


def _each_statement(stage: Stage, *, behind: bool) -> None:
    daemon, statements = torn.statements_of_a_flush(stage)
    for text in statements:
        torn.the_server_dies_at(stage, daemon, text, behind=behind)


def _each_session(stage: Stage) -> None:
    """Break the session before each statement of a flush, or behind it."""
    daemon, statements = torn.statements_of_a_flush(stage)
    for text in statements:
        torn.the_session_breaks_at(stage, daemon, text, behind=random.random() < 0.5)


def _of_kind(moment: Moment, kind: Api, way: str) -> Callable[[Stage], None]:
    return lambda stage: moment(stage, kind, way)


#: When Kafka does not answer, and which kinds of requests there are then.
_MOMENTS: dict[str, tuple[Moment, tuple[Api, ...]]] = {
    "a first start": (unanswered.at_a_first_start, unanswered.KINDS),
    "a restart": (
        unanswered.at_a_restart,
        (Api.METADATA, Api.FETCH, Api.FIND_COORDINATOR, Api.OFFSET_COMMIT),
    ),
    "a claim": (unanswered.at_a_claim, (Api.METADATA, Api.FETCH, Api.OFFSET_COMMIT)),
    "accept": (unanswered.at_accept, (Api.LIST_OFFSETS, Api.METADATA)),
    "a reload": (unanswered.at_a_reload_with_a_new_route, unanswered.KINDS),
    "a rebalance": (
        unanswered.at_a_rebalance,
        (Api.METADATA, Api.FETCH, Api.FIND_COORDINATOR, Api.OFFSET_COMMIT),
    ),
}

_UNANSWERED = {
    f"{name}: {kind.name} {way}": Scenario(_of_kind(moment, kind, way))
    for name, (moment, kinds) in _MOMENTS.items()
    for kind in kinds
    for way in unanswered.WAYS
}


def _row(fault: str, times: int) -> Callable[[Stage], None]:
    """Play a row of the matrix so often."""

    def play(stage: Stage) -> None:
        outcome = perform(row_of(fault), stage, times)
        if outcome.faults:
            raise Unbalanced("; ".join(map(str, outcome.faults)))

    return play


_OTHERS = {
    "a worker is killed": Scenario(_row("a worker is killed", 10)),
    "a session is cut before COMMIT": Scenario(_row("the session is cut before COMMIT", 5)),
    "one stale answer at accept": Scenario(unanswered.one_stale_answer_at_accept),
    "a byte altered on the way": Scenario(unanswered.a_byte_altered_on_the_way, short=True),
    "recreated while a batch is open": Scenario(recreated.while_a_batch_is_open, short=True),
    "recreated, one stale answer": Scenario(recreated.with_stale_answers),
    "recreated, stale answers": Scenario(partial(recreated.with_stale_answers, answers=20)),
    "recreated, one stale answer, halted": Scenario(partial(recreated.with_stale_answers, on_gap="halt")),
    "recreated, its first records gone": Scenario(recreated.with_its_first_records_gone),
    "an unclean election": Scenario(partial(recreated.an_unclean_election, new_records=1_500), of_two=True),
    "an unclean election, halted": Scenario(
        partial(recreated.an_unclean_election, new_records=300, on_gap="halt"), of_two=True
    ),
    "an unclean election while stopped": Scenario(
        partial(recreated.an_unclean_election_while_stopped, new_records=1_500), of_two=True
    ),
    "an unclean election while stopped, shorter": Scenario(
        partial(recreated.an_unclean_election_while_stopped, new_records=300), of_two=True
    ),
    "PostgreSQL dies before some statements": Scenario(partial(_some_statements, behind=False)),
    "PostgreSQL dies behind some statements": Scenario(partial(_some_statements, behind=True), short=True),
    "PostgreSQL dies before each statement": Scenario(partial(_each_statement, behind=False)),
    "PostgreSQL dies behind each statement": Scenario(partial(_each_statement, behind=True)),
    "the session breaks at each statement": Scenario(_each_session),
    "PostgreSQL dies behind the first progress": Scenario(
        torn.the_first_progress_is_answered_and_the_server_dies, short=True
    ),
    "a row vanishes on the way": Scenario(torn.a_row_vanishes_on_the_way, short=True),
    "a row vanishes on the way, in windows": Scenario(partial(torn.a_row_vanishes_on_the_way, refused=True)),
    "a wrong tag": Scenario(torn.a_wrong_tag),
    "a merge leaves a row out": Scenario(torn.a_merge_leaves_a_row_out),
    "one partition's progress missing": Scenario(moved.one_partition_missing, short=True),
    "the pipeline renamed": Scenario(partial(moved.renamed, what="pipeline")),
    "the route renamed": Scenario(partial(moved.renamed, what="route"), short=True),
    "progress set back while a flush begins": Scenario(moved.set_back_while_a_flush_begins, short=True),
    "progress set while a flush is under way": Scenario(moved.set_while_a_flush_is_under_way, short=True),
    "a file sent again": Scenario(moved.a_file_sent_again),
    "row security switched on": Scenario(moved.row_security_switched_on, short=True),
    "ack=db, a recreated topic that halted": Scenario(answered.a_recreated_topic_that_halted),
    "ack=db, a recreated topic that was accepted": Scenario(answered.a_recreated_topic_that_was_accepted, short=True),
    "ack=db before the first progress": Scenario(answered.before_the_first_progress),
}

_SHORT_UNANSWERED = ("a first start: LIST_OFFSETS swallowed", "accept: LIST_OFFSETS swallowed")

SCENARIOS = {
    **{name: Scenario(each.run, short=name in _SHORT_UNANSWERED) for name, each in _UNANSWERED.items()},
    **_OTHERS,
}
