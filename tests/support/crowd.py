"""Clients that choose their home as stock ones do, between regions that steering by load lets look farther: in virtual
time, with the load that their own choices make."""

import random
from collections import Counter
from dataclasses import dataclass, field
from itertools import pairwise

from derp.map import DERPMap
from derp.netcheck.load import LoadScores
from derp.netcheck.report import History, Report
from derp.netcheck.steering import pushed_away
from tests.derp.netcheck.maps import derp_map, region

START = 1_000_000.0
READ_SECONDS = 15.0
REPORT_SECONDS = 60.0
CLIENTS = 200


@dataclass
class CrowdClient:
    """What it measured at each of its reports, in seconds by region, and its home after each."""

    near: dict[int, float]
    seen: list[dict[int, float]] = field(default_factory=list)
    homes: list[int] = field(default_factory=list)
    history: History = field(default_factory=History)


@dataclass
class Played:
    """`times` and `maps`: of each report, the same for all clients."""

    clients: list[CrowdClient]
    core: LoadScores
    times: list[float] = field(default_factory=list)
    maps: list[DERPMap] = field(default_factory=list)

    def moves(self) -> list[list[float]]:
        """When each client left a home."""
        return [
            [at for at, (before, after) in zip(self.times[1:], pairwise(client.homes), strict=True) if before != after]
            for client in self.clients
        ]

    def at_home(self, report: int) -> Counter[int]:
        """How many each region has after a report."""
        return Counter(client.homes[report] for client in self.clients)


def play(limits: dict[int, float], hours: float) -> Played:
    """Regions 1, 2 and 3 with room for so many clients, all of which are followed.  Nine in ten live near region 1."""
    chance = random.Random(3)
    plain = derp_map(*map(region, limits))
    near = [
        {1: chance.uniform(0.004, 0.03), 2: chance.uniform(0.02, 0.06), 3: chance.uniform(0.02, 0.09)}
        if chance.random() < 0.9
        else {each: chance.uniform(0.01, 0.1) for each in limits}
        for _ in range(CLIENTS)
    ]
    played, now = Played(list(map(CrowdClient, near)), LoadScores(START)), START
    core = played.core
    core.follow(plain, limits)
    while now < START + hours * 3600:
        steered = pushed_away(plain, core.factors)
        played.times.append(now)
        played.maps.append(steered)
        for client in played.clients:
            seen = {each: seconds * chance.uniform(1.0, 1.02) for each, seconds in client.near.items()}
            settled = client.history.settle(Report(udp=True, region_seconds=seen), steered, started=now, now=now)
            client.seen.append(seen)
            client.homes.append(settled.preferred)
        homes = played.at_home(-1)
        for _ in range(int(REPORT_SECONDS / READ_SECONDS)):
            now += READ_SECONDS
            for each, limit in limits.items():
                core.note(each, homes[each] / limit, "connections", now)
            core.handle_timeout(now)
    return played
