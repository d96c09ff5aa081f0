"""The harness is judged: with a mechanism taken out of the daemon, the scenario that is for it must fail.

The same scenario passes with the honest daemon: test_faults.py has them all.
"""

from __future__ import annotations

import time

import pytest

from tests.faults.defects import DEFECTS
from tests.faults.oracle import Unbalanced
from tests.faults.scenarios import SCENARIOS
from tests.fix_faults import MakeStage

#: A defect is found within this time.
FOUND_SECONDS = 120.0


@pytest.mark.soak
@pytest.mark.parametrize("name", DEFECTS)
def test_a_planted_defect_is_found(make_stage: MakeStage, name: str) -> None:
    scenario = SCENARIOS[DEFECTS[name].scenario]
    stage = make_stage(of_two=scenario.of_two, program=("-m", "tests.faults.planted", name))
    began = time.monotonic()
    with pytest.raises(Unbalanced):
        scenario.run(stage)
    assert time.monotonic() - began < FOUND_SECONDS
