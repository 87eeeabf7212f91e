"""The coordinator's pages in a real browser: the front page, those for operators, and their forms."""

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import pytest

from tests.support.browser import LAPTOP, PHONE, Window, look, require_browser
from tests.support.command import serving

COMMAND = [sys.executable, "-m", "tailnet", "serve", "--dev", "--json"]


@dataclass(frozen=True)
class Running:
    """A coordinator as a process, with the agent of its demo in the store."""

    url: str
    agent_id: str


@asynccontextmanager
async def coordinator() -> AsyncIterator[Running]:
    require_browser()
    where = ["--listen", "127.0.0.1:0", "--stun-listen", "127.0.0.1:0"]
    async with serving(*COMMAND, *where) as events:
        port = next(each["port"] for each in events if each["event"] == "listening" and each["kind"] != "stun")
        agent_id = next(each["agent_id"] for each in events if each["event"] == "demo")
        yield Running(f"http://127.0.0.1:{port}", agent_id)


@pytest.mark.parametrize(("name", "size"), [("laptop", LAPTOP), ("phone", PHONE)])
async def test_every_page_fits_and_loads_nothing(name: str, size: tuple[int, int]) -> None:
    async with coordinator() as running:

        def use(window: Window) -> None:
            for page, path in (
                ("front", "/"),
                ("operators", "/debug/"),
                ("tailnet", "/debug/tailnet"),
                ("agent", f"/debug/agent?id={running.agent_id}"),
                ("relay", "/debug/derp"),
                ("clients", "/debug/clients/?all=1"),
                ("why", "/debug/why?format=html"),
            ):
                window.go(running.url + path)
                window.shoot(f"coordinator-{name}-{page}")
                assert window.overflow() <= 0, path
                assert window.complaints() == [], path

        await look(use, size)


async def test_from_the_front_page_to_every_page_for_operators() -> None:
    async with coordinator() as running:

        def use(window: Window) -> None:
            window.go(running.url)
            assert "It is well." in window.text()
            window.click("for operators: who is here")
            paths = [element.get_attribute("href") for element in window.driver.find_elements("css selector", "td a")]
            assert len(paths) >= 10
            for path in paths:
                window.go(path)
                assert "There is no such page" not in window.text(), path

        await look(use)


async def test_forms_are_answered() -> None:
    async with coordinator() as running:

        def use(window: Window) -> None:
            window.go(running.url + "/debug/tailnet")
            window.fill('form[action="agent"]', id=running.agent_id)
            assert "It reported no session." in window.text()
            window.go(running.url + "/debug/tailnet")
            window.fill("form", a=running.agent_id, b=running.agent_id)
            assert running.agent_id in window.text()
            window.fill('form:has([name="find"])', find="nobody", sort="-connected_seconds")
            assert "With nobody: 0." in window.text()
            window.go(running.url + "/debug/why?format=html")
            window.fill("form", **{"from": running.agent_id, "to": running.agent_id})
            assert "Of packets nothing can be said" in window.text()

        await look(use)
