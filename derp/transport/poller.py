"""Which descriptors are ready: epoll, kqueue or poll, whichever the system has.  Layer L2; the only file that asks.

The reactor waits with one of them.  They report the same masks; epoll is asked by its own method, without a call of
ours between, because that is the way of packets.
"""

import math
import os
import select
from collections.abc import Callable
from typing import Any, Final, Protocol

from derp.errors import ConfigError

READ: Final = 1
WRITE: Final = 4
FAILED: Final = 8 | 16
"""An error, or the end of both directions: reported whether it was asked for or not (kqueue does not)."""
_PEER_ENDED: Final = 0x2000  # POLLRDHUP of Linux, which other systems must not be asked for
ENDED: Final = _PEER_ENDED | FAILED
"""Or the end of what the peer sends, behind bytes that may still wait: with READ, where the system can tell."""
_READ: Final = READ | (_PEER_ENDED if hasattr(select, "POLLRDHUP") else 0)
ENVIRONMENT: Final = "REACTOR_POLLER"
"""Names one of POLLERS, to try a system's way on another."""

Ready = list[tuple[int, int]]


class Poller(Protocol):
    """A set of descriptors and what is asked of each.  Level-triggered: what stays ready is reported again."""

    name: str
    wait: Callable[[float, int], Ready]
    """Block for so many seconds at the most; (descriptor, mask) of those that are ready, about so many at the most."""

    @property
    def is_closed(self) -> bool: ...

    def add(self, fd: int) -> None:
        """Report from now on when it can be read."""
        ...

    def change(self, fd: int, *, read: bool, write: bool) -> None:
        """Report these from now on."""
        ...

    def remove(self, fd: int) -> None:
        """Report nothing.  The descriptor is still open."""
        ...

    def fileno(self) -> int | None:
        """A descriptor that can be read when one of the set is ready; None where the set has none."""
        ...

    def close(self) -> None: ...


class EpollPoller:
    """Linux."""

    name = "epoll"

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self.wait: Callable[[float, int], Ready] = self._epoll.poll

    @property
    def is_closed(self) -> bool:
        return self._epoll.closed

    def add(self, fd: int) -> None:
        self._epoll.register(fd, _READ)

    def change(self, fd: int, *, read: bool, write: bool) -> None:
        self._epoll.modify(fd, (_READ if read else 0) | (WRITE if write else 0))

    def remove(self, fd: int) -> None:
        self._epoll.unregister(fd)

    def fileno(self) -> int | None:
        return self._epoll.fileno()

    def close(self) -> None:
        self._epoll.close()


class KqueuePoller:
    """macOS and the BSDs.  A descriptor of which nothing is asked reports nothing, so the end of a connection that is
    paused is seen when it is read again."""

    name = "kqueue"

    def __init__(self) -> None:
        # Linux has no stubs for these names.
        self._select: Any = select
        self._kqueue = self._select.kqueue()
        self._asked: dict[int, int] = {}
        self.wait: Callable[[float, int], Ready] = self._wait

    @property
    def is_closed(self) -> bool:
        return bool(self._kqueue.closed)

    def add(self, fd: int) -> None:
        self._asked[fd] = 0
        self._ask(fd, READ)

    def change(self, fd: int, *, read: bool, write: bool) -> None:
        self._ask(fd, (READ if read else 0) | (WRITE if write else 0))

    def remove(self, fd: int) -> None:
        self._ask(fd, 0)
        del self._asked[fd]

    def _ask(self, fd: int, wanted: int) -> None:
        names = self._select
        changed = self._asked[fd] ^ wanted
        filters = ((READ, names.KQ_FILTER_READ), (WRITE, names.KQ_FILTER_WRITE))
        changes = [
            names.kevent(fd, what, names.KQ_EV_ADD if wanted & mask else names.KQ_EV_DELETE)
            for mask, what in filters
            if changed & mask
        ]
        if changes:
            self._kqueue.control(changes, 0)
        self._asked[fd] = wanted

    def _wait(self, seconds: float, most: int) -> Ready:
        write, ended = self._select.KQ_FILTER_WRITE, self._select.KQ_EV_EOF
        ready: dict[int, int] = {}
        for event in self._kqueue.control(None, most, seconds):
            mask = WRITE if event.filter == write else READ | _PEER_ENDED if event.flags & ended else READ
            ready[event.ident] = ready.get(event.ident, 0) | mask
        return list(ready.items())

    def fileno(self) -> int | None:
        return int(self._kqueue.fileno())

    def close(self) -> None:
        self._kqueue.close()


class PollPoller:
    """Everywhere, but each wait costs as much as there are descriptors."""

    name = "poll"

    def __init__(self) -> None:
        self._poll = select.poll()
        self.wait: Callable[[float, int], Ready] = self._wait
        self._is_closed = False

    @property
    def is_closed(self) -> bool:
        return self._is_closed

    def add(self, fd: int) -> None:
        self._poll.register(fd, _READ)

    def change(self, fd: int, *, read: bool, write: bool) -> None:
        self._poll.modify(fd, (_READ if read else 0) | (WRITE if write else 0))

    def remove(self, fd: int) -> None:
        self._poll.unregister(fd)

    def _wait(self, seconds: float, most: int) -> Ready:
        # All that are ready: it names them in the order of their coming, so the last would starve behind a bound.
        return self._poll.poll(math.ceil(seconds * 1000))

    def fileno(self) -> int | None:
        return None

    def close(self) -> None:
        self._is_closed = True


POLLERS: Final[dict[str, Callable[[], Poller]]] = {"epoll": EpollPoller, "kqueue": KqueuePoller, "poll": PollPoller}
"""The best first."""


def open_poller(name: str = "") -> Poller:
    """The one of this name; without one what the environment names, or the best that there is.  ConfigError."""
    here = [each for each in POLLERS if hasattr(select, each)]
    name = name or os.environ.get(ENVIRONMENT, "") or here[0]
    if name not in here:
        raise ConfigError(f"{ENVIRONMENT}: this system cannot wait with {name!r}: it has {', '.join(here)}")
    return POLLERS[name]()
