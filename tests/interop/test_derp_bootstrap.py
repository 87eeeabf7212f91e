"""The rollout of a bootstrap name, read from a real name server (of Go's DNS library) as the relay reads it."""

import json
import socket
import urllib.request

import pytest
import trio
import trio.testing

from derp.errors import ConnectError
from derp.server.bootstrap import BootstrapDns
from derp.transport.dns import look_up_txt
from tests.support.authority import Authority, open_authority
from tests.support.relays import free_port

pytestmark = pytest.mark.interop


async def publish(authority: Authority, operation: str, **values: str) -> None:
    request = urllib.request.Request(f"{authority.dns_management}/{operation}", json.dumps(values).encode())
    await trio.to_thread.run_sync(lambda: urllib.request.urlopen(request, timeout=10).close())


async def test_the_records_of_a_name() -> None:
    async with open_authority(free_port(socket.SOCK_STREAM)) as authority:
        servers = [authority.name_server]
        assert await look_up_txt("rollout.test", servers) == []
        await publish(authority, "set-txt", host="rollout.test.", value="50")
        assert await look_up_txt("rollout.test", servers) == ["50"]
        assert await look_up_txt("rollout.test.", servers) == ["50"]
        await publish(authority, "set-txt", host="rollout.test.", value="x" * 200)
        assert await look_up_txt("rollout.test", servers) == ["50", "x" * 200]
        await publish(authority, "set-servfail", host="sick.test.")
        with pytest.raises(ConnectError, match="error 2"):
            await look_up_txt("sick.test", servers)


async def test_a_relay_answers_as_far_as_the_record_says() -> None:
    async with open_authority(free_port(socket.SOCK_STREAM)) as authority, trio.open_nursery() as nursery:
        await publish(authority, "set-txt", host="rollout.test.", value="50")
        read = trio.Event()

        async def look_up(name: str) -> list[str]:
            records = await look_up_txt(name, [authority.name_server])
            read.set()
            return records

        dns = BootstrapDns([], [("127.0.0.1", "rollout.test")], look_up)
        nursery.start_soon(dns.refresh_forever)
        with trio.fail_after(60):
            await read.wait()
        await trio.testing.wait_all_tasks_blocked()
        # the first is drawn at 26.2 %, the second at 94.1 %
        assert dns.answer("127.0.0.1", "192.0.2.2") == {"127.0.0.1": ["127.0.0.1"]}
        assert dns.answer("127.0.0.1", "192.0.2.1") is None
        nursery.cancel_scope.cancel()
