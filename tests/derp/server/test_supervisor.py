"""A relay of several real processes, seen by clients on real sockets."""

import contextlib
import json
import os
import signal
import socket
import ssl
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
from cryptography import x509

from derp.admission.chain import check
from derp.client.client import DerpClient, open_derp_client
from derp.client.dial import DialOptions
from derp.config import RelayConfig
from derp.errors import ConnectError, ListenError, TransportError
from derp.keys import MeshKey, NodePrivate
from derp.protocol.messages import PeerGone, PeerPresent, RecvPacket, Restarting
from derp.protocol.stun import encode_request, parse_response
from derp.server.handover import Inherited
from derp.server.supervisor import Supervisor
from derp.transport.listen import open_listener, open_udp
from derp.transport.tls import certificate_pin
from tests.derp.server.workers_world import call_many, clients_by_worker, open_workers, page, write_settings
from tests.derp.server.world import (
    HOST,
    PATIENCE_SECONDS,
    SELF_SIGNED,
    Bystanders,
    Caller,
    ask,
    call,
    dial,
    relay_config,
)
from tests.support.certificates import issue
from tests.support.relays import free_port

# All on one of two workers: once in 2,000 runs, and then a test is only weaker.
MANY = 12


async def test_clients_of_different_workers_talk(tmp_path: Path) -> None:
    async with open_workers(tmp_path) as relay, call_many(relay, MANY) as callers:
        for caller in callers:
            for other in callers:
                await caller.send(other.key, b"from", caller.key[:4])
        for caller in callers:
            got = [await caller.receive_a(RecvPacket) for _ in range(2 * MANY)]
            for other in callers:
                assert [one.packet for one in got if one.src == other.key] == [b"from", other.key[:4]]


async def test_whoever_heard_of_a_client_is_told_when_it_leaves(tmp_path: Path) -> None:
    async with open_workers(tmp_path) as relay, call_many(relay, MANY) as callers:
        leaver, *others = callers
        for caller in others:
            await leaver.send(caller.key, b"hello")
            assert (await caller.receive_a(RecvPacket)).src == leaver.key
        await leaver.aclose()
        for caller in others:
            assert (await caller.receive_a(PeerGone)).key == leaver.key


async def test_a_watcher_hears_of_the_clients_of_all_workers(tmp_path: Path) -> None:
    write_settings(tmp_path, f'mesh_psk_file = "{tmp_path}/mesh"\n')
    (tmp_path / "mesh").write_text("5f" * 32)
    os.chmod(tmp_path / "mesh", 0o600)
    async with open_workers(tmp_path) as relay, call_many(relay, MANY) as callers:
        watcher = await call(relay, mesh_key=MeshKey(bytes.fromhex("5f" * 32)))
        watcher.core.send_watch_conns()
        await watcher.flush()
        missing = {caller.key for caller in callers}
        while missing:
            missing.discard((await watcher.receive_a(PeerPresent)).key)
        for caller in callers:
            await caller.aclose()
        missing = {caller.key for caller in callers}
        while missing:
            missing.discard((await watcher.receive_a(PeerGone)).key)
        await watcher.aclose()


async def test_every_worker_answers_stun(tmp_path: Path) -> None:
    async with open_workers(tmp_path) as relay:
        port = next(one.port for one in relay.listening if one.kind == "stun")
        for number in range(MANY):
            sock = trio.socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            with sock:
                request = encode_request(number.to_bytes(12, "big"))
                await sock.sendto(request, (HOST, port))
                answer = await sock.recv(1500)
                assert parse_response(answer) == (
                    number.to_bytes(12, "big"),
                    b"\x7f\x00\x00\x01",
                    sock.getsockname()[1],
                )
        text = await page(relay, "/metrics")
        assert f'derp_stun_requests_total{{disposition="success"}} {MANY}.0' in text


async def test_a_worker_that_dies_is_replaced_and_its_clients_come_back(tmp_path: Path) -> None:
    async with open_workers(tmp_path) as relay, call_many(relay, MANY) as callers:
        victim = relay.workers[0]
        lost = set((await clients_by_worker(relay))[victim.slot])
        assert victim.process is not None
        victim.process.kill()
        await victim.ended.wait()
        again, others = [], [caller for caller in callers if caller.key not in lost]
        for caller in callers:
            if caller.key in lost:
                await caller.wait_closed()
                again.append(await call(relay))  # which waits for the new worker, if the kernel gives it to that one
        while len(relay.workers) < 2 or relay.workers[1].process is None:  # noqa: ASYNC110  # other processes
            await trio.sleep(0.01)
        assert {worker.slot for worker in relay.workers} == {0, 1}
        for caller in again:
            for other in others:
                await caller.send(other.key, b"back")
                assert (await other.receive_a(RecvPacket)).src == caller.key
            await caller.aclose()


