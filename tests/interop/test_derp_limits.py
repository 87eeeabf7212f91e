"""Limits as genuine clients meet them: they are told, they lose nothing, also while other limits are read, and a tenant
that a ticket names has its own.
"""

import os
import signal
import time
from pathlib import Path

import pytest
import trio

from derp.admission.ticket import sign_ticket
from derp.keys import NodePrivate
from tests.interop.test_derp_advice import hears
from tests.interop.test_derp_invited import ISSUER, NAME, shown
from tests.support.peers import PATIENCE_SECONDS, open_peers
from tests.support.relays import open_relay

OTHERS = (
    '[node]\nbytes_per_second = "300KB"\n[tenants.default]\nbytes_per_second = "200KB"',
    "[client]\npackets_per_second = 100",
    "",
    '[tenants.other]\nweight = 5\n[node]\nbytes_per_second = "250KB"',
    '[client]\nbytes_per_second = "1MB"',
)
pytestmark = pytest.mark.interop


async def test_nothing_is_lost_while_other_limits_are_read(tmp_path: Path) -> None:
    limits = tmp_path / "limits.toml"
    limits.write_text('[client]\nbytes_per_second = "200KB"')
    async with open_relay("ours", extra=(f"--limits={limits}",)) as relay, open_peers() as peers:
        one, other = [await peers.connect(name, relay.url) for name in ("one", "other")]
        all_read = trio.Event()

        async def read_others() -> None:
            for number, text in enumerate(OTHERS, 1):
                limits.write_text(text)
                os.kill(relay.pid, signal.SIGHUP)
                while relay.output().count("= changed: --limits") < number:  # noqa: ASYNC110  # as `says` waits
                    await trio.sleep(0.05)
            all_read.set()

        with trio.fail_after(PATIENCE_SECONDS):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(read_others)
                while not all_read.is_set():
                    sent = await one.burst(other, count=150, size=1200, window=150)
                    assert (sent["sent"], sent["received"], sent["reordered"], sent["corrupt"]) == (150, 150, 0, 0)
            await hears(one, "this relay lets")


async def test_a_quota_is_told_and_then_acts(tmp_path: Path) -> None:
    limits = tmp_path / "limits.toml"
    limits.write_text("[client]\nbytes_per_day = 100_000\nused_up = 'refuse'")
    extra = (f"--limits={limits}", f"--ledger={tmp_path / 'ledger'}")
    async with open_relay("ours", extra=extra) as relay, open_peers() as peers:
        private = NodePrivate.generate()
        one = await peers.connect("one", relay.url)
        other = await peers.connect("other", relay.url, private_key=private.raw, reconnect=True)
        await one.send(one.key, bytes(45_000))  # to itself, so it counts twice
        await other.send(other.key, bytes(55_000))
        await hears(one, "this machine has used 90 % of the 100,000 bytes it may have relayed today (UTC); ask whoever")
        for _ in range(2):  # when it is sent away, and when it comes again
            await hears(other, "has used 110 % of the 100,000 bytes", "this relay takes it again when that is over")
        await one.ping()


async def test_the_tenant_of_a_ticket_has_its_own_limits(tmp_path: Path) -> None:
    issuers, limits, now = tmp_path / "issuers", tmp_path / "limits.toml", time.time()
    issuers.write_text(str(ISSUER.public()))
    limits.write_text("[tenants.acme]\nbytes_per_second = 50_000")
    private, friend = NodePrivate.generate(), NodePrivate.generate()
    extra = (f"--admission-keys={issuers}", f"--limits={limits}")
    async with (
        open_relay("ours", tls=True, hostname=NAME, extra=extra) as relay,
        open_peers(trusted=relay.certificate) as peers,
    ):
        tickets = {
            each: sign_ticket(ISSUER, each.public().raw, now, now + 86_400, tenant)
            for each, tenant in ((private, "acme"), (friend, "another-tenant-with-quite-a-long-name"))
        }
        one = await peers.connect("one", shown(relay, tickets[private]), private_key=private.raw)
        other = await peers.connect("other", shown(relay, tickets[friend]), private_key=friend.raw)
        for peer in (other, one):
            for _ in range(4):
                await peer.send(other.key, bytes(60_000))
        await hears(one, "this relay lets the machines of acme together send 50,000 bytes a second")
        await other.ping()
