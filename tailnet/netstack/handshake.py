"""The SYN of a connection: its numbers, its options, and when it is sent again (RFC 9293 section 3.10, RFC 6298).
Layer L1.  Called by connection.py."""

from tailnet.netstack.limits import Limits
from tailnet.netstack.receiving import WINDOW_SCALE
from tailnet.netstack.segment import ACK, PAYLOAD_AT, SYN, SynOptions, encode_syn_options


class Handshake:
    """`begin`, `segment` for each SYN that goes out, `on_deadline` at `at`, `end` when it was acknowledged."""

    __slots__ = ("_limits", "_since", "_tries", "at", "due", "irs", "iss", "peer")

    def __init__(self, iss: int, limits: Limits) -> None:
        self._limits = limits
        self.iss = iss
        self.irs = 0
        self.peer = SynOptions()
        """What the peer's SYN said."""
        self.due = False
        """A SYN is to be sent."""
        self.at: float | None = None
        self._since = 0.0
        self._tries = 0

    @property
    def mss(self) -> int:
        """The longest payload of a segment without options that our packets have room for."""
        return self._limits.mtu - PAYLOAD_AT

    def begin(self) -> None:
        self.due = True
        self._tries = 0

    def segment(self, now: float, offered: int | None) -> tuple[int, int, int, bytes]:
        """Acknowledgement, flags, window and options of the SYN that goes out now.

        `offered`: the bytes that we offer in answer to the peer's SYN, None where ours is the first.
        """
        limits, peer = self._limits, self.peer
        self.due = False
        if not self._tries:
            self._since = now
        self.at = now + min(limits.first_rto * 2**self._tries, limits.max_rto)
        self._tries += 1
        options = SynOptions(self.mss, WINDOW_SCALE, True)
        if offered is None:
            return 0, SYN, min(limits.first_receive_bytes, 65535), encode_syn_options(options)
        if peer.window_scale is None:
            options.window_scale = None
        options.sack_permitted = peer.sack_permitted
        return self.irs + 1, SYN | ACK, min(offered, 65535), encode_syn_options(options)

    def on_deadline(self, now: float) -> bool:
        """Send it again; False where it was sent for long enough.  Lateness of the caller does not count."""
        if self.at is None or self.at > now:
            return True
        due, self.at = self.at, None
        if due - self._since >= self._limits.connect_seconds:
            return False
        self.due = True
        return True

    def end(self, now: float) -> float | None:
        """It was acknowledged: the round trip, unless nobody knows of which try (Karn)."""
        self.at = None
        self.due = False
        return now - self._since if self._tries == 1 else None