async def test_settings_are_read_again_by_one_worker_after_the_other(tmp_path: Path) -> None:
    async with open_workers(tmp_path) as relay, call_many(relay, MANY) as callers, obeying(relay) as send_signal:
        by_worker = await clients_by_worker(relay)
        denied = [next(caller for caller in callers if caller.key in keys) for keys in by_worker.values()]
        write_settings(tmp_path, "deny_keys = " + json.dumps([f"nodekey:{one.key.hex()}" for one in denied]) + "\n")

        await send_signal(signal.SIGHUP)

        for caller in denied:
            await caller.wait_closed()
        for caller in callers:
            if caller not in denied:
                await caller.ping()


async def test_settings_that_make_no_sense_reach_no_worker(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with open_workers(tmp_path) as relay, call_many(relay, 2) as callers, obeying(relay) as send_signal:
        write_settings(tmp_path, "deny_keys = 7\n")
        await send_signal(signal.SIGHUP)
        while "the settings stay as they were" not in caplog.text:  # noqa: ASYNC110  # other processes
            await trio.sleep(0.01)
        for caller in callers:
            await caller.ping()


async def test_clients_go_to_successors_with_their_connections_and_lose_nothing(tmp_path: Path) -> None:
    async with open_workers(tmp_path) as relay, call_many(relay, MANY) as callers, obeying(relay) as send_signal:
        old, is_over = list(relay.workers), False

        async def talk(pair: Bystanders) -> None:
            while not is_over:
                await pair.go_on(1)
                await trio.sleep(0.01)  # so that successors get a turn

        async with trio.open_nursery() as nursery:
            for one, other in zip(callers[::2], callers[1::2], strict=True):
                nursery.start_soon(talk, Bystanders(one, other))
            await send_signal(signal.SIGUSR2)
            for worker in old:
                await worker.ended.wait()
            is_over = True

        assert sorted(worker.slot for worker in relay.workers) == [0, 1]
        assert not {worker.number for worker in old} & {worker.number for worker in relay.workers}
        assert f"derp_clients {MANY}.0" in await page(relay, "/metrics")
        for caller in callers:
            for other in callers:
                await caller.send(other.key, b"still here")
        for caller in callers:
            assert {(await caller.receive_a(RecvPacket)).src for _ in callers} == {other.key for other in callers}
        leaver, *others = callers
        await leaver.aclose()
        for caller in others:
            assert (await caller.receive_a(PeerGone)).key == leaver.key


async def test_successors_serve_before_anybody_is_sent_away(tmp_path: Path) -> None:
    write_settings(tmp_path, "tls_self_signed = true", "http_port = -1")  # OpenSSL's TLS cannot go with its clients
    privates = [NodePrivate.generate() for _ in range(MANY)]
    async with open_workers(tmp_path) as relay, obeying(relay) as send_signal:
        old = list(relay.workers)
        again: list[Caller] = []

        async def come_back(caller: Caller, private: NodePrivate) -> None:
            await caller.receive_a(Restarting)
            await caller.wait_closed()
            await caller.aclose()
            again.append(await call(relay, private=private))

        async with trio.open_nursery() as nursery:
            for private in privates:
                nursery.start_soon(come_back, await call(relay, private=private), private)
            await send_signal(signal.SIGUSR2)
        for worker in old:
            await worker.ended.wait()

        assert len(relay.workers) == 2
        assert not {worker.number for worker in old} & {worker.number for worker in relay.workers}
        for caller in again:
            await caller.send(again[0].key, b"all are here")
            assert (await again[0].receive_a(RecvPacket)).src == caller.key
        for caller in again:
            await caller.aclose()


async def test_a_successor_that_does_not_serve_changes_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with open_workers(tmp_path) as relay, call_many(relay, MANY) as callers, obeying(relay) as send_signal:
        old = list(relay.workers)
        relay.command = [sys.executable, "-c", "raise SystemExit(3)"]

        await send_signal(signal.SIGUSR2)
        while "nobody to hand over to" not in caplog.text:  # noqa: ASYNC110  # other processes
            await trio.sleep(0.01)

        assert relay.workers == old
        for caller in callers:
            await caller.ping()


async def test_a_worker_that_dies_while_all_are_replaced_leaves_no_place_empty_and_none_taken_twice(
    tmp_path: Path,
) -> None:
    ends = tmp_path / "ends"
    os.mkfifo(ends)
    open_for_writing = partial(os.open, ends, os.O_WRONLY)  # waits until the other end is open
    async with open_workers(tmp_path) as relay, obeying(relay) as send_signal:
        old, command = list(relay.workers), relay.command
        # A successor reads there before it becomes one.
        read_first = f"import os, sys; open({str(ends)!r}).read(); os.execv(sys.executable, {command!r})"
        relay.command = [sys.executable, "-c", read_first]
        await send_signal(signal.SIGUSR2)
        held = await trio.to_thread.run_sync(open_for_writing, abandon_on_cancel=True)
        for victim in old:
            victim.process.kill()
            await victim.ended.wait()
        ends.unlink()
        ends.touch()  # the second one need not wait
        os.close(held)
        while len(relay.workers) < 2:  # noqa: ASYNC110  # other processes
            await trio.sleep(0.01)
        async with relay._changing[0], relay._changing[1]:
            assert sorted(worker.slot for worker in relay.workers) == [0, 1]
            assert not {worker.number for worker in old} & {worker.number for worker in relay.workers}


async def test_all_are_drained_together(tmp_path: Path) -> None:
    async with open_workers(tmp_path) as relay, call_many(relay, MANY) as callers, obeying(relay) as send_signal:
        await send_signal(signal.SIGTERM)
        for caller in callers:
            await caller.receive_a(Restarting)
            await caller.wait_closed()
            await caller.aclose()
        await relay.drained.wait()
        assert relay.workers == []
        with pytest.raises(ConnectError):
            await call(relay)


async def test_a_drain_ends_when_the_last_worker_is_one_that_never_served(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ends = tmp_path / "ends"
    os.mkfifo(ends)
    open_for_writing = partial(os.open, ends, os.O_WRONLY)  # waits until the other end is open
    async with open_workers(tmp_path) as relay, obeying(relay) as send_signal:
        victim, other = relay.workers
        relay.command = [sys.executable, "-c", f"open({str(ends)!r}).read()"]
        assert victim.process is not None
        victim.process.kill()
        await victim.ended.wait()
        held = await trio.to_thread.run_sync(open_for_writing, abandon_on_cancel=True)
        caplog.clear()
        await send_signal(signal.SIGTERM)
        await other.ended.wait()
        assert not relay.drained.is_set(), "one is still being started"
        os.close(held)
        await relay.drained.wait()
        assert relay.workers == []
        assert not [record for record in caplog.records if record.levelname == "ERROR"], "nobody did anything wrong"


async def test_a_certificate_that_is_made_at_the_start_is_one_for_all(tmp_path: Path) -> None:
    write_settings(tmp_path, "tls_self_signed = true", "http_port = -1")
    async with open_workers(tmp_path) as relay:
        assert relay.tls is not None
        shown = {await shown_certificate(relay) for _ in range(MANY)}
        assert [certificate_pin(x509.load_der_x509_certificate(one)) for one in shown] == [relay.tls.pin]


async def test_every_worker_shows_what_an_authority_looks_for(tmp_path: Path) -> None:
    write_settings(
        tmp_path, 'cert_mode = "letsencrypt"', 'hostname = "relay.example"', f'cert_dir = "{tmp_path}"',
        f"http_port = {free_port(socket.SOCK_STREAM)}", 'acme_directory_url = "https://127.0.0.1:1/"',
    )  # fmt: skip
    async with open_workers(tmp_path) as relay:
        keeper = relay._keeper
        assert keeper is not None
        before: set[bytes] = set()
        while len(before) < 2:  # each has made a temporary one for itself
            before.add(await shown_certificate(relay, "acme-tls/1"))
        keeper.digest, keeper.challenges["token"] = b"d" * 32, b"its body"
        keeper._changed(keeper)
        await keeper.wait_shown()
        seen: set[bytes] = set()
        while len(seen) < 2:  # other processes, of which the kernel chooses one
            seen.add(await shown_certificate(relay, "acme-tls/1"))
        assert all(b"d" * 32 in shown for shown in seen)
        request = b"GET /.well-known/acme-challenge/token HTTP/1.1\r\nHost: relay.example\r\nConnection: close\r\n\r\n"
        for _ in range(MANY):
            assert (await ask(relay, request, "http")).endswith(b"its body")

        issued = issue("relay.example")
        for suffix, content in (("key", issued.key_pem), ("crt", issued.pem)):
            (tmp_path / f"relay.example.{suffix}").write_bytes(content)
        keeper.digest = None
        keeper._changed(keeper)
        keeper._installed()
        own: set[bytes] = set()
        while own != {issued.der}:
            own = {await shown_certificate(relay) for _ in range(MANY)}


async def test_the_authority_has_to_wait_for_every_worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("derp.server.supervisor._SHOW_SECONDS", PATIENCE_SECONDS)
    write_settings(
        tmp_path, 'cert_mode = "letsencrypt"', 'hostname = "relay.example"', f'cert_dir = "{tmp_path}"',
        "http_port = -1", 'acme_directory_url = "https://127.0.0.1:1/"',
    )  # fmt: skip
    async with open_workers(tmp_path) as relay, trio.open_nursery() as nursery:
        keeper, (slow, other) = relay._keeper, relay.workers
        assert keeper is not None
        assert slow.process is not None
        await keeper.wait_shown()
        slow.process.send_signal(signal.SIGSTOP)
        keeper._changed(keeper)
        is_shown = trio.Event()

        async def wait() -> None:
            await keeper.wait_shown()
            is_shown.set()

        nursery.start_soon(wait)
        while other.proofs_shown < other.proofs_sent:  # noqa: ASYNC110  # another process
            await trio.sleep(0.01)
        assert not is_shown.is_set()
        slow.process.send_signal(signal.SIGCONT)
        await is_shown.wait()
        assert slow.proofs_shown == slow.proofs_sent


async def shown_certificate(relay: Supervisor, *protocols: str) -> bytes:
    """What some worker shows to who offers these protocols, DER."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(protocols)
    stream = trio.SSLStream(await dial(relay), context, server_hostname="relay.example")
    await stream.do_handshake()
    shown = stream.getpeercert(binary_form=True)
    await trio.aclose_forcefully(stream)
    assert isinstance(shown, bytes)
    return shown


async def test_who_comes_by_quic_is_with_one_worker_and_reaches_all(tmp_path: Path) -> None:
    write_settings(tmp_path, "tls_self_signed = true", "http_port = -1", "quic = true")
    async with open_workers(tmp_path) as relay, call_many(relay, MANY) as callers:
        over_quic = await call(relay, "quic")
        await over_quic.ping()
        by_worker = await clients_by_worker(relay)
        assert over_quic.key in by_worker[0]
        for caller in callers:
            await caller.send(over_quic.key, b"to QUIC")
            assert (await over_quic.receive_a(RecvPacket)).src == caller.key
            await over_quic.send(caller.key, b"from QUIC")
            assert (await caller.receive_a(RecvPacket)).src == over_quic.key
        await over_quic.aclose()


def with_quic(**changes: Any) -> RelayConfig:
    return relay_config(tls=SELF_SIGNED, quic=True, workers=2, **changes)


def test_the_port_of_quic_is_told_of() -> None:
    supervisor = Supervisor(with_quic(), with_quic)
    supervisor.open()
    with contextlib.closing(supervisor):
        ports = {one.kind: one.port for one in supervisor.listening}
        assert ports["derp+quic"] == ports["derp+tls"]


def test_the_port_of_quic_may_come_from_systemd() -> None:
    tcp = open_listener(HOST, 0)
    port = tcp.getsockname()[1]
    udp = open_udp(HOST, port)
    inherited = Inherited(from_systemd=(tcp, udp))
    supervisor = Supervisor(with_quic(listen=((HOST, port),)), with_quic, inherited=inherited)
    supervisor.open()
    with contextlib.closing(supervisor):
        assert [one.sock for one in supervisor._of_all] == [tcp, udp]
        assert all(one.sock.fileno() >= 0 for one in supervisor._of_all)


def test_a_port_that_another_program_has_leaves_no_worker_with_a_part_of_them() -> None:
    supervisor = Supervisor(with_quic(), with_quic)
    supervisor.open()
    with contextlib.closing(supervisor):
        wanted = [one[:3] for one in supervisor._slots[0]]
        supervisor._close_slot(0)
        with open_udp(HOST, supervisor.listening[0].port), pytest.raises(ListenError):
            supervisor._open_slot(0)
        supervisor._open_slot(0)
        assert [one[:3] for one in supervisor._slots[0]] == wanted


async def test_who_serves_quic_is_replaced_last_and_leaves_first(tmp_path: Path) -> None:
    async with open_workers(tmp_path) as relay, obeying(relay) as send_signal:
        first = next(worker for worker in relay.workers if worker.slot == 0)
        first.process.kill()
        await first.ended.wait()
        while len(relay.workers) < 2 or relay.workers[1].process is None:  # noqa: ASYNC110  # other processes
            await trio.sleep(0.01)
        old, left = list(relay.workers), list[int]()
        assert [worker.slot for worker in old] == [1, 0]

        async def note_end(worker: Any) -> None:
            await worker.ended.wait()
            left.append(worker.slot)

        async with trio.open_nursery() as nursery:
            for worker in old:
                nursery.start_soon(note_end, worker)
            await send_signal(signal.SIGUSR2)

        assert left == [0, 1]
        assert [worker.slot for worker in sorted(relay.workers, key=lambda one: one.number)] == [1, 0]


async def send_for_ever(client: DerpClient) -> None:
    """Until somebody says that nobody is there."""
    while True:
        await client.send(bytes(32), b"is anybody there")
        await trio.sleep(0.1)


async def test_who_was_with_a_worker_that_died_by_quic_is_told_by_the_next(tmp_path: Path) -> None:
    write_settings(tmp_path, "tls_self_signed = true", "http_port = -1", "quic = true")
    async with open_workers(tmp_path) as relay:
        url = f"https://{HOST}:{relay.listening[0].port}"
        options = DialOptions(insecure_for_tests=True, only_quic=True, environment=None)
        async with open_derp_client(url, NodePrivate.generate(), options=options) as client:
            await client.ping()
            victim = next(worker for worker in relay.workers if worker.slot == 0)
            assert victim.process is not None
            victim.process.kill()
            with pytest.raises(TransportError, match="the relay has started anew"):
                await send_for_ever(client)


async def test_all_write_one_log_of_decisions(tmp_path: Path) -> None:
    log = tmp_path / "log"
    write_settings(tmp_path, f'admission_log = "{log}"')
    async with (
        open_workers(tmp_path) as relay,
        call_many(relay, MANY) as callers,
        obeying(relay) as send_signal,
    ):
        keys = {caller.key.hex() for caller in callers}
        await send_signal(signal.SIGTERM)
        for caller in callers:
            await caller.aclose()
        await relay.drained.wait()
    lines = log.read_text().splitlines(keepends=True)
    assert check(lines).fault == ""
    told = [json.loads(line) for line in lines]
    assert {one["key"].removeprefix("nodekey:") for one in told if one["event"] == "admitted"} == keys
    assert sum(one["event"] == "started" for one in told) == 2


async def test_a_second_relay_at_the_same_port_does_not_start(tmp_path: Path) -> None:
    async with open_workers(tmp_path) as relay:
        port = relay.listening[0].port
        config = relay_config(listen=((HOST, port),), workers=2)
        with pytest.raises(ListenError, match="cannot listen on TCP"):
            Supervisor(config, lambda: config).open()


async def test_what_one_worker_was_answered_no_other_asks(tmp_path: Path) -> None:
    async with trio.open_nursery() as nursery:
        asked: list[bytes] = []
        port = await nursery.start(serve_allowing, asked)
        write_settings(tmp_path, f'verify_client_url = "http://{HOST}:{port}/"')
        async with open_workers(tmp_path) as relay:
            private, workers, callers = NodePrivate.generate(), set[int](), []
            while len(workers) < 2:
                callers.append(await call(relay, private=private))
                await callers[-1].ping()
                workers = {slot for slot, keys in (await clients_by_worker(relay)).items() if callers[0].key in keys}
            own_checks = [body for body in asked if private.public().raw.hex().encode() not in body]
            assert len(asked) - len(own_checks) == 1
            for caller in callers:
                await caller.aclose()
        nursery.cancel_scope.cancel()


async def serve_allowing(asked: list[bytes], task_status: trio.TaskStatus[int]) -> None:
    """An admission URL that lets everybody in."""

    async def answer(stream: trio.SocketStream) -> None:
        async with stream:
            request = b""
            while b"Source" not in request:
                request += await stream.receive_some()
            asked.append(request)
            body = b'{"Allow": true}'
            await stream.send_all(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 15\r\n\r\n" + body)

    listeners = await trio.open_tcp_listeners(0, host=HOST)
    task_status.started(listeners[0].socket.getsockname()[1])
    await trio.serve_listeners(answer, listeners)


@asynccontextmanager
async def obeying(relay: Supervisor) -> AsyncIterator[Callable[[int], Awaitable[None]]]:
    """Signals as the process would get them."""
    send, receive = trio.open_memory_channel[int](0)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(relay.obey, receive)
        yield send.send
        nursery.cancel_scope.cancel()
