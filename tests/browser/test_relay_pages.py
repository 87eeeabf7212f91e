"""The relay's pages in a real browser: they fit a laptop and a phone, sort, filter, lead on, and load nothing."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import pytest

from derp.protocol.messages import NotePreferred, encode
from tests.derp.server.world import Caller, call, open_server, port_of, relay_config
from tests.support.browser import LAPTOP, PHONE, Window, look, require_browser

COUNT = 30


@dataclass(frozen=True)
class Busy:
    """A relay on which something happens."""

    url: str
    callers: list[Caller]

    def key(self, number: int) -> str:
        return f"nodekey:{self.callers[number].key.hex()}"


@asynccontextmanager
async def busy_relay() -> AsyncIterator[Busy]:
    require_browser()
    async with open_server(relay_config(hostname="relay.example")) as server:
        callers = [await call(server) for _ in range(COUNT)]
        for number, caller in enumerate(callers[:12]):
            # The later, the more.
            await caller.send(callers[(7 * number + 1) % COUNT].key, *[bytes(1000)] * (number + 1))
            await caller.ping()
        await callers[0].send(bytes(32), b"to nobody")
        await callers[0].write(encode(NotePreferred(True)))
        await callers[0].ping()
        for number, client in enumerate(server.relay.router.clients.values()):
            client.app_name = ("tailcat", "coder-agent", "")[number % 3]
        yield Busy(f"http://127.0.0.1:{port_of(server)}", callers)
        for caller in callers:
            await caller.aclose()


def column(window: Window, name: str) -> list[str]:
    return window.texts(f'td[data-label="{name}"]')


@pytest.mark.parametrize(("name", "size"), [("laptop", LAPTOP), ("phone", PHONE)])
async def test_every_page_fits_and_loads_nothing(name: str, size: tuple[int, int]) -> None:
    async with busy_relay() as relay:
        why = f"/debug/why?from={relay.key(0)}&to={relay.key(1)}&format=html"

        def use(window: Window) -> None:
            for page, path in (
                ("overview", "/debug/"),
                ("clients", "/debug/clients/?all=1&sort=-rx"),
                ("search", "/debug/clients/"),
                ("one", f"/debug/clients/?key={relay.key(0)}"),
                ("why", why),
                ("home", "/"),
            ):
                window.go(relay.url + path)
                window.shoot(f"relay-{name}-{page}")
                assert window.overflow() <= 0, path
                assert window.complaints() == [], path

        await look(use, size)


async def test_on_a_phone_each_row_is_a_card_with_names_beside_its_values() -> None:
    async with busy_relay() as relay:

        def use(window: Window) -> None:
            window.go(relay.url + "/debug/clients/?all=1&sort=-rx&limit=1")
            assert not window.driver.find_element("css selector", "thead").is_displayed()
            (row,) = window.driver.find_elements("css selector", "tbody tr")
            assert row.size["width"] <= PHONE[0]
            label = "return getComputedStyle(document.querySelector('td[data-label=\"rx bytes\"]'), ':before').content"
            assert window.driver.execute_script(label) == '"rx bytes"'
            assert column(window, "rx bytes") == ["12,000"]

        await look(use, PHONE)


async def test_a_click_on_a_column_sorts_and_another_turns_it_round() -> None:
    async with busy_relay() as relay:

        def use(window: Window) -> None:
            window.go(relay.url + "/debug/")
            window.click("all of them")
            assert column(window, "rx bytes")[:3] == ["12,000", "11,000", "10,000"]
            window.click("rx bytes")
            assert column(window, "rx bytes")[:3] == ["0", "0", "0"]
            window.click("rx pkts")
            assert column(window, "rx pkts")[:2] == ["12", "11"]
            window.click("conn#")
            numbers = [int(number) for number in column(window, "conn#")]
            assert numbers == sorted(numbers)
            window.click("node key")
            assert column(window, "node key") == sorted(column(window, "node key"))

        await look(use)


async def test_page_by_page() -> None:
    async with busy_relay() as relay:

        def use(window: Window) -> None:
            window.go(relay.url + "/debug/clients/?all=1&limit=12")
            seen = column(window, "node key")
            window.click("next page (18 more)")
            seen += column(window, "node key")
            window.click("next page (6 more)")
            seen += column(window, "node key")
            assert len(set(seen)) == COUNT
            assert "next page" not in window.text()

        await look(use)


async def test_the_form_finds_by_app_and_by_network() -> None:
    async with busy_relay() as relay:

        def use(window: Window) -> None:
            window.go(relay.url + "/debug/")
            window.fill('form[action="/debug/clients/"]', app="tailcat", sort="conn")
            assert "10 of 10 connections" in window.text()
            assert set(column(window, "app")) == {"tailcat"}
            window.click("another search")
            window.fill("form", cidr="127.0.0.0/8")
            assert f"{COUNT} of {COUNT} connections" in window.text()
            window.go(relay.url + "/debug/clients/")
            window.fill("form", key="nonsense")
            assert "bad key 'nonsense'" in window.text()

        await look(use)


async def test_why_is_asked_in_a_form_and_answered_in_sentences() -> None:
    async with busy_relay() as relay:

        def use(window: Window) -> None:
            window.go(relay.url + "/debug/")
            window.fill('form[action="/debug/why"]', **{"from": relay.key(0), "to": relay.key(1)})
            assert "packets of the first have reached the second" in window.text()
            window.fill('form[action="/debug/why"]', **{"from": relay.key(1), "to": "nodekey:" + "00" * 32})
            assert "So:" in window.text()
            assert "unknown_dest" in window.text()

        await look(use)


async def test_a_page_of_somebody_else_reads_nothing_here() -> None:
    """DNS rebinding as a browser sees it: a stranger's name leads here, and what it asks for is closed."""
    async with busy_relay() as relay:
        port = relay.url.rpartition(":")[2]

        def use(window: Window) -> tuple[str, str]:
            window.go(f"http://evil.example:{port}/debug/")
            closed = window.text()
            window.go(f"http://relay.localhost:{port}/debug/")
            return closed, window.text()

        closed, opened = await look(use, LAPTOP, "--host-resolver-rules=MAP evil.example 127.0.0.1")
        assert closed.startswith("/debug/ is closed to who asks for 'evil.example")
        assert "relay.example" not in closed
        assert "relay.example" in opened
