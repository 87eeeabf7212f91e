"""Every refusal has a status of its kind and a sentence; none says more than it should."""

import inspect

import pytest

from tailnet import refusals
from tailnet.refusals import Refused

MAKERS = [
    make
    for _, make in inspect.getmembers(refusals, inspect.isfunction)
    if make.__module__ == refusals.__name__ and make.__annotations__.get("return") in (Refused, "Refused")
]
# What genuine SDKs take as final at their first dial.
PERMANENT = {400, 404, 409, 500}


def call(make: object) -> Refused:
    assert callable(make)
    refused = make(*["x" for _ in inspect.signature(make).parameters])
    assert isinstance(refused, Refused)
    return refused


@pytest.mark.parametrize("make", MAKERS, ids=lambda make: make.__name__)
def test_statuses_and_sentences(make: object) -> None:
    refused = call(make)
    assert 400 <= refused.status < 600
    assert refused.message
    assert str(refused).startswith(f"{refused.status} {refused.message}")


def test_what_may_pass_by_itself_is_not_permanent() -> None:
    assert call(refusals.store_unreachable).status not in PERMANENT


def test_strangers_cannot_tell_missing_from_forbidden() -> None:
    assert refusals.agent_not_found().status == refusals.resource_not_found().status == 404


def test_long_origins_are_cut() -> None:
    assert len(refusals.foreign_origin("x" * 9_999, "y" * 9_999).detail) < 500
