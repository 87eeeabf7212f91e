"""`derp invite`: from the command to a client that comes in by the map which it printed."""

import json
import re
from pathlib import Path

import click
import pytest
import trio

from derp.cli_invite import bytes_of
from derp.client.client import open_derp_client
from derp.client.mapsource import load_map
from derp.errors import ConfigError
from derp.keys import NodePrivate
from derp.map import DERPMap
from tests.derp.server.world import open_server, port_of, relay_config
from tests.support.command import run_derp


@pytest.mark.parametrize(
    ("text", "count"),
    [("1000", 1000), ("10GB", 10**10), ("10 gb", 10**10), ("1KiB", 1024), ("2M", 2 * 10**6), ("3TiB", 3 * 1024**4)],
)
def test_sizes(text: str, count: int) -> None:
    assert bytes_of(click.Context(click.Command("x")), click.Option(["--bytes"]), text) == count


@pytest.mark.parametrize("text", ["", "GB", "0", "-1", "1.5GB", "10XB", "9" * 20])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(click.BadParameter, match="wants a number of bytes"):
        bytes_of(click.Context(click.Command("x")), click.Option(["--bytes"]), text)


async def test_an_invitation_from_the_command_to_its_end(tmp_path: Path) -> None:
    path = str(tmp_path / "invitations")
    async with open_server(relay_config(invitations=Path(path))) as server:
        url = f"http://127.0.0.1:{port_of(server)}"
        words = ("--for", "24h", "--bytes", "10GB", "--note", "for Ada", "--tenant", "acme")
        made = await run_derp("invite", "--invitations", path, "--url", url, *words)
        assert made.status == 0, made.err
        assert re.fullmatch(re.escape(url) + "/invited/[a-z2-7]{26}\n", made.out), (
            "one line, and no code off a terminal"
        )
        assert "a key that nobody knows" not in made.err
        (region,) = (await _map_when_known(made.out.strip())).regions.values()
        async with open_derp_client(region, NodePrivate.generate()) as client:
            await client.ping()
            (line,) = (await run_derp("invite", "--invitations", path, "list", "--json")).out.splitlines()
            listed = json.loads(line)
            assert (listed["state"], listed["bytes"], listed["note"]) == ("good", 10**10, "for Ada")
            assert [listed["tenant"]] == [one.tenant for one in server.relay.router.clients.values()] == ["acme"]
            revoked = await run_derp("invite", "--invitations", path, "revoke", listed["id"])
            assert revoked.status == 0
            again = await run_derp("invite", "--invitations", path, "revoke", listed["id"])
            assert (again.status, again.out) == (1, "")
        text = (await run_derp("invite", "--invitations", path, "list")).out
        assert "was revoked, ends 20" in text
        assert "0 of 10,000,000,000 bytes" in re.sub(r"\d+(?= of 10,)", "0", text)
        token = made.out.strip().rpartition("/")[2]
        assert token not in text
        assert token.encode() not in (await trio.Path(path).read_bytes())


async def _map_when_known(url: str) -> DERPMap:
    """The relay looks at the file twice a second."""
    with trio.fail_after(20):
        while True:  # the relay tells nobody that it has looked
            try:
                return await load_map(url)
            except ConfigError:
                await trio.sleep(0.05)


async def test_without_a_file_or_an_address_it_says_what_to_set(tmp_path: Path) -> None:
    config = tmp_path / "relay.toml"
    key = tmp_path / "key"
    key.write_text((await run_derp("genkey")).out)
    config.write_text(f'listen = ["127.0.0.1:1"]\nkey_file = "{key}"\n')
    none = await run_derp("invite", "--config", str(config))
    assert none.status == 2
    assert "set --invitations in its settings" in none.err
    config.write_text(config.read_text() + f'invitations = "{tmp_path}/invitations"\n')
    nameless = await run_derp("invite", "--config", str(config))
    assert nameless.status == 2
    assert "--url: is not set" in nameless.err
    away = await run_derp("invite", "--config", str(config), "--url", "http://127.0.0.1:1")
    assert (away.status, away.out) == (1, "")
    listed = await run_derp("invite", "--config", str(config), "list")
    assert (listed.status, listed.out) == (0, "")
