"""Every (state, input) of the table, against what RFC 9293 figure 5 and section 3.10 say."""

import pytest

from tailnet.netstack.states import MAY_RECEIVE, MAY_SEND, SYNCHRONIZED, TABLE, Fault, Input, State

# What leads elsewhere; everything else changes nothing or is the user's mistake.
ARROWS = {
    (State.CLOSED, Input.CONNECT): State.SYN_SENT,
    (State.CLOSED, Input.SYN): State.LISTEN,
    (State.LISTEN, Input.ACCEPT): State.SYN_RECEIVED,
    (State.SYN_SENT, Input.SYN_ACK): State.ESTABLISHED,
    (State.SYN_SENT, Input.SYN): State.SYN_RECEIVED,
    (State.SYN_RECEIVED, Input.SYN_ACKED): State.ESTABLISHED,
    (State.ESTABLISHED, Input.FINISH): State.FIN_WAIT_1,
    (State.ESTABLISHED, Input.FIN): State.CLOSE_WAIT,
    (State.FIN_WAIT_1, Input.FIN_ACKED): State.FIN_WAIT_2,
    (State.FIN_WAIT_1, Input.FIN): State.CLOSING,
    (State.FIN_WAIT_2, Input.FIN): State.TIME_WAIT,
    (State.FIN_WAIT_2, Input.TIME_OUT): State.CLOSED,
    (State.CLOSE_WAIT, Input.FINISH): State.LAST_ACK,
    (State.CLOSING, Input.FIN_ACKED): State.TIME_WAIT,
    (State.LAST_ACK, Input.FIN_ACKED): State.CLOSED,
    (State.TIME_WAIT, Input.TIME_OUT): State.CLOSED,
}
USERS = {Input.CONNECT, Input.ACCEPT, Input.FINISH}
FINISHED_EARLY = {State.SYN_SENT, State.SYN_RECEIVED}


@pytest.mark.parametrize("state", State)
@pytest.mark.parametrize("by", Input)
def test_every_cell(state: State, by: Input) -> None:
    cell = TABLE[state][by]
    if (state, by) in ARROWS:
        assert cell is ARROWS[state, by]
    elif by is Input.ABORT or (by is Input.RST and state is not State.TIME_WAIT):
        assert cell is State.CLOSED
    elif by in USERS and not (by is Input.FINISH and state in FINISHED_EARLY):
        assert cell is Fault.LOCAL
    else:
        assert cell is Fault.IGNORE


def test_every_state_can_be_reached_and_left() -> None:
    reached, waiting = {State.CLOSED}, [State.CLOSED]
    while waiting:
        for cell in TABLE[waiting.pop()].values():
            if isinstance(cell, State) and cell not in reached:
                reached.add(cell)
                waiting.append(cell)
    assert reached == set(State)
    for state in State:
        assert State.CLOSED in TABLE[state].values()


def test_the_groups() -> None:
    assert {State.ESTABLISHED, State.FIN_WAIT_1, State.FIN_WAIT_2} == MAY_RECEIVE
    assert {State.ESTABLISHED, State.CLOSE_WAIT} == MAY_SEND
    assert MAY_RECEIVE | MAY_SEND < SYNCHRONIZED
    assert not SYNCHRONIZED & {State.CLOSED, State.LISTEN, State.SYN_SENT, State.SYN_RECEIVED}
