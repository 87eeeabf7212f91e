"""Replicas that find each other in Redis or Valkey, which also carries their frames (layer L2).  By coredis.

    tn:<cluster>:r:<id>   a record, with a lease          tn:<cluster>:rs   the set of ids, swept by readers
    tn:<cluster>:c:<id>   the channel of one replica: sender, then frames with their lengths
Of what a subscriber is not told nobody hears, neither here nor from the server; so each replica sends itself a beat by
its own channel, and only that one coming back proves that the bus is well.
"""

import logging
import random
import re
from collections.abc import Sequence
from contextlib import suppress
from typing import Final

import trio
from coredis import Redis
from coredis.exceptions import RedisError
from coredis.retry import NoRetryPolicy

from derp.log import Rarely, and_more
from derp.text import error_text, without_secrets
from tailnet.bus.contract import (
    LEASE_SECONDS,
    MAX_REPLICAS,
    RENEW_SECONDS,
    Record,
    RecordReader,
    Watcher,
    encode_record,
    join_frames,
    split_frames,
)
from tailnet.errors import RemoteProtocolError
from tailnet.replica.messages import REPLICA_ID_BYTES, ReplicaID

_log = logging.getLogger("tailnet.replicas")

# Of one command, and of a connect: without it a server that is paused hangs a command for ever.
COMMAND_SECONDS: Final = 2.0
# Our own beat, as the sessions have theirs; three of them may be late or lost.
BEAT_SECONDS: Final = 1.0
DEAF_SECONDS: Final = 3.5
RETRY_SECONDS: Final = (0.25, 1.0)
# What waits in coredis for us, which has no bound of its own: a consumer that is behind by this begins anew.
MAX_WAITING_MESSAGES: Final = 10_000
_TELL_SECONDS: Final = 60.0
_ID: Final = re.compile(rb"[0-9a-f]{%d}" % (2 * REPLICA_ID_BYTES))
_EXPECTED: Final = (RedisError, OSError, TimeoutError)


