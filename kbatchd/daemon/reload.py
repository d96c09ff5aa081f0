"""A reload: the file is read and checked again while the daemon runs on.

In a process of its own, which the supervisor starts: reading may take long (a password's command), the checks make
clients, and whatever fails there leaves the daemon as it is. What it has read comes back through memory that both
share. Pickled, since it comes from ourselves and nobody else can write there.
"""

from __future__ import annotations

import logging
import os
import pickle
import signal
from typing import TYPE_CHECKING

from kbatchd import config as files
from kbatchd import log as logs
from kbatchd.check.preflight import run_preflight
from kbatchd.errors import EX_OK, ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from kbatchd.config import Config
    from kbatchd.daemon.plan import Plan

log = logging.getLogger(__name__)


class FileReader:
    """Reads the daemon's file again; see the module."""

    def __init__(
        self, path: Path, config: Config, plan: Plan, make_plan: Callable[[Config, Plan | None], Plan]
    ) -> None:
        """Remember what the daemon was started with."""
        self._path = path
        self._config = config
        self._plan = plan
        self._make_plan = make_plan
        self._memory = os.memfd_create("kbatchd-reload")

    def read(self) -> int:
        """Read the file, check it as at a start, log every fault; in a child process."""
        signal.pthread_sigmask(signal.SIG_SETMASK, [])  # not blocked for a password's command, as they are for us
        logs.setup(self._config.log.level, "reload", self._config.log.format)
        try:
            config = self._load()
        except ConfigError as error:
            for fault in error.faults:
                log.error(fault, extra={"action": "check_failed"})
            return error.exit_code
        code = run_preflight(config)
        if code == EX_OK:
            os.ftruncate(self._memory, 0)
            os.pwrite(self._memory, pickle.dumps(config), 0)
        return code

    def _load(self) -> Config:
        config = files.load(self._path)
        if config.pipeline != self._config.pipeline:
            raise ConfigError(
                f'{self._path}: pipeline: was "{self._config.pipeline}" and cannot be changed by a reload: all '
                "progress is kept under it"
            )
        self._make_plan(config, None)  # may find a library missing
        return config

    def plan(self) -> Plan:
        """Return the plan of what was read, in the supervisor."""
        config: Config = pickle.loads(os.pread(self._memory, os.fstat(self._memory).st_size, 0))  # noqa: S301
        os.ftruncate(self._memory, 0)
        logs.setup(config.log.level, "supervisor", config.log.format)
        changed = files.changes(self._config, config)
        log.info("settings read", extra={"action": "settings_read", "changed": changed})
        self._config = config
        self._plan = self._make_plan(config, self._plan)
        return self._plan
