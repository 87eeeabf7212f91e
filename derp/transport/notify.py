"""What a service manager is told (systemd's sd_notify): ready, stopping, another main process.  Layer L2.

Nothing happens where nobody listens: outside of a unit of Type=notify there is no NOTIFY_SOCKET.
"""

import contextlib
import os
import socket


def notify_manager(*assignments: str) -> None:
    """Send lines such as READY=1 or MAINPID=4711, in one datagram.  Never raises: nobody's packets depend on it."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return
    # `@` stands for the zero byte of an abstract name.
    place = "\0" + address[1:] if address.startswith("@") else address
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.setblocking(False)  # a manager that does not read must not stop a relay
        sock.sendto("\n".join(assignments).encode(), place)
