"""Problem details: RFC 9457's members, and a meaning for each code."""

import pytest

from tailnet.api.administration.problems import MEANINGS, PREFIX, Problem, problem, problem_of, problem_response
from tailnet.errors import AdministrationError, Fault, StoreError


def test_every_fault_has_a_status_of_its_own() -> None:
    assert {each.value for each in Fault} <= set(MEANINGS)
    statuses = [status for status, _ in MEANINGS.values()]
    assert len(set(statuses)) == len(statuses)


@pytest.mark.parametrize("code", MEANINGS)
def test_members(code: str) -> None:
    body = problem(code)
    assert body["type"] == f"{PREFIX}/problems/{code}"
    assert body["status"] == MEANINGS[code][0]
    assert body["title"]
    assert Problem.model_validate(body).code == code


def test_what_it_is_made_of() -> None:
    error = AdministrationError(Fault.CONFLICT, "something else has it", [("username", "is that of x")])
    body = problem_of(error)
    assert (body["status"], body["detail"]) == (409, "something else has it")
    assert body["errors"] == [{"field": "username", "detail": "is that of x"}]
    away = problem_of(StoreError("store /srv/tailnet.db: the disk is full"))
    assert (away["status"], away["code"]) == (503, "store_away")
    assert "/srv" not in repr(away), "where the store lies is for the log"
    response = problem_response(body, {"Retry-After": "5"})
    assert response.headers["content-type"] == "application/problem+json"
    assert (response.status_code, response.headers["retry-after"]) == (409, "5")
