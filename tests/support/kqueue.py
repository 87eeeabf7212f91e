"""A stand-in for kqueue where the system has none: the module `select` with its words, served by epoll.

One filter of one descriptor is added and deleted at a time, as kqueue has it; deleting what was not added is an error.
"""

import errno
import select
from collections.abc import Sequence
from types import SimpleNamespace
from typing import TYPE_CHECKING, NamedTuple

from derp.transport import poller

if TYPE_CHECKING:
    import pytest

KQ_FILTER_READ, KQ_FILTER_WRITE = -1, -2
KQ_EV_ADD, KQ_EV_DELETE, KQ_EV_EOF = 1, 2, 0x8000
_ENDED = select.EPOLLRDHUP | select.EPOLLHUP | select.EPOLLERR
_MASKS = {KQ_FILTER_READ: select.EPOLLIN | select.EPOLLRDHUP, KQ_FILTER_WRITE: select.EPOLLOUT}


class Kevent(NamedTuple):
    ident: int
    filter: int
    flags: int


class Kqueue:
    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._asked: dict[int, set[int]] = {}

    @property
    def closed(self) -> bool:
        return self._epoll.closed

    def fileno(self) -> int:
        return self._epoll.fileno()

    def close(self) -> None:
        self._epoll.close()

    def control(self, changes: Sequence[Kevent] | None, most: int, seconds: float | None = None) -> list[Kevent]:
        for change in changes or ():
            self._change(change)
        if not most:
            return []
        events = []
        for fd, mask in self._epoll.poll(-1 if seconds is None else seconds, most):
            for what in sorted(self._asked[fd], reverse=True):
                # the end of a connection makes both of them ready
                if mask & (_MASKS[what] | select.EPOLLHUP | select.EPOLLERR):
                    events.append(Kevent(fd, what, KQ_EV_ADD | (KQ_EV_EOF if mask & _ENDED else 0)))
        return events[:most]

    def _change(self, change: Kevent) -> None:
        asked = self._asked.setdefault(change.ident, set())
        was_known = bool(asked)
        if change.flags == KQ_EV_ADD:
            asked.add(change.filter)
        elif change.filter in asked:
            asked.remove(change.filter)
        else:
            raise OSError(errno.ENOENT, "no such filter")
        mask = sum(_MASKS[what] for what in asked)
        if not asked:
            del self._asked[change.ident]
            self._epoll.unregister(change.ident)
        elif was_known:
            self._epoll.modify(change.ident, mask)
        else:
            self._epoll.register(change.ident, mask)


def stand_in() -> SimpleNamespace:
    """What `import select` gives on a system with kqueue and without epoll."""
    return SimpleNamespace(
        kqueue=Kqueue,
        kevent=Kevent,
        poll=select.poll,
        KQ_FILTER_READ=KQ_FILTER_READ,
        KQ_FILTER_WRITE=KQ_FILTER_WRITE,
        KQ_EV_ADD=KQ_EV_ADD,
        KQ_EV_DELETE=KQ_EV_DELETE,
        KQ_EV_EOF=KQ_EV_EOF,
    )


def wait_with(monkeypatch: "pytest.MonkeyPatch", name: str) -> None:
    """Have reactors wait with this one for the rest of a test."""
    is_here = hasattr(select, name)
    assert is_here or name == "kqueue", f"this system has no {name}"
    monkeypatch.setattr(poller, "select", select if is_here else stand_in())
    monkeypatch.setenv(poller.ENVIRONMENT, name)
