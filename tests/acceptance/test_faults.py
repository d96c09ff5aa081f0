"""Whatever fails beside the transaction, nothing is lost, doubled or confirmed in silence (tests/faults)."""

from __future__ import annotations

import logging
import os
import random
import time

import pytest

from tests.faults.scenarios import SCENARIOS
from tests.fix_faults import MakeStage

log = logging.getLogger(__name__)

SOAK_SECONDS = 600.0

SHORT = [name for name, scenario in SCENARIOS.items() if scenario.short]


@pytest.mark.parametrize("name", SHORT)
def test_nothing_is_lost_doubled_or_confirmed_in_silence(make_stage: MakeStage, name: str) -> None:
    scenario = SCENARIOS[name]
    scenario.run(make_stage(of_two=scenario.of_two))


@pytest.mark.soak
def test_ten_minutes_of_all_scenarios(make_stage: MakeStage) -> None:
    """In an order of the seed's, which is printed: KBATCHD_SEED=... gives the same one again."""
    seed = int(os.environ.get("KBATCHD_SEED", random.SystemRandom().randrange(2**32)))
    log.warning("KBATCHD_SEED=%d", seed)
    random.seed(seed)
    names = [name for name, scenario in SCENARIOS.items() if not scenario.of_two]
    deadline = time.monotonic() + SOAK_SECONDS
    while time.monotonic() < deadline:
        name = random.choice(names)
        log.warning(name)
        stage = make_stage()
        SCENARIOS[name].run(stage)
        stage.clear()


@pytest.mark.soak
@pytest.mark.parametrize("name", [name for name, scenario in SCENARIOS.items() if scenario.of_two])
def test_two_brokers(make_stage: MakeStage, name: str) -> None:
    SCENARIOS[name].run(make_stage(of_two=True))
