"""Rows: several daemons on one file, in a group or standing by; and what a daemon needs of its host runs out."""

from __future__ import annotations

import os
import resource
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from tests.faults.row import Row
from tests.faults.stage import fail_unless
from tests.fix_daemon import children

if TYPE_CHECKING:
    from tests.faults.play import Play
    from tests.faults.stage import Stage

#: Less than a worker has, so that it gets no more: what it has it keeps.
LEFT_BYTES = 1_048_576


def join(play: Play) -> None:
    play.daemons.append(play.stage.another(play.daemon).start())
    play.daemons[-1].wait_ready()


def leave(play: Play) -> None:
    fail_unless(play.daemons[-1].stop() == 0, "the daemon did not stop in good order")


def kill_one(play: Play) -> None:
    """And start it again when the others have its partitions."""
    play.daemons[-1].kill()
    play.over()
    play.again()
    play.daemons[-1].start().wait_ready()
    play.over()


def freeze_one(play: Play) -> None:
    """Until the others have its partitions; then it thaws."""
    frozen = play.daemons[-1]
    pids = [frozen.pid, *children(frozen.pid)]
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    play.over()
    play.again()
    for pid in pids:
        os.kill(pid, signal.SIGCONT)
    play.over()


def roll(play: Play) -> None:
    """Restart each, one after the other."""
    for daemon in play.daemons:
        fail_unless(daemon.stop() == 0, "the daemon did not stop in good order")
        daemon.start().wait_ready()


def kill_first(play: Play) -> None:
    """The first one is killed, the second one, which stands by, takes over; the first one stands by then."""
    play.daemon.kill()
    play.over()
    play.again()
    play.daemon.start().wait_ready()
    play.daemons.reverse()
    play.over()


def no_descriptors(play: Play) -> None:
    """Sessions are cut when the workers may open nothing more."""
    pids = play.daemon.workers()
    limits = {pid: resource.prlimit(pid, resource.RLIMIT_NOFILE) for pid in pids}
    for pid, (_, hard) in limits.items():
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (1, hard))
    play.stage.postgres_wire.cut()
    play.stage.wire.cut()
    time.sleep(2.0)
    for pid, limit in limits.items():
        if pid in play.daemon.workers():
            resource.prlimit(pid, resource.RLIMIT_NOFILE, limit)


def no_memory(play: Play) -> None:
    """The workers get no more memory than they have, while a backlog comes and their sessions are cut."""
    pids = play.daemon.workers()
    limits = {pid: resource.prlimit(pid, resource.RLIMIT_AS) for pid in pids}
    for pid, (_, hard) in limits.items():
        resource.prlimit(pid, resource.RLIMIT_AS, (LEFT_BYTES, hard))
    play.stage.postgres_wire.cut()
    play.traffic.send_more(20_000)
    time.sleep(2.0)
    for pid in set(pids) & set(play.daemon.workers()):
        resource.prlimit(pid, resource.RLIMIT_AS, limits[pid])


def have_a_clock(stage: Stage) -> None:
    """Let the daemon's clock be one that can be set."""
    file = stage.daemon().config.with_name("clock").absolute()
    file.write_text("+0")
    stage.program = ("-m", "tests.faults.jumping", str(file))


def set_clock(play: Play) -> None:
    """Set it an hour ahead, an hour back, and right again, in turn."""
    Path(play.stage.program[-1]).write_text(("+3600", "-3600", "+0")[play.times % 3])
    time.sleep(0.5)


GROUP: dict[str, dict[str, object]] = {
    "kafka": {"assignment": "group"},
    "workers": {"count": 1},
}


def _of_group(fault: str, promise: str, act: Callable[[Play], None]) -> Row:
    """Three daemons, and two partitions for each."""
    fault = f"three daemons of a group: {fault}"
    return Row(fault, promise, act, daemons=3, tables=GROUP, topic={"partitions": 6})


DAEMONS = (
    _of_group("a fourth joins", "only what moves stands still", join),
    _of_group("one leaves in good order", "its partitions move at once", leave),
    _of_group("one is killed, and started again", "its partitions move when its session is over (6 s)", kill_one),
    _of_group(
        "one is frozen, and thaws",
        "its partitions move when its session is over (6 s); what it had is not written",
        freeze_one,
    ),
    _of_group("each is restarted in turn", "its partitions move away and back", roll),
    Row("a second daemon stands by, the first is killed", "the second takes over", kill_first, 2, daemons=2),
    Row("no descriptors are left, while connections are cut", "waits, or is replaced", no_descriptors, 2),
    Row("no memory is left", "waits, or is replaced; reads again", no_memory, 2),
    Row(
        "the clock is set: an hour ahead, an hour back, and right again",
        "no timeout, linger or order depends on the time of day",
        set_clock,
        6,
        prepare=have_a_clock,
    ),
)
