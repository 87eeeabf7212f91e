"""A connection to a coordinator that is made anew whenever it is lost.  Layer L3.

    link = Link(url, door, token)
    await link.run(serve)           # `serve(rpc)` for one connection after the other
What goes wrong before `serve` has called `proven` is raised; from then on only a refusal is.  Delays grow with jitter,
and are as long as the coordinator asks for.  Caller: tailnet/node/membership.py.  Next hop: rpc.py.
"""

import logging
import random
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from http import HTTPStatus
from typing import Final, TypeVar
from urllib.parse import quote

import trio

from derp.client.dial import DialOptions
from derp.client.reconnect import STABLE_SECONDS, BackOff
from derp.errors import DerpError, UpgradeRefused
from tailnet.client.coordination import read_resume_token
from tailnet.client.rpc import RpcClient, open_rpc_client
from tailnet.errors import NotAuthorised, RpcError

_log = logging.getLogger("tailnet.client")

# As genuine clients and agents do.
BACK_OFF: Final = BackOff(first_seconds=0.1, limit_seconds=10.0)
# A coordinator may ask to be left alone for a while, but not for good.
MAX_ASKED_SECONDS: Final = 60.0
# A token that a server wants refreshed more often than this is not worth the calls.
MIN_REFRESH_SECONDS: Final = 10.0
# Statuses of 400 to 499 that another try may change; all others of them are refusals.
_PASSING: Final = frozenset({HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_EARLY, HTTPStatus.TOO_MANY_REQUESTS})

E = TypeVar("E", bound=BaseException)
Serve = Callable[[RpcClient], Awaitable[None]]


class Link:
    """One peer's way to its coordinator.  `run` it once."""

    def __init__(
        self,
        url: str,
        door: str,
        token: str,
        *,
        options: DialOptions | None = None,
        back_off: BackOff = BACK_OFF,
        insists: bool = False,
    ) -> None:
        """`insists`: a refusal after the first success ends nothing, since what is in front of a coordinator may say so
        while that starts again; only a version that it does not serve does."""
        self.url = url
        self._door = door
        self._token = token
        self._options = options
        self._back_off = back_off
        self._insists = insists
        self._resume_token = ""
        self._is_proven = False
        self._attempt = trio.CancelScope()
        """A connection from its dialling on, and the wait after it."""
        self.connection_count = 0

    def proven(self) -> None:
        """The connection does what it is for: when it is lost another one is made."""
        self._is_proven = True

    def redial(self) -> None:
        """Make another connection at once, since our addresses are others: nobody else says that the one there is dead,
        and yamux's pings find out within 40 s."""
        self._attempt.cancel()

    async def run(self, serve: Serve) -> None:
        """Have connections served until the coordinator refuses: raises what it said, a DerpError."""
        failures, said = 0, ""
        while True:
            with trio.CancelScope() as self._attempt:
                began = trio.current_time()
                error = await self._connect(serve)
                if isinstance(error, UpgradeRefused) and error.status == HTTPStatus.UNAUTHORIZED and self._resume_token:
                    self._resume_token = ""  # maybe only that was refused
                    continue
                if not self._is_proven or (is_refusal(error) and not (self._insists and may_pass(error))):
                    raise error
                failures = 1 if trio.current_time() - began >= STABLE_SECONDS else failures + 1
                delay = self._back_off.delay(failures, random.random())
                if isinstance(error, UpgradeRefused):
                    delay = max(delay, min(error.retry_after_seconds, MAX_ASKED_SECONDS))
                # One line for each reason and not for each try: an outage must not fill a disk.
                level = logging.DEBUG if failures > 1 and str(error) == said else logging.WARNING
                said = str(error)
                _log.log(level, "the coordinator is lost: %s; the next try is in %.1f s", said, delay)
                await trio.sleep(delay)

    async def keep_resume_token(self, rpc: RpcClient) -> None:
        """Have a token at hand that makes the next connection the same peer; ends where the coordinator gives none."""
        while True:
            try:
                self._resume_token, refresh_seconds = await read_resume_token(rpc)
            except RpcError as error:  # those of agents need none; and the connection's end is told to others
                _log.debug("no resume token: %s", error)
                return
            await trio.sleep(max(refresh_seconds, MIN_REFRESH_SECONDS))

    async def _connect(self, serve: Serve) -> DerpError:
        """One connection to its end: why it ended."""
        door = self._door + (f"&resume_token={quote(self._resume_token, safe='')}" if self._resume_token else "")
        ended: DerpError = RpcError("the connection was not served any longer")
        try:
            async with open_rpc_client(self.url, door, self._token, options=self._options) as rpc:
                self.connection_count += 1
                if self.connection_count > 1:
                    _log.info("the coordinator is there again")
                await serve(rpc)
        except* DerpError as group:
            ended = first_error(group)
        return ended


def first_error(group: BaseExceptionGroup[E]) -> E:
    """Of errors that happened together the one that says most: a refusal, else the first."""
    errors: list[E] = []
    waiting: list[BaseExceptionGroup[E] | E] = [group]
    while waiting:
        one = waiting.pop(0)
        if isinstance(one, BaseExceptionGroup):
            waiting += one.exceptions
        else:
            errors.append(one)
    return next((error for error in errors if is_refusal(error)), errors[0])


def is_refusal(error: BaseException) -> bool:
    """Whether another try comes to the same end."""
    if isinstance(error, UpgradeRefused):
        return 400 <= error.status <= 499 and error.status not in _PASSING
    return isinstance(error, NotAuthorised)


def may_pass(error: BaseException) -> bool:
    """Whether a refusal is none of what was asked for, which alone would be refused for ever."""
    return not (isinstance(error, UpgradeRefused) and error.status == HTTPStatus.BAD_REQUEST)


@contextmanager
def bare_refusals() -> Iterator[None]:
    """What the coordinator said last comes out as it is, without the nursery's wrapping."""
    try:
        yield
    except BaseExceptionGroup as group:
        refusals, others = group.split((DerpError, trio.TooSlowError))
        if refusals is None or others is not None:
            raise
        raise first_error(refusals) from None
