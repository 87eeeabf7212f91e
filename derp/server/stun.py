"""STUN for the region's clients: one UDP socket per address, served on the reactor.  Layer L3.

Silence is an answer too: a client that hears nothing looks for another region, so `is_well` is asked before
each batch.  Wire: protocol/stun.py.
"""

import socket
from collections.abc import Callable, Iterable
from typing import Final

from derp.protocol.stun import encode_response, parse_request
from derp.transport.listen import DESTINATION_BYTES, sent_from, tell_destinations

# A request has 40 bytes; a longer datagram than this is none.
_MAX_DATAGRAM_BYTES: Final = 1500
# Datagrams that we answer per wake-up, so that a flood of them cannot keep the relay from its packets.
_MAX_DATAGRAMS: Final = 64


class StunResponder:
    """Answers binding requests on `sock`, a bound, non-blocking UDP socket it does not close.

    Each is answered from the address that was asked: a client behind a NAT would not see another one's answer.
    """

    def __init__(self, sock: socket.socket, is_well: Callable[[], bool]) -> None:
        self._sock = sock
        self._is_well = is_well
        self._ancillary_bytes = DESTINATION_BYTES if tell_destinations(sock) else 0
        self.success_count = {"ipv4": 0, "ipv6": 0}
        self.not_stun_count = 0
        self.read_error_count = 0
        self.write_error_count = 0
        self.silent_count = 0
        self.no_local_address_count = 0
        """Requests of which the kernel did not say to which address they came; they are answered from any."""

    def serve_ready(self) -> None:
        """Answer what has arrived."""
        sock = self._sock
        for _ in range(_MAX_DATAGRAMS):
            try:
                datagram, ancillary, _, source = sock.recvmsg(_MAX_DATAGRAM_BYTES, self._ancillary_bytes)
            except BlockingIOError:
                return
            except OSError:
                self.read_error_count += 1
                return
            transaction = parse_request(datagram)
            if transaction is None:
                self.not_stun_count += 1
                continue
            if not self._is_well():
                self.silent_count += 1
                continue
            family, address = _packed(source[0])
            asked = sent_from(ancillary)
            if self._ancillary_bytes and not asked:
                self.no_local_address_count += 1
            try:
                sock.sendmsg([encode_response(transaction, address, source[1])], asked, 0, source)
            except OSError:
                self.write_error_count += 1
            else:
                self.success_count[family] += 1


def stun_totals(responders: Iterable[StunResponder]) -> dict[str, int]:
    """Datagrams of all responders by what became of them."""
    totals = dict.fromkeys(("success", "not_stun", "read_error", "write_error", "silent"), 0)
    for responder in responders:
        totals["success"] += sum(responder.success_count.values())
        totals["not_stun"] += responder.not_stun_count
        totals["read_error"] += responder.read_error_count
        totals["write_error"] += responder.write_error_count
        totals["silent"] += responder.silent_count
    return totals


def _packed(host: str) -> tuple[str, bytes]:
    host = host.partition("%")[0]
    if ":" not in host:
        return "ipv4", socket.inet_aton(host)
    packed = socket.inet_pton(socket.AF_INET6, host)
    # A dual-stack socket shows IPv4 callers as ::ffff:a.b.c.d; they must be told the address they know.
    if packed.startswith(bytes(10) + b"\xff\xff"):
        return "ipv4", packed[12:]
    return "ipv6", packed
