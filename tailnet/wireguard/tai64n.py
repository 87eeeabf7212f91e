"""TAI64N time stamps of initiations (layer L1; white paper 5.1): what makes an old initiation worthless.

12 bytes big endian: 2^62 + 10 + unix seconds as u64, nanoseconds as u32, of which the low 24 bits are zero, as the
genuine implementation sends them: a finer clock would tell an observer about the machine.
"""

from typing import Final

STEP_NANOSECONDS: Final = 1 << 24
_SECOND: Final = 1_000_000_000
_BASE: Final = (1 << 62) + 10  # TAI began 10 s off; leap seconds are not counted, as genuine peers do not


def encode_tai64n(unix_nanoseconds: int) -> bytes:
    """12 bytes that compare as the times do."""
    seconds, nanoseconds = divmod(unix_nanoseconds, _SECOND)
    return (_BASE + seconds).to_bytes(8, "big") + (nanoseconds & -STEP_NANOSECONDS).to_bytes(4, "big")


def next_stamp(unix_nanoseconds: int, last: bytes) -> tuple[bytes, int]:
    """A stamp that is larger than `last` (empty: none was sent), and the time that it says.

    Two initiations within one step of 16.8 ms, or a clock that steps back, would otherwise be refused.
    """
    while (stamp := encode_tai64n(unix_nanoseconds)) <= last:
        seconds = int.from_bytes(last[:8], "big") - _BASE
        unix_nanoseconds = seconds * _SECOND + int.from_bytes(last[8:], "big") + STEP_NANOSECONDS
    return stamp, unix_nanoseconds
