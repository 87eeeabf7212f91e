"""When each client is due its next keep-alive.  Layer L1: a wheel of one-second slots, no timer per client.

A client's period is fixed when it joins (keep-alive plus its own jitter), so clients that came together drift apart.
Driven by the tick of server/server.py.
"""

from derp.relay.clients import Client


class KeepAliveWheel:
    """`period_seconds` plus up to `jitter_seconds` between the keep-alives of one client."""

    def __init__(self, period_seconds: float, jitter_seconds: float, now: float) -> None:
        self._period = period_seconds
        self._jitter = jitter_seconds
        # one slot more than the longest wait, so that "due now" and "due a full turn later" differ
        self._slots: list[list[tuple[Client, float]]] = [[] for _ in range(int(period_seconds + jitter_seconds) + 2)]
        self._served = int(now)

    def add(self, client: Client, now: float, fraction: float) -> None:
        """Start serving a client; `fraction`, 0 to 1, places it within the jitter."""
        self._place(client, self._period + fraction * self._jitter, now)

    def _place(self, client: Client, wait: float, now: float) -> None:
        # at least one second ahead: the slot of the present may have been served already
        slot = max(int(now + wait), self._served + 1)
        self._slots[slot % len(self._slots)].append((client, wait))

    def due(self, now: float) -> list[Client]:
        """Clients whose time has come, each to be sent a keep-alive.  Those that left are forgotten here."""
        due: list[Client] = []
        while self._served < int(now):
            self._served += 1
            index = self._served % len(self._slots)
            slot, self._slots[index] = self._slots[index], []
            for client, wait in slot:
                if client.member is not None:
                    due.append(client)
                    self._place(client, wait, self._served)
            if int(now) - self._served > len(self._slots):
                # The clock jumped by more than a turn (a suspended machine): one round of keep-alives is enough.
                self._served = int(now) - len(self._slots)
        return due
