"""Terms are plain values; an allowance goes down."""

import math

import pytest

from derp.admission.terms import Allowance, Terms, tenant_name


def test_without_an_end_and_an_account_a_client_stays() -> None:
    assert Terms("its ticket") == Terms("its ticket", math.inf, None, False)


def test_an_allowance_goes_below_zero_with_what_came_at_once() -> None:
    allowance = Allowance(100)
    allowance.spend(60)
    allowance.spend(60)
    assert allowance.left == -20


def test_names_of_tenants() -> None:
    assert tenant_name("a.b-C_9") == "a.b-C_9"
    for wrong in ("", "-a", "a/b", "a\n", "a" * 64, "\u00e4", None, 5, ["a"]):
        with pytest.raises(ValueError, match="wants a name"):
            tenant_name(wrong)
