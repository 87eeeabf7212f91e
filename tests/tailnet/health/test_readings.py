"""Readings are shown to programs as they are: every one is values that JSON has."""

import dataclasses
import json
from typing import get_args

from tailnet.health.codes import Check
from tailnet.health.readings import Measured
from tests.tailnet.health.test_judge import WELL


def test_every_check_has_one_reading() -> None:
    kinds = get_args(Measured)
    assert sorted(kind.check.value for kind in kinds) == sorted(check.value for check in Check)


def test_they_become_json() -> None:
    for reading in WELL:
        if isinstance(reading, get_args(Measured)):
            assert json.loads(json.dumps(dataclasses.asdict(reading)))
