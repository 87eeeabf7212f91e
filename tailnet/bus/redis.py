"""Replicas that find each other in Redis or Valkey, which also carries their frames (layer L2).  By coredis.

    tn:<cluster>:r:<id>   a record, with a lease          tn:<cluster>:rs   the set of ids, swept by readers
    tn:<cluster>:c:<id>   the channel of one replica: sender, then frames with their lengths
In a cluster of Redis all begin with {tn:<cluster>}: instead, which makes them one node's, and channels are of shards.
Of what a subscriber is not told nobody hears, neither here nor from the server; so each replica sends itself a beat by
its own channel, and only that one coming back proves that the bus is well.
"""

import logging
import math
import random
import re
import ssl
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, Final

import trio
from anyio import BrokenResourceError, ClosedResourceError
from coredis import Redis
from coredis import exceptions as replies
from coredis.commands.constants import CommandName
from coredis.patterns.pubsub import PubSub
from coredis.retry import NoRetryPolicy

from derp.log import Rarely, and_more
from derp.text import error_text, host_port
from derp.transport.stream import reason_of
from derp.transport.tls_client import system_context
from tailnet.bus.contract import (
    LEASE_SECONDS,
    MAX_REPLICAS,
    RENEW_SECONDS,
    Address,
    Record,
    RecordReader,
    Watcher,
    encode_record,
    join_frames,
    split_frames,
)
from tailnet.config.redis_url import Login, RedisPlace
from tailnet.errors import ConfigError, RemoteProtocolError
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
# What coredis leaves of a connection that ended while something was to be sent.
_ENDED: Final = (ClosedResourceError, BrokenResourceError, EOFError)
_EXPECTED: Final = (replies.RedisError, OSError, ConfigError, *_ENDED)
# No pings: our beat tells more, and a server that cannot write to its disk refuses pings, and not what we publish.
_SUBSCRIPTION: Final[Mapping[str, Any]] = {"retry_policy": NoRetryPolicy(), "max_idle_seconds": math.inf}
# A server that says so takes no records, and goes on carrying.
_TAKES_NO_RECORDS: Final = ("OOM", "MISCONF", "NOREPLICAS")
_MOVES: Final = (
    "the slot of our keys is on its way to another node of its cluster, so it takes no records until that is over"
)
# What a server's refusal means, by its kind or by how it begins, for the operator.
_BY_KIND: Final[tuple[tuple[type[Exception], str], ...]] = (
    (replies.AuthenticationRequiredError, "it asks for a password: write USER:PASSWORD@ before the host"),
    (replies.AuthenticationFailureError, "it does not take this name and password"),
    (replies.AuthorizationError, "its user lacks a right that docs/replicas.md lists"),
    (
        replies.ReadOnlyError,
        "it is a replica, which takes no writes: name the primary, or by redis+sentinel its sentinels",
    ),
    (replies.BusyLoadingError, "it is still loading its data"),
    (replies.MovedError, "our keys are at another node of its cluster: redis+cluster finds it"),
    (replies.AskError, _MOVES),
    (replies.TryAgainError, _MOVES),
    (replies.ClusterDownError, "the cluster is down, as a part of it has no node"),
    (replies.UnknownCommandError, "it does not know a command: it is no sentinel, or a Redis before 6.0"),
)
_BY_TEXT: Final = (
    ("OOM", "it is full, so replicas cannot renew their records: raise its maxmemory"),
    ("Only HELLO messages", "it is a sentinel: use redis+sentinel"),
    ("MISCONF", "it cannot write to its disk, so it takes no records"),
    ("NOREPLICAS", "it has fewer replicas of its own than its min-replicas-to-write, so it takes no records"),
    ("DB index is out of range", "it has no such DB: use /0, or raise its setting `databases`"),
    (
        "Failed to receive acknowledgement of subscription",
        "it does not confirm a subscription: may its user subscribe?",
    ),
)
# What to do about it with the options of our address, where the general sentence cannot know them.
_HINTS: Final = (
    ("does not trust", "ssl_ca_certs names an authority of your own"),
    ("is not trusted", "ssl_ca_certs names an authority of your own"),
    ("is self-signed", "ssl_ca_certs names an authority of your own"),
    ("CERTIFICATE_REQUIRED", "it asks for a certificate of ours: ssl_certfile and ssl_keyfile name one"),
    ("ALERT_UNKNOWN_CA", "it does not trust our certificate, which ssl_certfile names"),
    ("reset the connection", "it may want TLS (rediss), or a certificate of ours (ssl_certfile)"),
)


