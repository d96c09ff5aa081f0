"""Row: daemons of two versions side by side on one pipeline, with a migration while the older ones run."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from tests.faults.older import ROOT, before_the_newest_migration
from tests.faults.row import Row
from tests.faults.rows_daemons import GROUP
from tests.faults.stage import HONEST, fail_unless
from tests.fix_postgres import roles_sql

if TYPE_CHECKING:
    from tests.faults.play import Play
    from tests.faults.stage import Stage

#: How long the two versions work side by side.
TOGETHER_SECONDS = 2.0


def be_older(stage: Stage) -> None:
    """Let the daemons be of the older version, and the schema as that has made it."""
    daemon = stage.daemon(postgres={"dsn": stage.dsn})
    older = before_the_newest_migration(daemon.config.with_name("older").absolute())
    stage.program = ("-m", "tests.faults.older", str(older))
    stage.roles = older / "sql/roles.sql"
    stage.execute("DROP SCHEMA kbatchd CASCADE")
    migrated = stage.command(daemon, "migrate")
    fail_unless(migrated.returncode == 0, migrated.stderr)


def upgrade(play: Play) -> None:
    """As docs/operations.md has it: migrate, grant, and restart one daemon after the other."""
    stage = play.stage
    stage.program, stage.roles = HONEST, ROOT / "sql/roles.sql"
    owner = stage.daemon(postgres={"dsn": stage.dsn})
    migrated = stage.command(owner, "migrate")
    fail_unless(migrated.returncode == 0 and "applied" in migrated.stdout, migrated.stdout + migrated.stderr)
    stage.execute(roles_sql(play.role, play.oracle.table))
    play.over()
    play.again()
    for index, former in enumerate(play.daemons):
        fail_unless(former.stop() == 0, "the older daemon did not stop in good order")
        play.daemons[index] = stage.another(former).start()
        play.daemons[index].wait_ready()
        play.over()
        play.again()
        time.sleep(TOGETHER_SECONDS)
    play.over()


UPGRADE = (
    Row(
        "a rolling upgrade of two daemons of a group: `migrate` while both are of the version before the newest "
        "migration, then each is replaced",
        "both versions work side by side on the migrated schema",
        upgrade,
        daemons=2,
        tables=GROUP,
        topic={"partitions": 6},
        prepare=be_older,
    ),
)
