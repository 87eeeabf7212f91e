"""What is used of a quota, by day and month of UTC, of keys and of tenants."""

import pytest

from derp.relay import quotas as module
from derp.relay.limits import ClientLimits, Limits, Quota, TenantLimits
from derp.relay.quotas import Quotas

ONE, TWO = b"1" * 32, b"2" * 32
LIMITS = Limits(
    client=ClientLimits(quota=Quota(bytes_per_day=100, bytes_per_month=1000)),
    tenants={"a": TenantLimits(quota=Quota(bytes_per_month=150, refuses=True))},
)


@pytest.fixture
def quotas() -> Quotas:
    made = Quotas()
    made.limits = LIMITS
    return made


def text(quotas: Quotas, key: bytes, tenant: str, day: str) -> str:
    standing = quotas.standing(key, tenant, day)
    return standing.text if standing is not None else ""


def test_the_one_that_is_used_most_counts(quotas: Quotas) -> None:
    quotas.spend(ONE, "a", 90, "2026-11-29")
    assert text(quotas, ONE, "a", "2026-11-29") == (
        "this machine has used 90 % of the 100 bytes it may have relayed today (UTC)"
    )
    quotas.spend(TWO, "a", 60, "2026-11-29")
    standing = quotas.standing(TWO, "a", "2026-11-29")
    assert standing is not None
    assert (standing.is_used_up, standing.quota.refuses) == (True, True)
    assert standing.text.startswith("the tenant a of this machine has used 100 % of the 150 bytes")


def test_a_day_and_a_month_begin_anew(quotas: Quotas) -> None:
    quotas.spend(ONE, "b", 200, "2026-11-29")
    assert "today" in text(quotas, ONE, "b", "2026-11-29")
    assert text(quotas, ONE, "b", "2026-11-30").startswith("this machine has used 20 % of the 1,000 bytes")
    assert "used 0 %" in text(quotas, ONE, "b", "2026-12-01")


def test_what_was_used_before_counts_and_who_has_no_quota_has_no_account(quotas: Quotas) -> None:
    quotas.recall("2026-11-30", [(ONE, 50, 990)])
    quotas.spend(ONE, "b", 10, "2026-11-30")
    assert "used 100 % of the 1,000" in text(quotas, ONE, "b", "2026-11-30")
    quotas.limits = Limits()
    assert quotas.standing(ONE, "b", "2026-11-30") is None
    quotas.spend(TWO, "b", 10, "2026-11-30")
    assert len(quotas) == 1


def test_what_other_processes_wrote_is_recalled_and_what_was_spent_meanwhile_is_kept(quotas: Quotas) -> None:
    quotas.spend(ONE, "b", 10, "2026-11-30")
    quotas.begin_recall()
    quotas.spend(ONE, "b", 5, "2026-11-30")
    quotas.spend(b"3" * 32, "b", 7, "2026-11-30")
    quotas.recall("2026-11-30", [(ONE, 40, 400), (TWO, 50, 50)])
    assert "used 45 % of the 100" in text(quotas, ONE, "b", "2026-11-30")
    assert "used 50 % of the 100" in text(quotas, TWO, "b", "2026-11-30")
    assert "used 7 % of the 100" in text(quotas, b"3" * 32, "b", "2026-11-30")
    quotas.spend(ONE, "b", 3, "2026-12-01")
    quotas.recall("2026-11-30", [(ONE, 100, 1000)])
    assert "used 3 % of the 100" in text(quotas, ONE, "b", "2026-12-01"), "it was asked before midnight"


def test_what_the_ledger_has_forgotten_is_not_given_back(quotas: Quotas) -> None:
    """Rows beyond those of a day have no key, and a ledger may be shorter than a month."""
    quotas.recall("2026-11-29", [(ONE, 0, 900)])
    quotas.spend(ONE, "b", 40, "2026-11-30")
    quotas.begin_recall()
    quotas.recall("2026-11-30", [(ONE, 10, 60)])
    assert "used 94 % of the 1,000" in text(quotas, ONE, "b", "2026-11-30")
    quotas.limits = Limits(client=ClientLimits(quota=Quota(bytes_per_day=100)))
    assert "used 40 % of the 100" in text(quotas, ONE, "b", "2026-11-30")


def test_accounts_are_bounded_and_the_idle_ones_go_first(quotas: Quotas, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_ACCOUNTS", 2)
    for key in (ONE, TWO, ONE, b"3" * 32):
        quotas.spend(key, "b", 80, "2026-11-30")
    assert len(quotas) == 2
    assert text(quotas, ONE, "b", "2026-11-30")
    assert not text(quotas, TWO, "b", "2026-11-30")
