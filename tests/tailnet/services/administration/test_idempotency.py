"""Keys of requests: an answer comes back for the same request of the same caller, and lies sealed meanwhile."""

import pytest

from tailnet.errors import AdministrationError, Fault
from tailnet.services.administration.idempotency import MAX_ANSWER_BYTES, Answer, IdempotencyKey
from tailnet.store.administration.answers import KeptAnswer

ANSWER = Answer(201, {"token": "hunter2hunter2"}, "an-etag")


def fault_of(key: IdempotencyKey, kept: KeptAnswer) -> Fault:
    with pytest.raises(AdministrationError) as caught:
        key.open(kept)
    return caught.value.fault


def test_the_same_request_gets_the_same_answer() -> None:
    kept = IdempotencyKey("k", b"token", b"PUT /x").seal(ANSWER)
    assert IdempotencyKey("k", b"token", b"PUT /x").open(kept) == ANSWER
    assert b"hunter2" not in kept.sealed


def test_another_request_does_not() -> None:
    kept = IdempotencyKey("k", b"token", b"PUT /x").seal(ANSWER)
    assert fault_of(IdempotencyKey("k", b"token", b"PUT /y"), kept) is Fault.KEY_REUSED


def test_keys_are_each_caller_s_own() -> None:
    assert IdempotencyKey("k", b"token", b"").digest != IdempotencyKey("k", b"other", b"").digest
    assert IdempotencyKey("k", b"token", b"").digest != IdempotencyKey("l", b"token", b"").digest


def test_who_has_the_store_cannot_open_it() -> None:
    key = IdempotencyKey("k", b"token", b"PUT /x")
    kept = key.seal(ANSWER)
    assert fault_of(IdempotencyKey("k", b"guess", b"PUT /x"), kept) is Fault.KEY_REUSED
    changed = KeptAnswer(kept.request_digest, kept.sealed[:-1] + bytes([kept.sealed[-1] ^ 1]))
    assert fault_of(key, changed) is Fault.KEY_REUSED


@pytest.mark.parametrize("text", ["", "é", "a\nb", "x" * 256])
def test_what_is_no_key(text: str) -> None:
    with pytest.raises(AdministrationError) as caught:
        IdempotencyKey(text, b"token", b"")
    assert caught.value.problems[0][0] == "Idempotency-Key"


def test_an_answer_that_is_too_large_says_what_to_do() -> None:
    with pytest.raises(AdministrationError, match="use PUT") as caught:
        IdempotencyKey("k", b"token", b"").seal(Answer(201, {"script": "x" * MAX_ANSWER_BYTES}))
    assert caught.value.fault is Fault.TOO_LARGE
