"""A sign counts after some patience, is forgotten after a while, and whoever does not look is not well."""

import pytest

from derp.relay.wellness import PATIENCE_SECONDS, RECOVERY_SECONDS, STALE_SECONDS, Sign, Wellness

START = 1000.0


def look(wellness: Wellness, sign: Sign, trouble: str, since: float, until: float) -> None:
    """One look a second, as the server takes it."""
    for second in range(int(since), int(until) + 1):
        wellness.note(sign, trouble, float(second))


@pytest.mark.parametrize("sign", Sign)
def test_a_sign_counts_once_it_was_bad_for_so_long(sign: Sign) -> None:
    wellness = Wellness(START)
    patience = PATIENCE_SECONDS[sign]
    if patience:
        look(wellness, sign, "broken", START, START + patience - 1)
        assert wellness.problem(START + patience - 1) is None
    look(wellness, sign, "broken", START, START + patience)
    assert wellness.problem(START + patience) == "broken"
    assert [name for name, counts in wellness.counting(START + patience).items() if counts] == [sign.value]


def test_trouble_that_comes_and_goes_does_not_count() -> None:
    wellness = Wellness(START)
    for second in range(100):
        wellness.note(Sign.PATH, "broken" if second % 3 else "", START + second)
    assert wellness.problem(START + 100) is None


def test_it_is_well_again_only_after_a_while_without_trouble() -> None:
    wellness = Wellness(START)
    look(wellness, Sign.PATH, "broken", START, START + 10)
    look(wellness, Sign.PATH, "", START + 11, START + 11 + RECOVERY_SECONDS - 1)
    assert wellness.problem(START + 11 + RECOVERY_SECONDS - 1) == "broken; well again for a moment"
    wellness.note(Sign.PATH, "broken otherwise", START + 11 + RECOVERY_SECONDS)
    assert wellness.problem(START + 11 + RECOVERY_SECONDS) == "broken otherwise"
    again = START + 12 + RECOVERY_SECONDS
    look(wellness, Sign.PATH, "", again, again + RECOVERY_SECONDS)
    assert wellness.problem(again + RECOVERY_SECONDS) is None


def test_one_sign_does_not_hide_another() -> None:
    wellness = Wellness(START)
    look(wellness, Sign.LOOP, "late", START, START + 10)
    look(wellness, Sign.CERTIFICATE, "expired", START, START + 10)
    look(wellness, Sign.LOOP, "", START + 11, START + 11 + RECOVERY_SECONDS)
    assert wellness.problem(START + 11 + RECOVERY_SECONDS) == "expired"


def test_whoever_does_not_look_is_not_well() -> None:
    wellness = Wellness(START)
    wellness.note(Sign.PATH, "", START)
    assert wellness.problem(START + STALE_SECONDS) is None
    assert wellness.problem(START + STALE_SECONDS + 1) == "this server has not looked at itself for 11 s"
    assert wellness.counting(START + STALE_SECONDS + 1)["stale"]
