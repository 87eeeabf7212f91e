"""The process above several workers of one relay: it binds the ports, starts workers, and keeps them going.  Layer L3.

It has no client.  Every worker gets sockets of its own at the same ports, between which the kernel distributes what
comes; they stay open here, so that what arrives while a worker is replaced waits for the new one.  Signals reach all
workers through it: SIGTERM and SIGUSR1 as they are, SIGHUP one worker after the other, SIGUSR2 with successors first.
The other side is worker.py; `derp serve --workers N` runs it.
"""

import contextlib
import itertools
import logging
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Final

import msgpack
import trio

from derp.config import RelayConfig
from derp.config.relay import WORKER_VARIABLE
from derp.errors import ConfigError, DerpError
from derp.log import fields, set_level
from derp.server.encryption import open_keeper, open_tls
from derp.server.handover import Handed, HandoverError, Inherited, hand_over
from derp.server.life import SIGNALS
from derp.server.moving import open_channel
from derp.server.ports import Listening, open_stun
from derp.server.worker import LINE_BYTES, QUIC_SLOT, encode
from derp.transport.listen import open_listener, open_udp
from derp.transport.notify import notify_manager

if TYPE_CHECKING:
    from derp.server.certificates import CertificateKeeper

_log = logging.getLogger("derp.workers")

# A worker that crashed once is back before its clients are; one that crashes again and again may not take the CPU.
_FIRST_RESTART_SECONDS: Final = 0.1
_MAX_RESTART_SECONDS: Final = 30.0
# Newcomers wait for so long in the ports of a worker that is being replaced; after that they go to its siblings.
_KEEP_PORTS_SECONDS: Final = 2.0
# A worker that ran for so long was a good one.
_SETTLED_SECONDS: Final = 60.0
# Thirty signs of life that did not come: its thread is stuck, whatever else the machine does.
STUCK_SECONDS: Final = 30.0
# To read settings and certificates again takes milliseconds.
_RELOAD_SECONDS: Final = 10.0
# To show a proof takes a worker less than a millisecond of its time.  One that does not is stuck or starts.
_SHOW_SECONDS: Final = 10.0
_LOOK_SECONDS: Final = 0.01


class _Process:
    """One worker as the supervisor sees it."""

    def __init__(self, number: int, slot: int, line: socket.socket) -> None:
        self.number = number
        self.slot = slot
        self.raw_line = line
        line.setblocking(False)
        self.line = trio.socket.from_stdlib_socket(line)
        self.process: trio.Process | None = None
        self.is_leaving = False
        self.alive_at = self.started_at = trio.current_time()
        self.reloaded = trio.Event()
        self.proofs_sent = self.proofs_shown = 0
        self.ended = trio.Event()

    @property
    def name(self) -> str:
        return f"worker {self.number}"

    def send(self, *items: object) -> None:
        """A line that takes nothing belongs to a worker that is stuck or gone, which is seen elsewhere."""
        with contextlib.suppress(OSError):
            self.raw_line.send(encode(*items))

    def send_socket(self, sock: socket.socket, *items: object) -> None:
        with contextlib.suppress(OSError):
            socket.send_fds(self.raw_line, [encode(*items)], [sock.fileno()])


