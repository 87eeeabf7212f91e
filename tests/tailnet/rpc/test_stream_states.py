"""The table of yamux stream states, walked pair by pair against a live session."""

import pytest

from tailnet.errors import RemoteProtocolError
from tailnet.rpc.stream_states import TRANSITIONS, StreamState, StreamStep
from tailnet.rpc.yamux import FLAG_ACK, FLAG_FIN, FLAG_RST, FLAG_SYN, HEADER, TYPE_WINDOW_UPDATE, YamuxSession
from tests.tailnet.rpc.link import sent

FIN = HEADER.pack(TYPE_WINDOW_UPDATE | FLAG_FIN, 1, 0)
RST = HEADER.pack(TYPE_WINDOW_UPDATE | FLAG_RST, 1, 0)
PROBE = HEADER.pack(0, 1, 1) + b"x"


def session_in(state: StreamState) -> YamuxSession:
    """A server's session whose stream 1 is in the given state."""
    session = YamuxSession(server=True, now=0.0)
    session.receive_data(HEADER.pack(TYPE_WINDOW_UPDATE | FLAG_SYN, 1, 0) + PROBE)
    if state in (StreamState.LOCAL_CLOSED, StreamState.CLOSED):
        session.close_stream(1)
    if state in (StreamState.REMOTE_CLOSED, StreamState.CLOSED):
        session.receive_data(FIN)
    session.data_to_send()
    return session


def take(session: YamuxSession, step: StreamStep) -> None:
    if step is StreamStep.SEND_FIN:
        session.close_stream(1)
    else:
        session.receive_data(FIN if step is StreamStep.RECEIVE_FIN else RST)


def state_of(session: YamuxSession) -> StreamState:
    """What a peer can observe: is data still handed out, is a FIN still sent?"""
    heard = bool(session.receive_data(PROBE))
    session.data_to_send()
    session.close_stream(1)
    speaks = sent(session) == FIN
    return {
        (True, True): StreamState.OPEN,
        (True, False): StreamState.LOCAL_CLOSED,
        (False, True): StreamState.REMOTE_CLOSED,
        (False, False): StreamState.CLOSED,
    }[heard, speaks]


@pytest.mark.parametrize("state", StreamState)
def test_the_probe_tells_the_states_apart(state: StreamState) -> None:
    assert state_of(session_in(state)) is state


@pytest.mark.parametrize("step", StreamStep)
@pytest.mark.parametrize("state", StreamState)
def test_every_pair(state: StreamState, step: StreamStep) -> None:
    session = session_in(state)
    after = TRANSITIONS.get((state, step))
    if after is None and state is StreamState.REMOTE_CLOSED:
        with pytest.raises(RemoteProtocolError, match="second FIN"):
            take(session, step)
        return
    take(session, step)
    # Closing twice is no fault of the caller, and frames for a forgotten stream crossed its end: nothing moves.
    assert state_of(session) is (after or state)


def test_only_the_forgotten_state_has_no_way_out() -> None:
    assert {state for state, _ in TRANSITIONS} == set(StreamState) - {StreamState.CLOSED}


def test_an_acknowledgement_moves_nothing() -> None:
    session = YamuxSession(server=False, now=0.0)
    session.open_stream()
    session.receive_data(FIN)
    session.receive_data(HEADER.pack(TYPE_WINDOW_UPDATE | FLAG_ACK, 1, 0))
    session.data_to_send()
    assert state_of(session) is StreamState.REMOTE_CLOSED