class _ShardPubSub(PubSub[bytes]):
    """A subscription to channels of one shard, at the node that we found; coredis has it for its cluster's client."""

    def _execute_command(self, command: bytes, *args: Any) -> None:
        names: dict[bytes, bytes] = {
            CommandName.SUBSCRIBE: CommandName.SSUBSCRIBE,
            CommandName.UNSUBSCRIBE: CommandName.SUNSUBSCRIBE,
        }
        if command != CommandName.PUNSUBSCRIBE:  # there are no patterns
            super()._execute_command(names.get(command, command), *args)


class RedisBus:
    """A Bus."""

    kind = "redis"
    can_carry = True

    def __init__(self, place: RedisPlace, cluster: str) -> None:
        """Raises ConfigError for files that are no certificates or keys."""
        self.trouble = "not connected yet"
        self.lost_count = 0  # batches of frames that it did not take
        self._place = place
        self._prefix = f"{{tn:{cluster}}}:" if place.kind == "cluster" else f"tn:{cluster}:"
        self._addresses = list(place.addresses)  # the one that answered last comes first
        self._client: Redis[bytes] | None = None
        self._is_carrying = False
        self._takes_records = False  # over this connection
        self._heard_at = 0.0
        self._own: ReplicaID
        self._is_leaving = False
        self._rarely = Rarely(_TELL_SECONDS)
        self._records = RecordReader("the bus")
        self._context()

    async def run(self, own: Record, watcher: Watcher) -> None:
        self._own = own.replica
        try:
            while True:
                try:
                    await self._serve(own, watcher)
                except* _EXPECTED as errors:
                    self._note_trouble(errors)
                except* Exception as errors:
                    # Whatever a library's tasks raise, sessions of peers do not end for it.
                    more = self._rarely.held_back("defect", trio.current_time())
                    if more is not None:
                        _log.exception("! the bus failed; please report this%s", and_more(more))
                    self._note_trouble(errors)
                self._client, self._is_carrying = None, False
                watcher.see_carrier(False)
                await trio.sleep(random.uniform(*RETRY_SECONDS))
        finally:
            await self._leave(own.replica)

    def _note_trouble(self, error: BaseException) -> None:
        first = _first(error)
        self.trouble = f"{self._place}: {_words(first)}"
        more = self._rarely.held_back(_meaning(first) or type(first).__name__, trio.current_time())
        if more is not None:
            _log.warning("! the bus %s%s; sessions that stand go on", self.trouble, and_more(more))

    def _note_well(self) -> None:
        """If it does both: one that carries and refuses our record is asked anew all the time, and never well."""
        if self.trouble and self._is_carrying and self._takes_records:
            _log.info("= the bus %s is well", self._place)
            self.trouble = ""

    async def _serve(self, own: Record, watcher: Watcher) -> None:
        """One connection, until it fails."""
        server = await self._find()
        async with self._connect(server, self._place.login, self._place.db) as client:
            # A user who may not do so is told why; of a subscription that is refused there is no answer.
            await self._publish(client, own.replica, own.replica)
            async with self._subscribe(client, self._channel(own.replica)) as subscription:
                self._heard_at, self._takes_records = trio.current_time(), self._is_leaving
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._renew, client, own, watcher)
                    nursery.start_soon(self._beat, client, own.replica)
                    self._client = client
                    async for message in subscription:
                        if message["type"] == "message":
                            data = message["data"]
                            self._take(data if isinstance(data, bytes) else b"", watcher)
                        if subscription._receive_stream.statistics().current_buffer_used > MAX_WAITING_MESSAGES:
                            raise TimeoutError("this replica does not keep up with what the bus tells it")
                    raise EOFError

    # Which server.

    async def _find(self) -> Address:
        """Where the server is that has our records now: sentinels and nodes are asked one after the other."""
        if not self._place.kind:
            return self._addresses[0]
        troubles = []
        for address in list(self._addresses):
            try:
                found = await self._ask(address)
            except* _EXPECTED as errors:
                troubles.append(f"{host_port(*address)}: {_words(_first(errors))}")
            else:
                self._addresses.remove(address)
                self._addresses.insert(0, address)
                return found
        raise replies.ConnectionError("; ".join(troubles))

    async def _ask(self, address: Address) -> Address:
        """Where one sentinel, or one node, sends us.  Raises what coredis does."""
        if self._place.kind == "sentinel":
            async with self._connect(address, self._place.sentinel_login) as sentinel:
                primary = await sentinel.sentinel_get_master_addr_by_name(self._place.service)
            if primary is None:
                raise replies.ConnectionError(f"it knows no primary called {self._place.service}")
            return str(primary[0]), primary[1]
        moved = None
        try:
            async with self._connect(address, self._place.login) as node:
                await node.smembers(f"{self._prefix}rs")
        except* replies.AskError as errors:
            moved = _first(errors)
        if not isinstance(moved, replies.MovedError):
            return address  # until a slot has moved, it is where it was
        return moved.host or address[0], moved.port  # a node that knows no name of its own is where it was asked

    def _connect(self, server: Address, login: Login, db: int = 0) -> "Redis[bytes]":
        return Redis(
            *server,
            db=db,
            username=login.user or None,
            password=login.password or None,
            decode_responses=False,
            ssl_context=self._context(),
            stream_timeout=COMMAND_SECONDS,
            connect_timeout=COMMAND_SECONDS,
            # What failed is begun anew here, where somebody hears of it.
            retry_policy=NoRetryPolicy(),
        )

    def _context(self) -> ssl.SSLContext | None:
        """Made for each connection: certificates are renewed.  coredis's own would take a certificate of any name."""
        place = self._place
        if not place.is_tls:
            return None
        try:
            context = system_context(place.ca_file)
        except (OSError, ssl.SSLError) as error:
            raise ConfigError(
                f"--bus: ssl_ca_certs: {place.ca_file}: holds no certificates: {error_text(error)}"
            ) from None
        if place.certificate_file is not None:
            try:
                context.load_cert_chain(place.certificate_file, place.key_file, lambda: "")
            except (OSError, ssl.SSLError) as error:
                files = f"{place.certificate_file} and {place.key_file}"
                raise ConfigError(
                    f"--bus: ssl_certfile: {files} are no certificate with its key: {error_text(error)}"
                ) from None
        return context

    def _subscribe(self, client: "Redis[bytes]", channel: str) -> PubSub[bytes]:
        if self._place.kind == "cluster":
            return _ShardPubSub(client.connection_pool, channels=[channel], **_SUBSCRIPTION)
        return client.pubsub(channels=[channel], **_SUBSCRIPTION)

    async def _publish(self, client: "Redis[bytes]", receiver: ReplicaID, message: bytes) -> None:
        publish = client.spublish if self._place.kind == "cluster" else client.publish
        await publish(self._channel(receiver), message)

    # What it keeps and carries.

    async def _renew(self, client: "Redis[bytes]", own: Record, watcher: Watcher) -> None:
        """Our record, and everybody's."""
        key, ids = self._key(own.replica), f"{self._prefix}rs"
        while not self._is_leaving:
            takes_records = True
            try:
                await client.set(key, encode_record(own), px=int(LEASE_SECONDS * 1000))
                await client.sadd(ids, [own.replica.hex()])
            except replies.ResponseError as error:
                if not (_is_moving(error) or error_text(error).startswith(_TAKES_NO_RECORDS)):
                    raise
                takes_records = False
                self._note_trouble(error)
            try:
                watcher.see_records(await self._read(client, ids, may_sweep=takes_records))
            except replies.ResponseError as error:
                if not _is_moving(error):
                    raise
                takes_records = False  # and the others stay known
                self._note_trouble(error)
            self._takes_records = takes_records
            if takes_records:
                self._note_well()
            await trio.sleep(RENEW_SECONDS)

    async def _read(self, client: "Redis[bytes]", ids: str, *, may_sweep: bool) -> Mapping[ReplicaID, Record]:
        members = {bytes(each) for each in await client.smembers(ids)}
        strange = [each for each in members if _ID.fullmatch(each) is None]
        named = sorted(members.difference(strange))[: 2 * MAX_REPLICAS]
        found = await client.mget([f"{self._prefix}r:{each.decode()}" for each in named]) if named else ()
        gone = [each for each, value in zip(named, found, strict=True) if value is None]
        if may_sweep and (strange or gone):
            await client.srem(ids, [*strange, *gone])
        return self._records.read(bytes(value) for value in found if value is not None)

    async def _beat(self, client: "Redis[bytes]", own: ReplicaID) -> None:
        while True:
            await self._publish(client, own, own)
            await trio.sleep(BEAT_SECONDS)
            if trio.current_time() - self._heard_at > DEAF_SECONDS:
                raise TimeoutError(f"it has not brought back our own beat for {DEAF_SECONDS:g} s")

    def _take(self, message: bytes, watcher: Watcher) -> None:
        if len(message) < REPLICA_ID_BYTES:
            return
        sender = ReplicaID(message[:REPLICA_ID_BYTES])
        if sender == self._own:
            self._heard_at = trio.current_time()
            if not self._is_carrying:
                self._is_carrying = True
                watcher.see_carrier(True)
            self._note_well()
            return
        with suppress(RemoteProtocolError):  # the gap tells
            for frame, _ in split_frames(message[REPLICA_ID_BYTES:]):
                watcher.hear_frame(sender, frame)

    async def send(self, receiver: ReplicaID, frames: Sequence[bytes]) -> bool:
        client = self._client
        try:
            if client is not None:
                await self._publish(client, receiver, self._own + join_frames(frames))
                return True
        except Exception as error:  # a connection that ends meanwhile has more than its own errors
            self._note_trouble(error)
        self.lost_count += 1
        return False

    async def leave(self) -> None:
        self._is_leaving = True
        await self._leave(self._own)

    async def _leave(self, own: ReplicaID) -> None:
        """Our record need not wait for the end of its lease."""
        with trio.move_on_after(COMMAND_SECONDS, shield=True):
            try:
                async with self._connect(await self._find(), self._place.login, self._place.db) as client:
                    await client.delete([self._key(own)])
                    await client.srem(f"{self._prefix}rs", [own.hex()])
            except* Exception:  # noqa: S110  # as above; it ends by itself
                pass

    def _key(self, replica: ReplicaID) -> str:
        return f"{self._prefix}r:{replica.hex()}"

    def _channel(self, replica: ReplicaID) -> str:
        return f"{self._prefix}c:{replica.hex()}"


def _first(error: BaseException) -> BaseException:
    """Of several that happened together the first."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def _is_moving(error: BaseException) -> bool:
    """Whether a cluster refuses what it is asked because the slot is on its way from one node to another."""
    is_asking = isinstance(error, replies.AskError) and not isinstance(error, replies.MovedError)
    return is_asking or isinstance(error, replies.TryAgainError)


def _meaning(error: BaseException) -> str:
    """What a refusal means, by the tables above; empty for what stands in none."""
    text = error_text(error)
    for kind, words in _BY_KIND:
        if isinstance(error, kind):
            return words
    return next((words for beginning, words in _BY_TEXT if text.startswith(beginning)), "")


def _words(error: BaseException) -> str:
    """Why, for people."""
    if meaning := _meaning(error):
        return f"{meaning} ({error_text(error)})"
    if isinstance(error, _ENDED):
        return "its connection ended"
    if isinstance(error.__cause__, TimeoutError):
        return f"no answer for {COMMAND_SECONDS:g} s: it is stopped, or only one of us speaks TLS"
    reason = reason_of(error)
    return "; ".join([reason, *(hint for part, hint in _HINTS if part in reason)])
