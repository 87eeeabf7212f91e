"""A minute and a few bytes for keys that nobody knows, and bounds for who brings many."""

from derp.admission.terms import Terms
from derp.admission.trials import AGAIN_SECONDS, MAX_PER_ADDRESS, MAX_TRIALS, TRIAL_BYTES, TRIAL_SECONDS, Trials

WALL = 1_800_000_000.0


def key(number: int) -> bytes:
    return number.to_bytes(32, "big")


def offered(trials: Trials, number: int, now: float, group: str = "a") -> Terms | str:
    return trials.offer(key(number), group, now, WALL + now)


def test_a_key_has_one_minute_however_often_it_comes() -> None:
    trials = Trials()
    first = offered(trials, 1, 0.0)
    assert isinstance(first, Terms)
    assert first.account is not None
    assert (first.ends_at, first.account.left, first.is_trial) == (WALL + TRIAL_SECONDS, TRIAL_BYTES, True)
    again = offered(trials, 1, 40.0)
    assert isinstance(again, Terms)
    assert again.ends_at == first.ends_at
    assert "nobody announced it" in str(offered(trials, 1, TRIAL_SECONDS))
    assert "nobody announced it" in str(offered(trials, 1, TRIAL_SECONDS + AGAIN_SECONDS - 1))
    assert isinstance(offered(trials, 1, TRIAL_SECONDS + AGAIN_SECONDS), Terms)


def test_a_key_has_its_bytes_once_however_often_it_comes() -> None:
    trials = Trials()
    first = offered(trials, 1, 0.0)
    assert isinstance(first, Terms)
    assert first.account is not None
    first.account.spend(TRIAL_BYTES - 1)
    again = offered(trials, 1, 1.0)
    assert isinstance(again, Terms)
    assert again.account is not None
    assert again.account.left == 1
    again.account.spend(1)
    assert "has used up its 256 KiB" in str(offered(trials, 1, 2.0))
    assert isinstance(offered(trials, 2, 2.0), Terms)
    assert isinstance(offered(trials, 1, TRIAL_SECONDS + AGAIN_SECONDS), Terms)


def test_a_key_that_became_known_leaves_its_place() -> None:
    trials = Trials()
    for number in range(MAX_PER_ADDRESS):
        assert isinstance(offered(trials, number, 0.0), Terms)
    assert "unknown keys came from its address" in str(offered(trials, 1000, 1.0))
    assert isinstance(offered(trials, 1000, 1.0, "another address"), Terms)
    trials.settle(key(3))
    trials.settle(key(3))
    assert isinstance(offered(trials, 1001, 1.0), Terms)
    assert "unknown keys came from its address" in str(offered(trials, 1002, 1.0))
    assert isinstance(offered(trials, 1002, TRIAL_SECONDS + AGAIN_SECONDS), Terms)


def test_all_addresses_together_have_a_bound_and_nothing_stays_behind() -> None:
    trials = Trials()
    for number in range(MAX_TRIALS):
        assert isinstance(offered(trials, number, 0.0, str(number)), Terms)
    assert "4,096 unknown keys came" in str(offered(trials, 9_999, 1.0, "new"))
    assert isinstance(offered(trials, 9_999, TRIAL_SECONDS + AGAIN_SECONDS, "new"), Terms)
    assert (len(trials._begun), len(trials._per_address)) == (1, 1)
