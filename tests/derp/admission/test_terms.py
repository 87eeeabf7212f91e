"""Terms are plain values; an allowance goes down."""

import math

from derp.admission.terms import Allowance, Terms


def test_without_an_end_and_an_account_a_client_stays() -> None:
    assert Terms("its ticket") == Terms("its ticket", math.inf, None, False)


def test_an_allowance_goes_below_zero_with_what_came_at_once() -> None:
    allowance = Allowance(100)
    allowance.spend(60)
    allowance.spend(60)
    assert allowance.left == -20
