"""A pseudo-terminal for a program: made, sized, set to the client's modes.  Layer L3.

Modes are RFC 4254 section 8.  Next hop: terminals.py, ssh_process.py.
"""

import os
import termios
from collections.abc import Mapping
from typing import Final

from tailnet.agent.ssh_connection import Size
from tailnet.agent.terminals import set_size

# Of the opcodes, what systems have differs: names are looked up, and those that are missing are passed over.
_CHARACTERS: Final = {
    1: "VINTR",
    2: "VQUIT",
    3: "VERASE",
    4: "VKILL",
    5: "VEOF",
    6: "VEOL",
    7: "VEOL2",
    8: "VSTART",
    9: "VSTOP",
    10: "VSUSP",
    11: "VDSUSP",
    12: "VREPRINT",
    13: "VWERASE",
    14: "VLNEXT",
    15: "VFLUSH",
    16: "VSWTC",
    17: "VSTATUS",
    18: "VDISCARD",
}
_INPUT, _OUTPUT, _CONTROL, _LOCAL, _INPUT_SPEED, _OUTPUT_SPEED, _CODES = range(7)
_NOT_A_CHARACTER: Final = 255
# Input, local and output modes stand together in the RFC's list.
_INPUT_FLAGS: Final = (
    "IGNPAR",
    "PARMRK",
    "INPCK",
    "ISTRIP",
    "INLCR",
    "IGNCR",
    "ICRNL",
    "IUCLC",
    "IXON",
    "IXANY",
    "IXOFF",
    "IMAXBEL",
    "IUTF8",
)
_LOCAL_FLAGS: Final = (
    "ISIG",
    "ICANON",
    "XCASE",
    "ECHO",
    "ECHOE",
    "ECHOK",
    "ECHONL",
    "NOFLSH",
    "TOSTOP",
    "IEXTEN",
    "ECHOCTL",
    "ECHOKE",
    "PENDIN",
)
_OUTPUT_FLAGS: Final = ("OPOST", "OLCUC", "ONLCR", "OCRNL", "ONOCR", "ONLRET")
_FLAGS: Final = {
    **{30 + at: (_INPUT, name) for at, name in enumerate(_INPUT_FLAGS)},
    **{50 + at: (_LOCAL, name) for at, name in enumerate(_LOCAL_FLAGS)},
    **{70 + at: (_OUTPUT, name) for at, name in enumerate(_OUTPUT_FLAGS)},
}
# Python's termios has no name for it; of Linux.
_IUTF8: Final = 0x4000


def open_terminal(size: Size, modes: Mapping[int, int]) -> tuple[int, int]:
    """Both ends, ours first, which does not block.  Raises OSError when the system has no more terminals."""
    ours, theirs = os.openpty()
    try:
        set_size(ours, size.rows, size.columns)
        set_modes(theirs, modes)
        os.set_blocking(ours, False)
    except BaseException:
        os.close(ours)
        os.close(theirs)
        raise
    return ours, theirs


def set_modes(terminal: int, modes: Mapping[int, int]) -> None:
    """What the client says of its own terminal; what this system does not know is left as it is."""
    state = termios.tcgetattr(terminal)
    codes = state[_CODES]
    for opcode, value in modes.items():
        if name := _CHARACTERS.get(opcode):
            place = getattr(termios, name, None)
            if place is not None:
                codes[place] = b"\0" if value == _NOT_A_CHARACTER else bytes([value & 0xFF])
        elif opcode in _FLAGS:
            field, name = _FLAGS[opcode]
            flag = getattr(termios, name, _IUTF8 if name == "IUTF8" else 0)
            state[field] = state[field] | flag if value else state[field] & ~flag
    termios.tcsetattr(terminal, termios.TCSANOW, state)
