"""Rows: PostgreSQL restarts, refuses, is full, or has another table or other rights than before."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

import psycopg
from psycopg.conninfo import conninfo_to_dict

from tests.faults.copies import Backup, Standby
from tests.faults.oracle import TABLE, Unbalanced
from tests.faults.row import Place, Row
from tests.fix_daemon import wait_until
from tests.fix_postgres import small_disk_of

if TYPE_CHECKING:
    from tests.faults.play import Play

#: How long something is refused.
LASTS_SECONDS = 2.0

DISK_BYTES = 16 * 1_048_576

#: What an administrator may have set for a role, for people.
SETTINGS = {
    "DateStyle": "'SQL, DMY'",
    "TimeZone": "'Asia/Kathmandu'",
    "IntervalStyle": "'sql_standard'",
    "search_path": "nowhere",
    "statement_timeout": "'20ms'",
    "lock_timeout": "'1ms'",
    "idle_session_timeout": "'100ms'",
    "lc_messages": "'C'",
    "default_transaction_isolation": "'serializable'",
}


def restart(mode: Literal["fast", "immediate"]) -> Callable[[Play], None]:
    def act(play: Play) -> None:
        assert play.stage.postgres is not None
        play.stage.postgres.stop(mode)
        play.stage.start_postgres()

    return act


def end_sessions(play: Play) -> None:
    """Let what was set for new sessions hold for the daemon's."""
    play.execute(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = '{play.role}'")


def for_a_while(set_it: str, undo: str, said: str, *, new_sessions: bool = False) -> Callable[[Play], None]:
    """Do something by SQL, see that the daemon says so, and undo it. `new_sessions`: it holds for new sessions only."""

    def act(play: Play) -> None:
        names = {"role": play.role, "table": play.oracle.table, "recreate": TABLE.format(play.oracle.table)}
        play.execute(set_it.format(**names))
        if new_sessions:
            end_sessions(play)
        play.daemon.wait_for_log(said, 20)  # once: what repeats is folded
        time.sleep(LASTS_SECONDS)
        play.execute(undo.format(**names))
        if new_sessions:
            end_sessions(play)

    return act


def lock_table(play: Play) -> None:
    with psycopg.connect(play.dsn) as blocker:
        blocker.execute(f"LOCK TABLE {play.oracle.table} IN EXCLUSIVE MODE".encode())
        time.sleep(LASTS_SECONDS)


def alter_table(play: Play) -> None:
    """Add a column, change a type and back, drop the column: each for some flushes."""
    table = play.oracle.table
    for change in ("ADD more text", "ALTER partition TYPE bigint", "ALTER partition TYPE int", "DROP more"):
        play.execute(f"ALTER TABLE {table} {change}")
        time.sleep(0.5)


def set_for_role(play: Play) -> None:
    """One setting after the other, for new sessions."""
    name = list(SETTINGS)[play.times % len(SETTINGS)]
    play.execute(f"ALTER ROLE {play.role} SET {name} = {SETTINGS[name]}")
    end_sessions(play)


def fill_disk(play: Play) -> None:
    """The table is moved to a small disk of its own, which is full then, and has room again."""
    server = play.stage.postgres
    assert server is not None
    disk = play.cleanup.enter_context(small_disk_of(server, DISK_BYTES))
    play.execute(f"CREATE TABLESPACE small LOCATION '{disk}'")
    play.cleanup.callback(play.execute, "DROP TABLESPACE small")
    play.execute(f"ALTER TABLE {play.oracle.table} SET TABLESPACE small")
    play.cleanup.callback(play.execute, f"ALTER TABLE {play.oracle.table} SET TABLESPACE pg_default")
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file:
        try:
            while file.write(bytes(65_536)):
                pass
        except OSError:
            pass
    play.daemon.wait_for_log("No space left on device", 20)
    time.sleep(LASTS_SECONDS)
    filler.unlink()


def fail_over(play: Play, *, loses: bool) -> None:
    """The primary is gone, the standby takes over under the same address. `loses`: it lacks the last commits."""
    primary = play.stage.postgres
    assert primary is not None
    standby = play.cleanup.enter_context(Standby(play.dsn))
    _be_undone(play)
    if loses:
        standby.cut_off()
        before = play.oracle.progress()
        wait_until(lambda: all(play.oracle.progress()[n] > at for n, at in before.items()), 20, "commits only here")
    else:
        play.execute("ALTER SYSTEM SET synchronous_standby_names = '*'")
        play.execute("SELECT pg_reload_conf()")
        play.cleanup.callback(_forget_standby, play)
        in_sync = "SELECT pid FROM pg_stat_replication WHERE sync_state = 'sync'"
        wait_until(lambda: play.execute(in_sync), 20, "a synchronous standby")
        time.sleep(0.5)
    seen = play.oracle.progress()
    primary.kill()
    standby.promote()
    play.lead_to(standby)
    play.over()
    stands = play.oracle.progress()
    if not loses and any(stands[number] < at for number, at in seen.items()):
        raise Unbalanced(f"the synchronous standby stands at {stands}, the primary stood at {seen}")


def restore(play: Play) -> None:
    """The server is lost, and another one is started from a backup of two seconds before."""
    server = play.stage.postgres
    assert server is not None
    backup = play.cleanup.enter_context(Backup(play.dsn))
    _be_undone(play)
    before = play.oracle.progress()
    wait_until(lambda: all(play.oracle.progress()[n] > at for n, at in before.items()), 20, "commits after the backup")
    time.sleep(LASTS_SECONDS)
    server.kill()
    play.lead_to(backup)


def _be_undone(play: Play) -> None:
    """Let the former server be the one again for the next play."""
    play.cleanup.callback(play.stage.postgres_wire.lead_to, int(str(conninfo_to_dict(play.stage.dsn)["port"])))


def _forget_standby(play: Play) -> None:
    play.stage.start_postgres()
    play.stage.execute("ALTER SYSTEM RESET synchronous_standby_names")
    play.stage.execute("SELECT pg_reload_conf()")


DURABLE = {"postgres": {"synchronous_commit": "on"}}

GONE = "BEGIN; LOCK TABLE {table}; CREATE TABLE public.saved AS TABLE {table}; DROP TABLE {table}; COMMIT"
RESTORED = """
BEGIN; {recreate}; INSERT INTO {table} OVERRIDING SYSTEM VALUE SELECT * FROM public.saved ORDER BY id;
SELECT setval(pg_get_serial_sequence('{table}', 'id'), (SELECT max(id) FROM {table}) + 1);
GRANT INSERT ON {table} TO {role}; COMMIT
"""

POSTGRES = (
    Row("PostgreSQL restarts (fast)", "waits, and goes on", restart("fast"), 3, Place.POSTGRES),
    Row("PostgreSQL restarts (immediate)", "waits, and goes on", restart("immediate"), 3, Place.POSTGRES),
    Row(
        "PostgreSQL is read-only",
        "waits, named; goes on when it is not",
        for_a_while(
            "ALTER ROLE {role} SET default_transaction_read_only = on",
            "ALTER ROLE {role} RESET default_transaction_read_only",
            "read-only transaction",
            new_sessions=True,
        ),
        2,
        Place.POSTGRES,
    ),
    Row(
        "no connection is left for its role",
        "waits, named; goes on when there is one",
        for_a_while(
            "ALTER ROLE {role} CONNECTION LIMIT 0",
            "ALTER ROLE {role} CONNECTION LIMIT -1",
            "too many connections for role",
            new_sessions=True,
        ),
        2,
        Place.POSTGRES,
    ),
    Row(
        'failover to a synchronous standby (`synchronous_commit = "on"`)',
        "goes on with the new primary, which has all; nothing goes back",
        lambda play: fail_over(play, loses=False),
        tables=DURABLE,
    ),
    Row(
        "failover to an asynchronous standby that lacks the last commits",
        "what it lacks is read again: progress is in the same database",
        lambda play: fail_over(play, loses=True),
    ),
    Row(
        "PostgreSQL is lost, and restored from an older backup",
        "what is not in the backup is read again",
        restore,
    ),
    Row("the table's disk is full, and has room again", "waits, named; goes on when there is room", fill_disk),
    Row("the table is locked for 2 s", "waits for the lock, and goes on", lock_table, 3, Place.POSTGRES),
    Row(
        "the table is dropped, and restored",
        "its route is on hold, named; goes on when the table is back with the rows it had",
        for_a_while(GONE, RESTORED, "action=aside"),
    ),
    Row(
        "the table is altered: a column comes, a type changes and changes back, the column goes",
        "what was encoded for the table as it was is not written: it is read again",
        alter_table,
        2,
    ),
    Row(
        "the right to insert is revoked, and granted again",
        "its route is on hold, named; goes on when it is granted",
        for_a_while("REVOKE INSERT ON {table} FROM {role}", "GRANT INSERT ON {table} TO {role}", "action=aside"),
        2,
        Place.POSTGRES,
    ),
    Row(
        f"settings of its role: {', '.join(SETTINGS)}",
        "change nothing",
        set_for_role,
        len(SETTINGS),
    ),
)
