"""What one caller may have, what all may have, and what is remembered of those who left."""

from hypothesis import given
from hypothesis import strategies as st

from tailnet.transport.accounts import FLOOD_PENALTY_SECONDS, Account, AccountLimits, Accounts

LIMITS = AccountLimits(
    sockets=3, held_bytes=100, total_held_bytes=250, report_bytes_per_minute=6000, reports_per_minute=60
)


def opened(accounts: Accounts, key: str) -> Account:
    account = accounts.open(key, 0.0)
    assert account is not None
    return account


def test_sockets_of_one_are_bounded_and_of_another_not_touched() -> None:
    accounts = Accounts(LIMITS)
    mine = opened(accounts, "a")
    assert opened(accounts, "a") is mine is opened(accounts, "a")
    assert accounts.open("a", 0.0) is None
    assert accounts.refused_sockets == 1
    assert opened(accounts, "b") is not mine
    accounts.close(mine, 0.0)
    assert accounts.open("a", 0.0) is mine


def test_who_leaves_is_forgotten() -> None:
    accounts = Accounts(LIMITS)
    for key in "abc":
        accounts.close(opened(accounts, key), 0.0)
    assert len(accounts) == 0


def test_who_flooded_waits_a_moment_and_its_other_sockets_stay() -> None:
    accounts = Accounts(LIMITS)
    account = opened(accounts, "a")
    assert opened(accounts, "a") is account
    accounts.shut(account, 100.0)
    accounts.close(account, 100.0)
    assert accounts.open("a", 100.0 + FLOOD_PENALTY_SECONDS - 0.1) is None
    assert accounts.open("b", 100.0) is not None
    assert account.sockets == 1
    assert accounts.open("a", 100.0 + FLOOD_PENALTY_SECONDS) is account
    accounts.shut(account, 200.0)
    for _ in range(2):
        accounts.close(account, 200.0)
    assert accounts.has_idle
    accounts.forget_idle(200.0 + FLOOD_PENALTY_SECONDS)
    assert not accounts.has_idle
    assert len(accounts) == 1  # b


def test_what_was_reported_is_remembered_until_it_counts_no_more() -> None:
    accounts = Accounts(LIMITS)
    account = opened(accounts, "a")
    assert account.pay(6000, LIMITS, 0.0) == 0.0
    accounts.close(account, 1.0)
    again = opened(accounts, "a")
    assert again is account
    assert again.pay(3000, LIMITS, 1.0) == 29.0  # who dials again has no other minute
    accounts.close(again, 1.0)
    accounts.forget_idle(60.0)
    assert len(accounts) == 1
    accounts.forget_idle(91.0)
    assert len(accounts) == 0


def test_memory_of_one_and_of_all() -> None:
    accounts = Accounts(LIMITS)
    one, two, three = (opened(accounts, key) for key in "abc")
    accounts.hold(one, 100)
    assert not accounts.is_overdrawn
    accounts.hold(one, 1)
    assert (accounts.is_overdrawn, list(accounts.overdrawn)) == (True, [one])
    accounts.is_overdrawn = False
    accounts.overdrawn.clear()
    accounts.hold(one, -1)
    accounts.hold(two, 100)
    accounts.hold(three, 50)
    assert not accounts.is_overdrawn
    accounts.hold(three, 1)
    assert (accounts.is_overdrawn, list(accounts.overdrawn)) == (True, [])
    for account in (one, two, three):
        accounts.hold(account, -account.held_bytes)
    assert accounts.held_bytes == 0


def test_a_minutes_reports_are_free_and_the_rest_waits_its_turn() -> None:
    account = Account("a")
    assert [account.pay(1, LIMITS, 0.0) for _ in range(61)] == [0.0] * 60 + [1.0]
    assert account.pay(1, LIMITS, 2.0) == 0.0
    account = Account("a")
    assert account.pay(12_000, LIMITS, 0.0) == 60.0
    assert account.pay(0, LIMITS, 60.0) == 0.0


@given(st.lists(st.tuples(st.integers(0, 9000), st.floats(0, 30)), max_size=60))
def test_nobody_reports_more_than_its_rate_for_long(reports: list[tuple[int, float]]) -> None:
    """If each answer is waited for, no stretch of time has more than its share, a minute's worth and one report."""
    account, now, paid = Account("a"), 1000.0, 0
    for size, pause in reports:
        now += pause
        now += account.pay(size, LIMITS, now)
        paid += size
        assert paid <= LIMITS.report_bytes_per_minute * ((now - 1000.0) / 60.0 + 1) + 1e-6


def test_reports_without_a_socket_count_as_those_with_one() -> None:
    accounts = Accounts(LIMITS)
    account = opened(accounts, "a")
    assert account.pay(6000, LIMITS, 0.0) == 0.0
    assert accounts.pay("a", 100, 0.0, 5.0) == 1.0
    assert accounts.pay("a", 600, 0.0, 5.0) == 7.0, "refused, so it costs nothing"
    assert account.pay(0, LIMITS, 0.0) == 1.0
    assert accounts.pay("b", 100, 0.0, 5.0) == 0.0


def test_who_reports_without_sockets_is_forgotten_by_those_who_come_later() -> None:
    accounts = Accounts(LIMITS)
    for number in range(1_000):
        assert accounts.pay(number, 100, float(number), 5.0) == 0.0
    # 100 bytes are worked off in a second, and each report looks at two others.
    assert len(accounts) < 10
    assert accounts.pay("a", 6000, 2000.0, 5.0) == 0.0
    for number in range(10):
        accounts.pay(number, 10, 2030.0, 5.0)
    assert accounts.pay("a", 3100, 2030.0, 5.0) == 1.0, "what still counts is remembered"
