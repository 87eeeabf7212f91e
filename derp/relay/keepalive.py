"""When each client is due its next keep-alive.  Layer L1: a wheel of one-second slots, no timer per client.

A client's period is fixed when it joins (keep-alive plus its own jitter), so clients that came together drift apart.
server/relay.py asks `next_timeout`, calls `handle_timeout` then, and sends.
"""

from derp.relay.clients import Client


class KeepAliveWheel:
    """Between two keep-alives of one client lie `period_seconds` and up to `jitter_seconds` more."""

    def __init__(self, period_seconds: float, jitter_seconds: float, now: float) -> None:
        self._period = period_seconds
        self._jitter = jitter_seconds
        # (client, its period, when it is due).  There is one slot more than the longest wait, so that a turn of the
        # wheel finds few that are not due yet.
        self._slots: list[list[tuple[Client, float, float]]] = [
            [] for _ in range(int(period_seconds + jitter_seconds) + 2)
        ]
        self._served = int(now)

    def add(self, client: Client, now: float, fraction: float) -> float:
        """Start serving a client; return when it is due.  `fraction`, 0 to 1, places it within the jitter."""
        wait = self._period + fraction * self._jitter
        self._place(client, wait, now + wait)
        return now + wait

    def _place(self, client: Client, wait: float, at: float) -> None:
        # At least one second ahead: the wheel may have served the slot of the present already.
        at = max(at, self._served + 1.0)
        self._slots[int(at) % len(self._slots)].append((client, wait, at))

    def next_timeout(self) -> float | None:
        """When to call `handle_timeout`: once a second at most; None while the wheel is empty."""
        for second in range(self._served + 1, self._served + 1 + len(self._slots)):
            slot = self._slots[second % len(self._slots)]
            if any(at < second + 1 for _, _, at in slot):
                return float(second)
        # A client that came long after the last call may be due more than a turn after that call.
        return min((float(int(at)) for slot in self._slots for _, _, at in slot), default=None)

    def handle_timeout(self, now: float) -> list[Client]:
        """Clients whose second has come, each once: send them a keep-alive.  Here the wheel forgets who left."""
        due: list[Client] = []
        second = int(now)
        # The clock may have jumped by more than a turn (a suspended machine): one turn finds everybody.
        first = max(self._served + 1, second - len(self._slots) + 1)
        self._served = max(self._served, second)
        for number in range(first, second + 1):
            index = number % len(self._slots)
            slot, self._slots[index] = self._slots[index], []
            for client, wait, at in slot:
                if at >= second + 1:  # for the turn to come, also if the client has left: its time says when to look
                    self._slots[index].append((client, wait, at))
                    continue
                if client.member is None:
                    continue
                due.append(client)
                # The client keeps its plan, however late this call is, unless the next time of the plan has passed too.
                self._place(client, wait, at + wait if at + wait > now else now + wait)
        return due
