"""The DERP targets can find something; test_targets.py runs them."""

from typing import Any

import pytest

from derp.protocol import frames, messages, stun, websocket
from derp.relay import inbound
from tests.derp.relay import world
from tests.fuzz import laws
from tests.fuzz.derp_targets import TARGETS


def finds(name: str) -> bool:
    return laws.finds(*TARGETS[name], 3000)


def test_a_forgotten_length_check_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(
        messages._FROM_CLIENT, frames.FrameType.NOTE_PREFERRED, lambda payload: messages.NotePreferred(payload[0] != 0)
    )
    assert finds("messages")


def test_a_forgotten_attribute_bound_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stun, "_address", lambda value: stun._ADDRESS.unpack_from(value))
    assert finds("stun")


def test_a_mask_that_is_not_turned_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    original = websocket._xor
    monkeypatch.setattr(websocket, "_xor", lambda payload, mask: original(payload, b"\x01\x02\x03\x04"))
    assert finds("websocket")


def test_a_limit_that_is_not_kept_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def reads_on(self: frames.FrameReader, data: bytes) -> list[tuple[int, memoryview]]:
        return [(data[0], memoryview(data)[5:])] if len(data) > 5 else []

    monkeypatch.setattr(frames.FrameReader, "receive_data", reads_on)
    assert finds("frames")


def test_an_unfinished_frame_that_is_forgotten_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def forgets(buffer: bytearray, view: memoryview, at: int, end: int, *others: Any) -> int:
        inbound.handle_frames(buffer, view, at, end, *others)
        return end

    monkeypatch.setattr(world, "handle_frames", forgets)
    assert finds("relay")
