"""Gets key sets from their issuer, and keeps the last good one.  Layer L3; admission/keyset.py decides what is
believed.

From a URL: GET with the ETag of what is here and `Prefer: wait=25` (RFC 7240), so that an issuer who knows that answers
the moment something changes, through any proxy; one who does not is asked every five seconds.  From a file: read again
when it changes.  What is good is kept in a file, and counts until its end, over restarts too, whether the issuer
answers or not.
"""

import logging
import time
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Final

import trio

from derp.admission.keyset import MAX_DOCUMENT_BYTES, KeySet, NewestKeySet, open_key_set
from derp.admission.signed import Issuer
from derp.config import RelayRules
from derp.config.files import file_mark, write_whole
from derp.errors import SignedFormatError, TransportError
from derp.log import fields
from derp.text import error_text, fit_to_show, utc
from derp.transport.fetch import HttpCaller

_log = logging.getLogger("derp.server")

# Reverse proxies cut an answer that takes more than 60 s, or 30.
WAIT_SECONDS: Final = 25
# An issuer that waits answers a change at once; so that a thousand changes are no thousand downloads, we ask again
# after:
_AGAIN_SECONDS: Final = 0.1
# For a URL that does not wait, and a file.
POLL_SECONDS: Final = 5.0
FILE_POLL_SECONDS: Final = 0.5
# After a failure, twice as long each time.
RETRY_SECONDS: Final = 1.0
MAX_RETRY_SECONDS: Final = 30.0
_TIMEOUT_SECONDS: Final = WAIT_SECONDS + 15.0
_NOTHING: Final = KeySet(0, 0.0, 0.0, frozenset())
# When what counts ends so soon, it is no longer a detail that no newer one comes.
ENDING_SECONDS: Final = 3600.0


