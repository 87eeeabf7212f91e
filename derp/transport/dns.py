"""Asks the machine's name servers for TXT records, which Python's resolver cannot.  Layer L2; wire: protocol/dns.py."""

import secrets
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import trio

from derp.errors import ConnectError, RemoteProtocolError
from derp.protocol.dns import encode_txt_query, parse_txt_answer
from derp.text import error_text

RESOLV_CONF: Final = Path("/etc/resolv.conf")
DNS_PORT: Final = 53
# What resolvers of the C library do: up to three servers, each asked twice.
_MAX_SERVERS: Final = 3
_ROUNDS: Final = 2
# A name server that forwards answers within a second or not at all.
ANSWER_SECONDS: Final = 2.0


def name_servers(resolv_conf: Path = RESOLV_CONF) -> list[tuple[str, int]]:
    """Those of the machine, or itself where nothing says so; read each time, as machines move between networks."""
    try:
        lines = resolv_conf.read_text(errors="replace").splitlines()
    except OSError:
        lines = []
    words = [line.split() for line in lines]
    hosts = [line[1] for line in words if line[:1] == ["nameserver"] and len(line) > 1]
    return [(host, DNS_PORT) for host in hosts[:_MAX_SERVERS] or ["127.0.0.1"]]


async def look_up_txt(name: str, servers: Sequence[tuple[str, int]] | None = None) -> list[str]:
    """The TXT records of `name`, a whole name: there is no search list.  Empty where it has none.

    Raises LocalProtocolError for what is no name, and ConnectError when no server answers.
    """
    trouble = ""
    query = encode_txt_query(name, secrets.randbits(16))
    for host, port in list(name_servers() if servers is None else servers) * _ROUNDS:
        try:
            with trio.fail_after(ANSWER_SECONDS):
                return [record.decode("ascii", "replace") for record in await _ask(query, host, port)]
        except trio.TooSlowError:
            trouble = f"{host} does not answer"
        except (OSError, RemoteProtocolError) as error:
            trouble = f"{host}: {error_text(error)}"
    raise ConnectError(f"no name server tells the TXT records of {name}: {trouble}")


async def _ask(query: bytes, host: str, port: int) -> list[bytes]:
    # numeric only: a name here would have to be asked for first
    numeric = socket.AI_NUMERICHOST | socket.AI_NUMERICSERV
    (family, kind, _, _, address), *_ = await trio.socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM, flags=numeric)
    with trio.socket.socket(family, kind) as sock:
        await sock.connect(address)  # from a port nobody can guess, and for this server's datagrams alone
        await sock.send(query)
        while True:
            answer = parse_txt_answer(await sock.recv(65535), query)
            if answer is not None:
                return answer
