"""Which agent is meant by a name, and what lists of agents are no such thing."""

import pytest

from tailnet.client.agents import KnownAgent, Login, choose_agent, find_agent
from tailnet.errors import ConfigError, TransportError
from tailnet.server.server import CoordinatorServer
from tests.support.proxies import open_page
from tests.support.seeds import peer_id, user_token
from tests.tailnet.client.test_rpc import url_of


async def test_an_agent_by_its_id(server: CoordinatorServer) -> None:
    login = Login(url_of(server), user_token("alice"))
    assert (await find_agent(login, str(peer_id("main")))).name == "main"
    for other in ("web", "nothing"):
        with pytest.raises(ConfigError, match="no agent has the id"):
            await find_agent(login, str(peer_id(other)))


@pytest.mark.parametrize("body", [b"{}", b"[]", b'{"workspaces": 3}', b'{"workspaces": [{"name": "x"}]}'])
async def test_a_list_in_another_form(body: bytes) -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body)
    async with open_page(lambda request: head + body) as page:
        login = Login(page.url, "token")
        for text in ("main", str(peer_id("main"))):
            with pytest.raises(TransportError, match="in a form that is not known"):
                await find_agent(login, text)


def an_agent(name: str, workspace: str, owner: str = "alice") -> KnownAgent:
    return KnownAgent(peer_id(f"{workspace}{name}"), name, workspace, owner, "connected", "ready", "linux/amd64", "")


KNOWN = [an_agent("main", "dev"), an_agent("gpu", "dev"), an_agent("main", "lab")]


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("gpu", "dev.gpu"),
        ("GPU", "dev.gpu"),
        ("lab", "lab.main"),
        ("dev.main", "dev.main"),
        ("alice/dev.main", "dev.main"),
        ("alice/lab", "lab.main"),
    ],
)
def test_names(text: str, label: str) -> None:
    assert choose_agent(KNOWN, text).label == label


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("main", "main may be dev.main, lab.main: say which"),
        ("dev", "dev may be dev.main, dev.gpu: say which"),
        ("bob/lab", "there is no agent bob/lab; yours are dev.main, dev.gpu, lab.main"),
        ("", "there is no agent"),
    ],
)
def test_names_that_are_not_clear(text: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        choose_agent(KNOWN, text)


def test_many_and_none() -> None:
    with pytest.raises(ConfigError, match=r"d\.9 and 2 more \(`tailnet agents`\)"):
        choose_agent([an_agent(str(number), "d") for number in range(12)], "x")
    with pytest.raises(ConfigError, match="none of your workspaces has any"):
        choose_agent([], "x")
