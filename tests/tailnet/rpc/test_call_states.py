"""The table of dRPC call states, walked pair by pair against a live stream."""

import pytest

from tailnet.errors import LocalProtocolError
from tailnet.rpc.call_states import TRANSITIONS, CallState, CallStep
from tailnet.rpc.drpc import DONE, PacketKind, ServerStream, encode_frame

INVOKE = encode_frame(PacketKind.INVOKE << 1 | DONE, 1, 1, b"/a/b")


def frame(kind: PacketKind, message_id: int) -> bytes:
    return encode_frame(kind << 1 | DONE, 1, message_id)


def stream_in(state: CallState) -> ServerStream:
    stream = ServerStream()
    if state is not CallState.IDLE:
        stream.receive_data(INVOKE)
    if state is CallState.SEND_CLOSED:
        stream.send_close_send()
    if state is CallState.RECEIVE_CLOSED:
        stream.receive_data(frame(PacketKind.CLOSE_SEND, 2))
    if state is CallState.ENDED:
        stream.receive_data(frame(PacketKind.CLOSE, 2))
    return stream


def take(stream: ServerStream, step: CallStep) -> None:
    if step is CallStep.INVOKE:
        stream.receive_data(encode_frame(PacketKind.INVOKE << 1 | DONE, stream.stream_id + 1, 1, b"/a/b"))
    elif step is CallStep.SEND_CLOSE:
        stream.send_close_send()
    elif step is CallStep.RECEIVE_CLOSE:
        stream.receive_data(frame(PacketKind.CLOSE_SEND, 3))
    else:
        stream.send_close()


def state_of(stream: ServerStream) -> CallState:
    """What the two sides can observe: may we send, is a message handed out?"""
    hears = bool(stream.receive_data(encode_frame(PacketKind.MESSAGE << 1 | DONE, stream.stream_id, 99, b"?")))
    speaks = True
    try:
        stream.send_message(b"!")
    except LocalProtocolError:
        speaks = False
    return {
        (True, True): CallState.OPEN,
        (True, False): CallState.SEND_CLOSED,
        (False, True): CallState.RECEIVE_CLOSED,
        (False, False): CallState.ENDED,
    }[hears, speaks]


@pytest.mark.parametrize("state", list(CallState)[1:], ids=lambda state: state.name)
def test_the_probe_tells_the_states_apart(state: CallState) -> None:
    assert state_of(stream_in(state)) is state


@pytest.mark.parametrize("step", CallStep, ids=lambda step: step.name)
@pytest.mark.parametrize("state", CallState, ids=lambda state: state.name)
def test_every_pair(state: CallState, step: CallStep) -> None:
    stream = stream_in(state)
    after = TRANSITIONS.get((state, step))
    if step is CallStep.INVOKE:
        # A higher call number is a new call in every state; where the table has no such step the old one is
        # cancelled first.
        take(stream, step)
        assert state_of(stream) is CallState.OPEN
    elif after is not None:
        take(stream, step)
        assert state_of(stream) is after
    elif step is CallStep.RECEIVE_CLOSE:
        if state is not CallState.IDLE:  # before a call every packet is a fault, see test_drpc.py
            take(stream, step)
            assert state_of(stream) is state
    else:
        with pytest.raises(LocalProtocolError, match=state.value):
            take(stream, step)
        if state is not CallState.IDLE:
            assert state_of(stream) is state


def test_every_live_state_can_end() -> None:
    live = set(CallState) - {CallState.IDLE, CallState.ENDED}
    assert {state for state in live if TRANSITIONS[state, CallStep.END] is CallState.ENDED} == live
