"""`derp ping` as its users meet it: pings of relays and keys, the summary, and an answerer that comes back."""

import json
import re
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
import trio

from derp.cli_ping import Tally, _ping_line, _ping_often, _summary
from derp.close_reason import CloseReason
from derp.errors import TransportTimeout
from derp.keys import NodePrivate
from tests.derp.test_cli import DEV, ENVIRONMENT, run, serving
from tests.support.inprocess import open_relay_here, port_of


def test_a_summary_counts_what_was_lost() -> None:
    tally = Tally()
    assert tally.as_event("relay") == {
        "event": "summary",
        "of": "relay",
        "sent": 0,
        "received": 0,
        "lost": 0,
        "lost_percent": 0.0,
    }
    for seconds in (0.3, None, 0.1, 0.2, None, 0.7):
        tally.note(seconds)
    event = tally.as_event("relay")
    assert (event["sent"], event["received"], event["lost"], event["lost_percent"]) == (6, 4, 2, 33.3)
    assert [event[f"{name}_seconds"] for name in ("min", "median", "max")] == [0.1, 0.25, 0.7]


async def run_ping(*arguments: str) -> tuple[int, list[dict[str, Any]], str]:
    """Exit status, JSON lines and stderr of one `derp ping --json`."""
    done = await trio.run_process(
        [sys.executable, "-m", "derp", "ping", "--json", *arguments],
        capture_stdout=True,
        capture_stderr=True,
        check=False,
        env=ENVIRONMENT,
    )
    return done.returncode, [json.loads(line) for line in done.stdout.splitlines()], done.stderr.decode()


async def test_ping_finds_who_is_there_over_tls_with_a_pin(tmp_path: Path) -> None:
    key = NodePrivate.generate()
    (tmp_path / "key").write_text(json.dumps({"PrivateKey": key.text()}))
    async with serving(*DEV, "--json", "--tls-self-signed", "--http-port=-1") as relay:
        listening, _, derp_map, _ = await relay.events()
        via = [f"--via=https://127.0.0.1:{listening['port']}"]
        via.append(f"--pin={derp_map['map']['Regions']['900']['Nodes'][0]['CertName']}")
        async with serving("ping", "--answer", f"--key-file={tmp_path / 'key'}", "--json", *via) as answering:
            assert json.loads(await answering.line())["our_key"] == str(key.public())
            status, (first, *pings, _, summary), _ = await run_ping(str(key.public()), "--count=1", *via)
            assert status == 0
            assert first["carrier"] == "derp-fast-start"
            assert [(event["presence"], event["number"]) for event in pings] == [("answered", 1)]
            assert 0 < pings[0]["seconds"] < 2
            assert (summary["of"], summary["sent"], summary["received"]) == (str(key.public()), 1, 1)
            assert summary["min_seconds"] == summary["median_seconds"] == summary["max_seconds"] == pings[0]["seconds"]
            answering.process.send_signal(signal.SIGINT)
            assert await answering.process.wait() == 0
        status, (_, gone, *_), _ = await run_ping(str(key.public()), "--count=1", "--websocket", *via)
        assert status == 1
        assert gone["presence"] == "absent"
        status, _, told = await run_ping("--count=1", "--quic", *via)
        assert status == 1
        assert "QUIC" in told
        status, events, error = await run_ping(via[0])
        assert (status, events) == (1, [])
        assert "self-signed: pin it" in error


async def test_ping_without_a_key_measures_the_relay() -> None:
    async with serving(*DEV, "--json") as relay:
        port = (await relay.events())[0]["port"]
        status, (_, pong, summary), _ = await run_ping(f"--via=http://127.0.0.1:{port}", "--count=1")
        assert status == 0
        assert set(pong) == {"event", "number", "relay_seconds"}
        assert summary["median_seconds"] == pong["relay_seconds"]


async def test_ping_tells_people_in_words() -> None:
    absent = "nodekey:" + "0a" * 32
    async with serving(*DEV, "--json") as relay:
        *_, last = events = await relay.events()
        via = f"--via=http://127.0.0.1:{events[0]['port']}"
        async with serving("ping", "--answer", via) as answering:
            assert (await answering.line()).endswith(f"/derp (derp) has {last['public_key']}")
            key = (await answering.line()).removeprefix("we are ")
            async with serving("ping", key, via, "--count=1") as asking:
                lines = [await asking.line() for _ in range(5)]
                assert await asking.process.wait() == 0
            assert re.fullmatch(r"1: \[\S{5}\] answered in [0-9.]+ ms; relay [0-9.]+ ms", lines[2])
            assert re.fullmatch(
                r"relay: 1 sent, 1 received, 0 % lost; min/median/max ([0-9.]+/){2}[0-9.]+ ms", lines[3]
            )
            assert re.fullmatch(r"\[\S{5}\]: 1 sent, 1 received, 0 % lost; min/median/max [0-9./]+ ms", lines[4])
        async with serving("ping", absent, via, "--count=2") as asking:
            lines = [await asking.line() for _ in range(6)]
            assert await asking.process.wait() == 1
        assert lines.pop() == "[CgoKC]: 2 sent, 0 received, 100 % lost"
        assert lines.pop().startswith("relay: 2 sent, 2 received, 0 % lost; ")
        assert [line.partition(";")[0] for line in lines[2:]] == [
            "1: [CgoKC] is not on this relay",
            "2: [CgoKC] is not on this relay",
        ]
        async with serving("ping", via, "--count=1") as asking:
            assert re.fullmatch(r"1: relay [0-9.]+ ms", [await asking.line() for _ in range(3)][2])