class KeySetFollower:
    """One source of key sets.  `run` it as one task; then ask it from the reactor's thread."""

    def __init__(self, rules: RelayRules, *, clock: Callable[[], float] = time.time) -> None:
        self._source = rules.key_set
        self._name = fit_to_show(rules.key_set)
        self._is_url = rules.key_set.startswith(("http://", "https://"))
        self._kept = rules.key_set_file if self._is_url else None
        self._headers = {"Authorization": f"Bearer {rules.key_set_token}"} if rules.key_set_token else {}
        self._clock = clock
        self._newest = NewestKeySet(rules.issuers)
        self._trouble = self._told = ""
        self.on_change: list[Callable[[Collection[bytes]], None]] = []
        """Called when another set counts, with the keys that it takes the right from, or gives to another tenant."""
        self.taken_count = 0
        self.refused_count = 0
        self.failed_count = 0

    @property
    def current(self) -> KeySet | None:
        """The newest set, whether or not it has ended."""
        return self._newest.current

    @property
    def ends_at(self) -> float | None:
        """When the newest set ends, or has ended."""
        return self.current.ends_at if self.current is not None else None

    def totals(self) -> Mapping[str, int]:
        """Sets by what became of them, for metrics."""
        return {"taken": self.taken_count, "refused": self.refused_count, "failed": self.failed_count}

    def has(self, key: bytes) -> bool:
        """Whether a key may come in now."""
        return self._newest.has(key, self._clock())

    def is_revoked(self, key: bytes) -> bool:
        return self._newest.is_revoked(key)

    def tenant_of(self, key: bytes) -> str:
        """Whose client a key is; empty: the issuer does not say."""
        return self._newest.tenant_of(key)

    @property
    def closed_by(self) -> str:
        """Why no key gets in by a set now; empty: one counts."""
        if self._newest.counts(self._clock()):
            return ""
        current = self._newest.current
        why = f": {self._trouble}" if self._trouble else ""
        if current is None:
            return f"there is no key set yet from {self._name}{why}"
        return f"the key set {current.version} ended at {utc(current.ends_at)}{why}"

    @property
    def problem(self) -> str:
        """What the operator should look at, also if known keys still get in."""
        if closed := self.closed_by:
            return closed
        current = self._newest.current
        assert current is not None, "or nobody would get in"
        life = current.ends_at - current.issued_at
        ends_soon = current.ends_at - self._clock() < min(ENDING_SECONDS, life / 4)
        when = f"the one that is here ends {'soon, ' if ends_soon else ''}at {utc(current.ends_at)}"
        if self._trouble:
            return f"no newer key set comes ({self._trouble}); {when}"
        return f"no newer key set has come; {when}" if ends_soon else ""

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Follow the source until cancelled; started when what was kept is known, or a file was read."""
        await self._recall()
        if not self._is_url:
            await self._follow_file(Path(self._source), task_status)
        async with HttpCaller(timeout_seconds=_TIMEOUT_SECONDS) as http:
            task_status.started()
            await self._follow_url(http)

    async def _follow_url(self, http: HttpCaller) -> None:
        etag, retry = "", RETRY_SECONDS
        while True:
            is_news = False
            began = trio.current_time()
            headers = {**self._headers, "Prefer": f"wait={WAIT_SECONDS}", **({"If-None-Match": etag} if etag else {})}
            try:
                fetched = await http.get(self._source, MAX_DOCUMENT_BYTES, headers)
                if fetched.status == 200:
                    is_news = await self._take(fetched.body)
                    etag = fetched.etag
                elif fetched.status != 304:
                    raise SignedFormatError(f"is answered with {fetched.redirect or fetched.status}")
            except (TransportError, SignedFormatError) as error:
                self._fail(error)
                await trio.sleep(retry)
                retry = min(2 * retry, MAX_RETRY_SECONDS)
                etag = ""  # what was refused may be what it gives us still
                continue
            self._recover()
            retry = RETRY_SECONDS
            # Whoever answers at once that there is nothing new does not wait.
            has_waited = trio.current_time() - began > 1.0
            await trio.sleep(_AGAIN_SECONDS if is_news or has_waited else POLL_SECONDS)

    async def _follow_file(self, path: Path, task_status: trio.TaskStatus[None]) -> None:
        is_first, seen = True, None
        while True:
            # Before it is read: what is written meanwhile is another one the next time.
            now = await trio.to_thread.run_sync(file_mark, path)
            if is_first or now != seen:
                await self._read_file(path)
            self._tell()
            if is_first:
                task_status.started()
            is_first, seen = False, now
            await trio.sleep(FILE_POLL_SECONDS)

    async def _read_file(self, path: Path) -> None:
        try:
            await self._take(await trio.to_thread.run_sync(_read, path))
        except SignedFormatError as error:
            self._fail(error)
        except OSError as error:
            self._fail(SignedFormatError(f"cannot be read: {error_text(error)}"))
        else:
            self._recover()

    async def _recall(self) -> None:
        if self._kept is None:
            return
        try:
            document = await trio.to_thread.run_sync(_read, self._kept)
            await trio.to_thread.run_sync(self._newest.recall, document)
        except FileNotFoundError:
            return
        except (OSError, SignedFormatError) as error:
            _log.warning("! admission: the key set kept in %s %s", self._kept, error_text(error))
            return
        _log.info("= admission: %s is here from before", self._newest.current)

    async def _take(self, document: bytes) -> bool:
        """Whether it was news."""
        # 100,000 keys are 0.1 s of work, so not on the reactor's thread.
        before = self._newest.current or _NOTHING
        opened, changed = await trio.to_thread.run_sync(_open, document, self._newest.issuers, before)
        taken = self._newest.take(opened, self._clock())
        if taken is None:
            return False
        self.taken_count += 1
        _log.info("= admission: %s", taken, extra=fields(event="key_set", version=taken.version, keys=len(taken.keys)))
        for notify in self.on_change:
            notify(changed)
        if self._kept is not None:
            try:
                await trio.to_thread.run_sync(write_whole, self._kept, document)
            except OSError as error:
                _log.error("! admission: %s: the key set is not kept: %s", self._kept, error_text(error))
        return True

    def _fail(self, error: TransportError | SignedFormatError) -> None:
        is_refused = isinstance(error, SignedFormatError)
        self.refused_count += is_refused
        self.failed_count += not is_refused
        self._trouble = f"the key set of {self._name} {error}" if is_refused else str(error)
        self._tell()

    def _recover(self) -> None:
        self._trouble = ""
        self._tell()

    def _tell(self) -> None:
        """Say in the log what is the matter, whenever that is something else: that the set has ended, for one."""
        problem = self.problem
        if problem == self._told:
            return
        self._told = problem
        if problem:
            _log.warning("! admission: %s", problem, extra=fields(event="admission_fault", reason=problem))
        else:
            _log.info("= admission: key sets of %s come again", self._name)


def _open(document: bytes, issuers: Collection[Issuer], before: KeySet) -> tuple[KeySet, frozenset[bytes]]:
    """A set, and the keys that it takes the right from, or gives to another tenant.  Raises SignedFormatError."""
    after = open_key_set(document, issuers)
    moved = {key for key, _ in before.tenants.items() ^ after.tenants.items()}
    return after, (before.keys - after.keys) | (after.revoked - before.revoked) | (after.keys & moved)


def _read(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(MAX_DOCUMENT_BYTES + 1)
