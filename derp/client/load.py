"""How near the relays of a region are to their limits, as they say it: GET /debug/load at each of them.  Layer L3.

The page is for operators: a relay answers whom its --debug-allow names.  Dialled as clients dial, by the map.
The page: server/load_page.py.  What is made of it: netcheck/load.py.
"""

import json
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

import trio

from derp.client.dial import DialOptions, RelayAddress, open_relay_stream
from derp.client.region import region_addresses
from derp.errors import ConnectError, DerpError, RemoteProtocolError
from derp.map import DERPRegion
from derp.netcheck.load import LoadScores
from derp.relay.load import LOAD_PATH
from derp.text import printable
from derp.transport.http import ClientHttp, exchange
from derp.transport.stream import mapped_errors

# From dialling to the answer.  A relay that takes longer is read again in some seconds.
READ_SECONDS: Final = 5.0
# The page has half a KiB.
_MAX_BODY_BYTES: Final = 16 * 1024
_MAX_NAME: Final = 40


@dataclass(frozen=True, slots=True)
class RegionLoad:
    """Of the relay of a region that is nearest to a limit of its own: clients go to one relay of a region, mostly."""

    load: float  # share of that limit, 1 is all of it
    because: str  # the limit's name
    silent: tuple[str, ...] = ()  # of relays that did not say, why


async def read_region_load(region: DERPRegion, options: DialOptions, seconds: float = READ_SECONDS) -> RegionLoad:
    """Ask all relays of a region at once.  Raises ConnectError within `seconds`: none of them said."""
    addresses = region_addresses(region)
    said: list[tuple[float, str]] = []
    silent: list[str] = []

    async def ask(address: RelayAddress) -> None:
        try:
            with mapped_errors(f"{LOAD_PATH} within {seconds:.1f} s", connecting=True), trio.fail_after(seconds):
                said.append(await _read(address, options))
        except DerpError as error:  # also of a proxy that the environment names, and of a name that is none
            silent.append(f"node {address.name}: {error}")

    async with trio.open_nursery() as nursery:
        for address in addresses:
            nursery.start_soon(ask, address)
    if not said:
        raise ConnectError("; ".join(silent))
    load, because = max(said)
    return RegionLoad(load, because, tuple(silent))


async def note_loads(
    scores: LoadScores, regions: Iterable[DERPRegion], options: DialOptions, clock: Callable[[], float]
) -> None:
    """Ask all relays of some regions, and note what they say.  Within READ_SECONDS; never raises."""

    async def note(region: DERPRegion) -> None:
        try:
            read = await read_region_load(region, options)
        except ConnectError as error:
            scores.note_away(region.region_id, str(error))
        else:
            scores.note(region.region_id, read.load, read.because, clock(), "; ".join(read.silent))

    async with trio.open_nursery() as nursery:
        for region in regions:
            nursery.start_soon(note, region)


async def _read(address: RelayAddress, options: DialOptions) -> tuple[float, str]:
    stream, _ = await open_relay_stream(address, options)
    try:
        http = ClientHttp(max_body_bytes=_MAX_BODY_BYTES)
        headers = [("Host", address.host_header()), *options.extra_headers(), ("Connection", "close")]
        response = await exchange(stream, http, http.send_request("GET", LOAD_PATH, headers))
    finally:
        await trio.aclose_forcefully(stream)
    if response.status == 403:
        text = printable(response.body.decode("utf-8", "replace").strip())
        raise ConnectError(f"{text}; name this machine's address in its --debug-allow")
    if response.status != 200:
        raise ConnectError(f"{LOAD_PATH} answers with status {response.status}: no relay of ours?")
    return parse_load(response.body)


def parse_load(body: bytes) -> tuple[float, str]:
    """The share of the nearest limit, and its name, of the page's text.  Raises RemoteProtocolError."""
    try:
        told = json.loads(body)
        load, because = told["load"], told["limit"]
    except (ValueError, TypeError, KeyError, RecursionError):
        raise RemoteProtocolError(f"{LOAD_PATH} answers with something else than a load") from None
    is_number = isinstance(load, int | float) and not isinstance(load, bool)
    if not is_number or not math.isfinite(load) or load < 0 or not isinstance(because, str):
        raise RemoteProtocolError(f"{LOAD_PATH} says a load of {load!r:.40}")
    return float(load), printable(because, _MAX_NAME)
