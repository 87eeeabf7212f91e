"""A terminal in a real browser: keys, colours, sizes, a connection that breaks and comes back, a phone, strangers."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tailnet.types import PeerID
from tests.browser.test_people_pages import Place, place, sign_in, wait_until
from tests.support.browser import LAPTOP, PHONE, Window, look
from tests.support.fake_agent import FakeAgent, open_fake_agent
from tests.support.fake_terminals import Terminals

COLOR = """
const shown = [...document.querySelectorAll(".xterm-rows span")].find((each) => each.textContent.includes("true red"));
return getComputedStyle(shown).color;
"""


@asynccontextmanager
async def terminals(place: Place) -> AsyncIterator[tuple[FakeAgent, Terminals]]:
    agent_id = PeerID(place.main.id.bytes)
    async with open_fake_agent(place.server.url, token=place.main.token, agent_id=agent_id) as agent:
        played = Terminals()
        agent.serve_pty = played.serve
        yield agent, played


def press(window: Window, *keys: str) -> None:
    window.driver.switch_to.active_element.send_keys(*keys)


def shows(window: Window, text: str) -> None:
    wait_until(window, lambda: any(text in each for each in window.texts(".xterm-rows")))


def enter(window: Window, here: Place) -> None:
    sign_in(window, here)
    window.go(here.main_page)
    window.click("Open a terminal")
    wait_until(window, lambda: window.texts("#note") == ["Connected."])


async def test_keys_colours_and_sizes(tmp_path: Path) -> None:
    from selenium.webdriver.common.keys import Keys

    async with place(tmp_path) as here, terminals(here) as (_, played):

        def use(window: Window) -> None:
            enter(window, here)
            shows(window, "$")
            press(window, "gr\u00fc\u00dfe")
            shows(window, "$ gr\u00fc\u00dfe")
            press(window, Keys.ENTER, "color", Keys.ENTER)
            shows(window, "true red")
            assert window.driver.execute_script(COLOR) == "rgb(250, 1, 2)", "style attributes come through the policy"
            press(window, "size", Keys.ENTER)
            shows(window, "columns")
            [terminal] = played.by_id.values()
            before = terminal.size
            window.resize((700, 500))
            wait_until(window, lambda: terminal.size[1] < before[1] and terminal.size[0] < before[0])
            assert window.driver.execute_script("return document.cookie") == ""
            assert here.alice.token not in window.driver.current_url
            window.shoot("terminal-laptop")
            assert window.complaints() == [], "the policy had nothing to forbid"

        await look(use)


async def test_it_comes_back_with_what_it_showed(tmp_path: Path) -> None:
    from selenium.webdriver.common.keys import Keys

    async with place(tmp_path) as here, terminals(here) as (_, played):

        def use(window: Window) -> None:
            enter(window, here)
            press(window, "before")
            shows(window, "$ before")
            press(window, Keys.ENTER, "break", Keys.ENTER)
            wait_until(window, lambda: len(played.requests) and played.broken_count == 1)
            wait_until(window, lambda: window.texts("#note") == ["Connected."])
            shows(window, "$ before")
            press(window, "after")
            shows(window, "after")
            window.driver.refresh()
            shows(window, "$ before")
            shows(window, "after")
            assert len(played.by_id) == 1
            press(window, Keys.ENTER, "exit", Keys.ENTER)
            wait_until(window, lambda: window.texts("#note") == ["The terminal ended."])
            window.driver.find_element("id", "again").click()
            wait_until(window, lambda: window.texts("#note") == ["Connected."])
            assert len(played.by_id) == 2
            assert "before" not in window.texts(".xterm-rows")[0]

        await look(use)


@pytest.mark.parametrize(("name", "size"), [("laptop", LAPTOP), ("phone", PHONE)])
async def test_it_fits(tmp_path: Path, name: str, size: tuple[int, int]) -> None:
    async with place(tmp_path) as here, terminals(here) as (_, played):

        def use(window: Window) -> None:
            enter(window, here)
            shows(window, "$")
            assert window.overflow() <= 0
            [terminal] = played.by_id.values()
            assert terminal.size[1] >= 30
            buttons = window.driver.find_elements("css selector", "#keys button")
            assert [each.is_displayed() for each in buttons] == [name == "phone"] * 8
            if name == "phone":
                buttons[1].click()
                wait_until(window, lambda: [each["data"] for each in played.requests[-1:]] == ["\t"])
                buttons[5].click()
                wait_until(window, lambda: played.requests[-1]["data"] == "\x1b[A")
            window.shoot(f"terminal-{name}")

        await look(use, size)


async def test_an_agent_that_is_not_there_and_one_of_somebody_else(tmp_path: Path) -> None:
    async with place(tmp_path) as here:

        def use(window: Window) -> None:
            window.go(f"{here.main_page}/terminal")
            window.fill("form", token=here.alice.token)
            assert window.driver.current_url.startswith(f"{here.main_page}/terminal")
            wait_until(window, lambda: 'Agent state is "connecting"' in window.texts("#note")[0])
            assert "trying again" in window.texts("#note")[0]
            window.go(f"{here.server.url}/agents/{here.alice.id}/terminal")
            assert "do not have access" in window.text()

        await look(use)