class Supervisor:
    """Call `open`, then `run`; it returns when all workers have drained, or raises DerpError when none comes up."""

    def __init__(
        self,
        config: RelayConfig,
        reread: Callable[[], RelayConfig],
        *,
        inherited: Inherited | None = None,
        command: Sequence[str] | None = None,
    ) -> None:
        """`command`: what starts a worker; by default what started this process."""
        self.config = config
        # Here for what can be wrong with it, and so that certificates that have to be made are made once.
        self.tls = open_tls(config.tls, config.private_key.public())
        self._keeper = open_keeper(self.tls, self._tell_of_certificate, self._tell_of_proof)
        if self._keeper is not None:
            self._keeper.wait_shown = self._wait_shown
        self.listening: list[Listening] = []
        self.workers: list[_Process] = []
        self._reread = reread
        self._inherited = inherited or Inherited()
        self.command = list(command or [sys.executable, *sys.orig_argv[1:]])
        # (tcp or udp, host and port as configured, the port that it is): what each slot has a socket of.
        self._places: list[tuple[str, str, int, int]] = []
        self._quic_places: list[tuple[str, int]] = []
        self._slots: list[list[Handed]] = [[] for _ in range(config.workers)]
        self._of_all: list[Handed] = []
        self._numbers = itertools.count()
        self._failures = [0] * config.workers
        self._is_draining = False
        self.drained = trio.Event()
        self._busy = trio.Lock()
        # Held by whoever starts a worker in a slot or closes its ports: one may end by itself while all are replaced.
        self._changing = [trio.Lock() for _ in range(config.workers)]

    # --- ports

    def open(self) -> None:
        """Bind every port, once for each worker.  Raises ConfigError; nothing stays open then."""
        config = self.config
        try:
            for host, port in config.listen:
                self._find_place("tcp", host, port, "derp" if self.tls is None else "derp+tls")
                if config.quic:
                    self._find_quic_place(host)
            if config.http_port is not None and self.tls is not None:
                for host in dict.fromkeys(host for host, _ in config.listen):
                    self._find_place("tcp", host, config.http_port, "http")
            for host in config.stun_hosts:
                self._find_place("udp", host, config.stun_port, "stun")
            for slot in range(config.workers):
                self._open_slot(slot)
            self._inherited.finish()
        except BaseException:
            self.close()
            raise

    def _find_place(self, kind: str, host: str, port: int, shown: str) -> None:
        sock = self._inherited.take(kind, host, port)
        if sock is not None:  # systemd has one, and the workers accept from it in turn
            self._of_all.append(Handed(kind, host, port, sock))
            bound = sock.getsockname()
        else:
            # Bound alone at first: two relays at one port would share it without a word.
            if kind == "tcp":
                sock = open_listener(host, port)
            else:
                sock = open_stun(host, port, may_move=self.config.stun_may_move)
            with sock:
                bound = sock.getsockname()
            self._places.append((kind, host, port, int(bound[1])))
        self.listening.append(Listening(shown, str(bound[0]), int(bound[1])))

    def _find_quic_place(self, host: str) -> None:
        """The UDP port beside the TCP port that was found last; one worker is given it (worker.py)."""
        beside = self.listening[-1]
        sock = self._inherited.take("udp", host, beside.port)
        if sock is not None:
            self._of_all.append(Handed("udp", host, beside.port, sock))
        else:
            self._quic_places.append((host, beside.port))
        self.listening.append(Listening("derp+quic", beside.host, beside.port))

    def _open_slot(self, slot: int) -> None:
        """Bind the ports of a worker, unless they are: all or none.  Raises ConfigError, and HandoverError when no
        worker is wanted any more."""
        if self._is_draining:
            raise HandoverError("all workers leave")
        if self._slots[slot]:
            return
        try:
            for kind, host, port, bound_port in self._places:
                open_shared = open_listener if kind == "tcp" else open_udp
                self._slots[slot].append(Handed(kind, host, port, open_shared(host, bound_port, is_shared=True)))
            for host, port in self._quic_places if slot == QUIC_SLOT else ():
                self._slots[slot].append(Handed("udp", host, port, open_udp(host, port)))
        except ConfigError:
            self._close_slot(slot)
            raise

    def _close_slot(self, slot: int) -> None:
        for handed in self._slots[slot]:
            handed.sock.close()
        self._slots[slot] = []

    def close(self) -> None:
        """Close the ports here; workers have their own."""
        for slot in range(len(self._slots)):
            self._close_slot(slot)
        for handed in self._of_all:
            handed.sock.close()
        self._of_all.clear()

    # --- workers

    async def run(self, *, task_status: trio.TaskStatus["Supervisor"] = trio.TASK_STATUS_IGNORED) -> None:
        """Start the workers and keep them going, until drained or cancelled.  Started when all serve."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            async with trio.open_nursery() as starting:
                for slot in range(len(self._slots)):
                    starting.start_soon(self._begin, slot)
            nursery.start_soon(self._watch_for_stuck)
            if self._keeper is not None:
                nursery.start_soon(self._keeper.run)
            task_status.started(self)
            await self.drained.wait()
            nursery.cancel_scope.cancel()

    async def _begin(self, slot: int) -> None:
        async with self._changing[slot]:
            self._tell_if_alone(await self._start(slot))

    async def _start(self, slot: int, more: Sequence[Handed] = ()) -> _Process:
        """A new worker with the ports of `slot`, and `more`.  Raises HandoverError, ConfigError."""
        self._open_slot(slot)
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        worker = _Process(next(self._numbers), slot, ours)
        generated = self.tls.generated if self.tls is not None and self.tls.config.self_signed else None
        worker.send("place", worker.number, slot, len(self._slots), self.config.private_key.raw, generated)
        for sibling in self.workers:
            here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
            with here, there:
                worker.send_socket(here, "sibling", sibling.number)
                sibling.send_socket(there, "sibling", worker.number)
        worker.send("serve")
        self.workers.append(worker)
        if self._keeper is not None:
            _send_proof(worker, self._keeper)
        try:
            with theirs:
                worker.process = await hand_over(
                    [*self._slots[slot], *self._of_all, *more],
                    self.command,
                    more={WORKER_VARIABLE: theirs.fileno()},
                    start_new_session=True,  # Ctrl-C is for us to pass on
                )
        except BaseException:
            self._forget(worker)
            raise
        worker.alive_at = worker.started_at = trio.current_time()
        if self._is_draining:  # since it was begun: nobody told it
            worker.process.send_signal(signal.SIGTERM)
        self._nursery.start_soon(self._keep, worker, worker.process)
        self._nursery.start_soon(self._listen_to, worker)
        return worker

    async def _listen_to(self, worker: _Process) -> None:
        while True:
            try:
                message = await worker.line.recv(LINE_BYTES)
            except OSError:
                return
            if not message:
                return
            worker.alive_at = trio.current_time()
            match msgpack.unpackb(message)[0]:
                case "reloaded":
                    worker.reloaded.set()
                case "shown":
                    worker.proofs_shown += 1

    async def _keep(self, worker: _Process, process: trio.Process) -> None:
        """Wait until a worker ends, and replace it if nobody asked it to."""
        status = await process.wait()
        self._forget(worker)
        worker.ended.set()
        if worker.is_leaving or self._is_draining:
            return
        slot = worker.slot
        if trio.current_time() - worker.started_at > _SETTLED_SECONDS:
            self._failures[slot] = 0
        told = fields(event="worker_ended", worker=worker.number, status=status)
        _log.error(
            "! %s ended by itself (%s): a new one takes its place", worker.name, _status_text(status), extra=told
        )
        while True:
            wait = min(_FIRST_RESTART_SECONDS * 2 ** min(self._failures[slot], 20), _MAX_RESTART_SECONDS)
            self._failures[slot] += 1
            async with self._changing[slot]:
                if wait > _KEEP_PORTS_SECONDS and not self._is_served(slot):
                    self._close_slot(slot)
            await trio.sleep(wait)
            async with self._changing[slot]:
                if await self._replaced(worker):
                    return

    async def _replaced(self, worker: _Process) -> bool:
        """Start a worker in the place of one that ended, unless none is wanted any more; False: it did not come up."""
        if self._is_draining or self._is_served(worker.slot):
            return True
        try:
            replacement = await self._start(worker.slot)
        except (HandoverError, ConfigError) as error:
            self._say_why_not(f"no new worker in the place of {worker.name}", error)
            return False
        self._tell_if_alone(replacement)
        _log.info("= %s serves in the place of %s", replacement.name, worker.name)
        return True

    def _say_why_not(self, what: str, error: DerpError) -> None:
        if self._is_draining:  # and has closed the ports that a worker was about to be given
            _log.info("= %s: all workers leave", what)
        else:
            _log.error("! %s: %s", what, error)

    def _tell_if_alone(self, worker: _Process) -> None:
        """Its sockets were handed over, but nobody else serves on them."""
        if not any(other.slot == worker.slot for other in self.workers if other is not worker):
            worker.send("sockets", False)

    def _is_served(self, slot: int) -> bool:
        """Whether a worker that stays has the slot."""
        return any(worker.slot == slot and not worker.is_leaving for worker in self.workers)

    def _tell_of_proof(self, keeper: "CertificateKeeper") -> None:
        for worker in self.workers:
            _send_proof(worker, keeper)

    async def _wait_shown(self) -> None:
        """Until all workers show the last proof: the authority may come to any of them."""
        with trio.move_on_after(_SHOW_SECONDS):
            while any(worker.proofs_shown < worker.proofs_sent for worker in self.workers):  # noqa: ASYNC110
                await trio.sleep(_LOOK_SECONDS)

    def _tell_of_certificate(self) -> None:
        for worker in self.workers:
            worker.send("look")

    def _forget(self, worker: _Process) -> None:
        """It has ended, or has never served."""
        self.workers.remove(worker)
        worker.raw_line.close()
        if self._is_draining and not self.workers:
            self.drained.set()

    async def _watch_for_stuck(self) -> None:
        while True:
            await trio.sleep(STUCK_SECONDS / 4)
            now = trio.current_time()
            for worker in self.workers:
                if now - worker.alive_at > STUCK_SECONDS and worker.process is not None:
                    _log.error("! %s has given no sign of life for %.0f s and is ended", worker.name, STUCK_SECONDS)
                    worker.process.kill()

    # --- what signals ask for

    async def obey(self, signals: AsyncIterator[int]) -> None:
        """Do what signals ask, until cancelled."""
        async with trio.open_nursery() as nursery:
            async for number in signals:
                received = signal.Signals(number)
                match received:
                    case signal.SIGTERM | signal.SIGINT:
                        self._drain(received.name)
                    case signal.SIGHUP:
                        nursery.start_soon(self._one_at_a_time, self._reload)
                    case signal.SIGUSR1:
                        names = ", ".join(f"{worker.name} is process {_pid(worker)}" for worker in self.workers)
                        _log.info("= SIGUSR1: %s", names)
                        self._signal(signal.SIGUSR1)
                    case signal.SIGUSR2:
                        nursery.start_soon(self._one_at_a_time, self._replace_all)

    async def _one_at_a_time(self, work: Callable[[], Awaitable[None]]) -> None:
        async with self._busy:
            if not self._is_draining:
                await work()

    def _signal(self, number: signal.Signals) -> None:
        for worker in self.workers:
            if worker.process is not None:
                worker.process.send_signal(number)

    def _drain(self, name: str) -> None:
        """All workers leave together: a client that one of them sent away to another would be sent away again."""
        if self._is_draining:
            _log.warning("! second %s: leaving at once", name)
        else:
            _log.info("= %s: draining", name)
            notify_manager("STOPPING=1")
        self._is_draining = True
        self.close()
        self._signal(signal.SIGTERM)
        if not self.workers:
            self.drained.set()

    async def _reload(self) -> None:
        _log.info("= SIGHUP: reading settings and files again")
        try:
            config = self._reread()
        except ConfigError as error:
            _log.error("! the settings stay as they were: %s", error)
            return
        notify_manager("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")
        set_level(config.log_level)
        if self._keeper is not None:
            self._keeper.retry_now()
        for worker in tuple(self.workers):
            worker.reloaded = trio.Event()
            worker.send("reload")
            with trio.move_on_after(_RELOAD_SECONDS) as scope:
                await worker.reloaded.wait()
            if scope.cancelled_caught:
                _log.error("! %s does not say that it has read its settings again", worker.name)
        notify_manager("READY=1")

    async def _replace_all(self) -> None:
        """Successors for all first: whoever is sent away then comes to one that stays.

        The first slot's is the last to start and the old one the first to leave: both read QUIC's port in between.
        """
        _log.info("= SIGUSR2: handing over to new workers")
        async with contextlib.AsyncExitStack() as held:
            for changing in self._changing:
                await held.enter_async_context(changing)
            old = tuple(sorted(self.workers, key=lambda worker: worker.slot))
            new: list[_Process] = []
            channels: dict[int, socket.socket] = {}  # by slot: by which clients go there
            for worker in old:
                worker.send("sockets", True)
            try:
                for slot in reversed(range(len(self._slots))):
                    channel, theirs = open_channel()
                    if channel is not None:
                        channels[slot] = held.enter_context(channel)
                    with contextlib.ExitStack() as passed:
                        for one in theirs:
                            passed.enter_context(one.sock)
                        new.append(await self._start(slot, theirs))
            except (HandoverError, ConfigError) as error:
                self._say_why_not("nobody to hand over to, and the workers go on", error)
                staying = {worker.slot for worker in old if not worker.ended.is_set()}
                old, new = tuple(worker for worker in new if worker.slot in staying), []
                channels.clear()
            for worker in old:
                worker.is_leaving = True
                if worker.slot in channels:
                    worker.send_socket(channels[worker.slot], "channel")
                worker.send("close")
        for worker in old:
            worker.send("leave")
            await worker.ended.wait()
        if new:
            _log.info("= %s serve from now on", ", ".join(worker.name for worker in new))


async def supervise(supervisor: Supervisor, started: Callable[[Supervisor], None]) -> None:
    """Run a supervisor that is open as signals ask, until it has drained.  `started` tells people what is served."""
    with trio.open_signal_receiver(*SIGNALS) as signals:
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(supervisor.obey, signals)
                await nursery.start(supervisor.run)
                started(supervisor)
                notify_manager("READY=1")
                await supervisor.drained.wait()
                nursery.cancel_scope.cancel()
        finally:
            supervisor.close()


def _send_proof(worker: _Process, keeper: "CertificateKeeper") -> None:
    worker.proofs_sent += 1
    worker.send("proof", keeper.digest, keeper.challenges, keeper.failures)


def _pid(worker: _Process) -> int:
    return worker.process.pid if worker.process is not None else 0


def _status_text(status: int) -> str:
    return f"by {signal.Signals(-status).name}" if status < 0 else f"status {status}"
