"""The error tree: one root catches it, and the code that peers act on travels with its error."""

import pytest

import derp.errors
from tailnet import errors


@pytest.mark.parametrize("name", sorted(set(errors.__all__) - {"CODE_UNIMPLEMENTED", "Fault", "StoreTrouble"}))
def test_one_except_catches_every_error(name: str) -> None:
    assert issubclass(getattr(errors, name), derp.errors.DerpError)


def test_a_silent_peer_is_a_broken_peer() -> None:
    # Drivers close on RemoteProtocolError and need no second branch for silence.
    assert issubclass(errors.PeerSilent, derp.errors.RemoteProtocolError)


def test_rpc_errors_carry_code_and_sentence() -> None:
    plain, missing = errors.RpcError("no such workspace"), errors.Unimplemented()
    assert (plain.code, str(plain)) == (0, "no such workspace")
    assert (missing.code, str(missing)) == (12, "Unimplemented (code 12)")
    assert not isinstance(plain, errors.Unimplemented)
