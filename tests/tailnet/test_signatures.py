"""Signatures: the specification's own example, exchange of secrets, and files that hold none."""

import base64

import pytest

from tailnet.signatures import parse_secrets, sign

# The example of the Standard Webhooks specification.
SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
ID, TIMESTAMP, BODY = "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, b'{"test": 2432232314}'
SIGNATURE = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


def test_the_example_of_the_specification() -> None:
    assert sign(parse_secrets(SECRET), ID, TIMESTAMP, BODY) == SIGNATURE


@pytest.mark.parametrize(
    ("message_id", "timestamp", "body"),
    [("x", TIMESTAMP, BODY), (ID, TIMESTAMP + 1, BODY), (ID, TIMESTAMP, BODY + b" ")],
)
def test_everything_is_signed(message_id: str, timestamp: int, body: bytes) -> None:
    assert sign(parse_secrets(SECRET), message_id, timestamp, body) != SIGNATURE


def test_two_secrets_while_they_are_exchanged() -> None:
    new = "whsec_" + base64.b64encode(bytes(32)).decode()
    first, second = sign(parse_secrets(f"# new\n{new}\n\n  {SECRET}  \n"), ID, TIMESTAMP, BODY).split(" ")
    assert (first, second) == (sign([bytes(32)], ID, TIMESTAMP, BODY), SIGNATURE)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "has 0"),
        ("# nothing", "has 0"),
        ("\n".join([SECRET] * 4), "has 4"),
        (SECRET.removeprefix("whsec_"), "begins otherwise"),
        ("whsec_!!!!", "no base64"),
        ("whsec_" + base64.b64encode(b"secretsecret").decode(), "has 12"),
        ("whsec_" + base64.b64encode(bytes(65)).decode(), "has 65"),
    ],
)
def test_what_is_no_secret(text: str, why: str) -> None:
    with pytest.raises(ValueError, match=why) as refused:
        parse_secrets(text)
    assert "MfKQ" not in str(refused.value)
    assert "c2Vj" not in str(refused.value)
