"""What sessions of an agent get: environment, shell, directory."""

import os
import pwd
from collections.abc import AsyncIterator
from types import SimpleNamespace

import pytest
import trio

from tailnet.agent.context import Context, home_directory, login_shell, user_name


@pytest.fixture
async def context() -> AsyncIterator[Context]:
    async with trio.open_nursery() as nursery:
        yield Context(nursery, "https://tailnet.example.org", "secret-token")


async def test_an_environment(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/bin")
    monkeypatch.setenv("KEPT", "yes")
    monkeypatch.setenv("NOTIFY_SOCKET", "/run/x")
    context.variables = {"PATH": "/opt/bin:${PATH}", "EMPTY": "<$NOWHERE>", "PLAIN": "5$", "CODER": "no"}
    context.secret_variables = {"PASSWORD": "$KEPT"}
    made = context.environment()
    assert made["PATH"] == "/opt/bin:/bin"
    assert made["EMPTY"] == "<>"
    assert made["PLAIN"] == "5$"
    assert made["KEPT"] == "yes"
    assert made["PASSWORD"] == "$KEPT", "a secret is no text of a template"
    assert "NOTIFY_SOCKET" not in made
    assert made["CODER"] == "true", "what the agent says of itself is no template's to change"
    assert made["CODER_AGENT_TOKEN"] == "secret-token"
    assert made["CODER_AGENT_URL"] == "https://tailnet.example.org"
    assert made["SHELL"] == context.shell
    assert "secret-token" not in repr(context)


@pytest.mark.parametrize(
    ("shell", "expected"),
    [("/bin/sh", "/bin/sh"), ("/usr/sbin/nologin", "/bin/sh"), ("/bin/false", "/bin/sh"), ("/not/there", "/bin/sh"),
     ("/bin/bash", "/bin/bash"), ("", "/bin/sh")],
)  # fmt: skip
def test_a_shell(shell: str, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pwd, "getpwuid", lambda uid: SimpleNamespace(pw_shell=shell))
    assert login_shell() == expected


def test_a_user_whom_the_system_does_not_know(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(uid: int) -> None:
        raise KeyError(uid)

    monkeypatch.setattr(pwd, "getpwuid", unknown)
    monkeypatch.delenv("USER", raising=False)
    monkeypatch.setenv("HOME", "relative")
    assert login_shell() == "/bin/sh"
    assert user_name() == str(os.getuid())
    assert home_directory() == "/"
