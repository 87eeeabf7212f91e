"""Which administrator is calling: by the whole token alone."""

from tailnet.auth.administrators import Administrators
from tailnet.config.admin_tokens import parse_admin_tokens
from tests.support.administration import OTHER_TOKEN, TOKEN, TOKENS


def test_who_it_is() -> None:
    administrators = Administrators(TOKENS)
    assert administrators.find(TOKEN) == "plane"
    assert administrators.find(OTHER_TOKEN) == "other"
    for wrong in ("", TOKEN[:-1], TOKEN + "x", TOKEN.upper(), "plane", "\udc80" * 40, "x" * 100_000):
        assert administrators.find(wrong) is None


def test_tokens_that_are_replaced() -> None:
    administrators = Administrators(())
    assert administrators.find(TOKEN) is None
    administrators.tokens = parse_admin_tokens(f"plane:{TOKEN}")
    assert (administrators.find(TOKEN), administrators.find(OTHER_TOKEN)) == ("plane", None)