class RedisBus:
    """A Bus.  `url`: as coredis takes it, redis:// or rediss://, with a name and a password if the server wants one."""

    kind = "redis"
    can_carry = True

    def __init__(self, url: str, cluster: str) -> None:
        self.trouble = "not connected yet"
        self.lost_count = 0  # batches of frames that it did not take
        self._url = url
        self._prefix = f"tn:{cluster}:"
        self._client: Redis[bytes] | None = None
        self._heard_at = 0.0
        self._own: ReplicaID
        self._is_leaving = False
        self._rarely = Rarely(_TELL_SECONDS)
        self._records = RecordReader("the bus")

    async def run(self, own: Record, watcher: Watcher) -> None:
        self._own = own.replica
        try:
            while True:
                try:
                    await self._serve(own, watcher)
                    self._note_trouble("its subscription ended")
                except* _EXPECTED as errors:
                    self._note_trouble(_reason(errors))
                except* Exception as errors:
                    # Whatever a library's tasks raise, sessions of peers do not end for it.
                    more = self._rarely.held_back("defect", trio.current_time())
                    if more is not None:
                        _log.exception("! the bus failed; please report this%s", and_more(more))
                    self._note_trouble(_reason(errors))
                self._client = None
                watcher.see_carrier(False)
                await trio.sleep(random.uniform(*RETRY_SECONDS))
        finally:
            await self._leave(own.replica)

    def _note_trouble(self, why: str) -> None:
        self.trouble = f"{without_secrets(self._url)}: {why}"
        more = self._rarely.held_back("trouble", trio.current_time())
        if more is not None:
            _log.warning("! the bus %s%s; sessions that stand go on", self.trouble, and_more(more))

    def _connect(self) -> "Redis[bytes]":
        return Redis.from_url(
            self._url,
            decode_responses=False,
            stream_timeout=COMMAND_SECONDS,
            connect_timeout=COMMAND_SECONDS,
            # What failed is begun anew here, where somebody hears of it.
            retry_policy=NoRetryPolicy(),
        )

    async def _serve(self, own: Record, watcher: Watcher) -> None:
        """One connection, until it fails."""
        async with (
            self._connect() as client,
            client.pubsub(channels=[self._channel(own.replica)], retry_policy=NoRetryPolicy()) as subscription,
        ):
            self._heard_at = trio.current_time()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._renew, client, own, watcher)
                nursery.start_soon(self._beat, client, own.replica, watcher)
                self._client = client
                async for message in subscription:
                    if message["type"] == "message":
                        data = message["data"]
                        self._take(data if isinstance(data, bytes) else b"", watcher)
                    if subscription._receive_stream.statistics().current_buffer_used > MAX_WAITING_MESSAGES:
                        raise TimeoutError("this replica does not keep up with what the bus tells it")
                nursery.cancel_scope.cancel()

    async def _renew(self, client: "Redis[bytes]", own: Record, watcher: Watcher) -> None:
        """Our record, and everybody's."""
        encoded, key, ids = encode_record(own), self._key(own.replica), f"{self._prefix}rs"
        while not self._is_leaving:
            await client.set(key, encoded, px=int(LEASE_SECONDS * 1000))
            await client.sadd(ids, [own.replica.hex()])
            members = {bytes(each) for each in await client.smembers(ids)}
            if strange := [each for each in members if _ID.fullmatch(each) is None]:
                await client.srem(ids, strange)
            named = sorted(members.difference(strange))[: 2 * MAX_REPLICAS]
            found = await client.mget([f"{self._prefix}r:{each.decode()}" for each in named])
            if gone := [each for each, value in zip(named, found, strict=True) if value is None]:
                await client.srem(ids, gone)
            watcher.see_records(self._records.read(bytes(value) for value in found if value is not None))
            await trio.sleep(RENEW_SECONDS)

    async def _beat(self, client: "Redis[bytes]", own: ReplicaID, watcher: Watcher) -> None:
        while True:
            await client.publish(self._channel(own), own)
            await trio.sleep(BEAT_SECONDS)
            if trio.current_time() - self._heard_at > DEAF_SECONDS:
                raise TimeoutError(f"it has not brought back our own beat for {DEAF_SECONDS:g} s")

    def _take(self, message: bytes, watcher: Watcher) -> None:
        if len(message) < REPLICA_ID_BYTES:
            return
        sender = ReplicaID(message[:REPLICA_ID_BYTES])
        if sender == self._own:
            self._heard_at = trio.current_time()
            if self.trouble:
                _log.info("= the bus %s is well", without_secrets(self._url))
                self.trouble = ""
                watcher.see_carrier(True)
            return
        with suppress(RemoteProtocolError):  # the gap tells
            for frame, _ in split_frames(message[REPLICA_ID_BYTES:]):
                watcher.hear_frame(sender, frame)

    async def send(self, receiver: ReplicaID, frames: Sequence[bytes]) -> bool:
        client = self._client
        try:
            if client is not None:
                await client.publish(self._channel(receiver), self._own + join_frames(frames))
                return True
        except Exception as error:  # a connection that ends meanwhile has more than its own errors
            self._note_trouble(error_text(error))
        self.lost_count += 1
        return False

    async def leave(self) -> None:
        self._is_leaving = True
        await self._leave(self._own)

    async def _leave(self, own: ReplicaID) -> None:
        """Our record need not wait for the end of its lease."""
        with trio.move_on_after(COMMAND_SECONDS, shield=True):
            try:
                async with self._connect() as client:
                    await client.delete([self._key(own)])
                    await client.srem(f"{self._prefix}rs", [own.hex()])
            except* Exception:  # noqa: S110  # as above; it ends by itself
                pass

    def _key(self, replica: ReplicaID) -> str:
        return f"{self._prefix}r:{replica.hex()}"

    def _channel(self, replica: ReplicaID) -> str:
        return f"{self._prefix}c:{replica.hex()}"


def _reason(error: BaseException) -> str:
    """Of several that happened together the first."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error_text(error)