@pytest.mark.parametrize(
    ("arguments", "status", "says"),
    [
        (["nodekey:1", "--via=http://127.0.0.1:9"], 2, "derp: a node public key has 64 hex digits"),
        (["--via=ftp://127.0.0.1"], 2, "derp: relay URL 'ftp://127.0.0.1': must look like https://"),
        (["--via=http://127.0.0.1:9"], 1, "nothing listens on that port"),
        (["--via=http://127.0.0.1:9", "--key-file=/nonexistent"], 2, "derp: /nonexistent: cannot read the private key"),
        ([], 2, "Missing option '--via'"),
    ],
)
def test_a_ping_that_cannot_be_is_one_sentence(arguments: list[str], status: int, says: str) -> None:
    done = run("ping", *arguments)
    assert (done.returncode, done.stdout) == (status, "")
    assert says in done.stderr
    assert "Traceback" not in done.stderr


async def test_who_answers_comes_back_when_the_connection_breaks() -> None:
    async with open_relay_here(tls=False) as relay:
        via = f"--via=http://127.0.0.1:{port_of(relay)}"
        async with serving("ping", "--answer", "--json", via) as answering:
            first = json.loads(await answering.line())
            for generation in (2, 3):
                for client in tuple(relay.relay.router.clients.values()):
                    relay.relay.host.close(client.wire, CloseReason.STOPPED)
                broken, again = [json.loads(await answering.line()) for _ in range(2)]
                assert broken["event"] == "disconnected"
                assert broken["reason"]
                assert (again["connection"], again["our_key"]) == (generation, first["our_key"])
            status, events, _ = await run_ping(first["our_key"], "--count=1", via)
            assert status == 0
            assert events[-1]["received"] == 1
            answering.process.send_signal(signal.SIGTERM)
            assert await answering.process.wait() == 0


async def test_an_answerer_that_never_came_in_is_an_error() -> None:
    status, events, error = await run_ping("--answer", "--via=http://127.0.0.1:9")
    assert (status, events) == (1, [])
    assert error.count("nothing listens on that port") == 1  # told once, and not as an outage


async def test_ctrl_c_ends_with_the_summary() -> None:
    async with (
        open_relay_here(tls=False) as relay,
        serving("ping", "--count=1000", f"--via=http://127.0.0.1:{port_of(relay)}") as asking,
    ):
        for _ in range(3):
            await asking.line()
        asking.process.send_signal(signal.SIGINT)
        line = await asking.line()
        while line.partition(": ")[0].isdecimal():  # one more ping may have been under way
            line = await asking.line()
        assert re.match(r"relay: \d+ sent, \d+ received, 0 % lost; ", line)
        assert await asking.process.wait() == 130


async def test_a_connection_that_breaks_ends_with_the_summary() -> None:
    async with (
        open_relay_here(tls=False) as relay,
        serving("ping", "--count=1000", f"--via=http://127.0.0.1:{port_of(relay)}") as asking,
    ):
        for _ in range(3):
            await asking.line()
        for client in tuple(relay.relay.router.clients.values()):
            relay.relay.host.close(client.wire, CloseReason.STOPPED)
        assert re.match(r"relay: \d+ sent, \d+ received, ", await asking.line())
        assert await asking.process.wait() == 1


class Scripted:
    """A client whose relay answers some pings only."""

    def __init__(self, *seconds: float | None) -> None:
        self.seconds = list(seconds)

    async def ping(self, timeout_seconds: float) -> float:
        await trio.lowlevel.checkpoint()
        seconds = self.seconds.pop(0)
        if seconds is None:
            raise TransportTimeout("no pong")
        return seconds


async def test_a_ping_that_is_not_answered_is_loss_and_no_end(autojump_clock: trio.testing.MockClock) -> None:
    said: list[dict[str, Any]] = []
    tally = Tally()
    client: Any = Scripted(0.1, None, None, 0.3)
    await _ping_often(client, None, 4, 2.0, said.append, tally, Tally(), [])
    assert [event["relay_seconds"] for event in said] == [0.1, None, None, 0.3]
    assert (tally.sent_count, tally.received_count) == (4, 2)
    assert _ping_line(said[1]) == ("2: no answer from the relay", "red")
    assert _summary(tally.as_event("relay")) == (
        "relay: 4 sent, 2 received, 50 % lost; min/median/max 100.00/200.00/300.00 ms"
    )


async def test_ping_goes_by_quic_where_it_is_told_to() -> None:
    async with serving(*DEV, "--json", "--tls-self-signed", "--http-port=-1", "--quic") as relay:
        events = await relay.events()
        assert [event["kind"] for event in events if event["event"] == "listening"][:2] == ["derp+tls", "derp+quic"]
        pin = next(event for event in events if "map" in event)["map"]["Regions"]["900"]["Nodes"][0]["CertName"]
        via = f"--via=https://127.0.0.1:{events[0]['port']}"
        status, (first, *_), _ = await run_ping(via, f"--pin={pin}", "--count=1", "--quic")
        assert (status, first["carrier"], first["tls"]) == (0, "quic", "TLSv1.3")
        assert (await run_ping(via, "--quic", "--websocket"))[0] == 2
