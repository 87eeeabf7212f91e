"""Logging in at a relay from within a relay: the upgrade and the handshake of a client over a LinkStream.  Layer L3.

mesh.py does it at the other relays of the region, selfcheck.py at its own port.  Dialling and TLS are theirs, and the
library of programs that are clients is derp/client.  Next hop: protocol/connection.py.
"""

from derp.errors import ConnectError, DerpError, RemoteProtocolError
from derp.protocol.connection import ClientConnection
from derp.protocol.states import ClientState
from derp.protocol.upgrade import AnswerKind, derp_request_headers, judge_derp_answer
from derp.text import fit_to_show
from derp.transport.http import ClientHttp
from derp.transport.linkstream import LinkStream


class OwnRelay(DerpError):
    """The relay that answered is this one."""


async def log_in(stream: LinkStream, host: str, connection: ClientConnection, *, own_key: bytes | None = None) -> None:
    """Until ServerInfo has come.  `host`: for the request, with the port unless it is the scheme's own.

    Raises OwnRelay when the relay's key is `own_key`, before it learns who we are; ConnectError when it says that it
    does not let us in, RemoteProtocolError for whatever else is no login.
    """
    http = ClientHttp(head_only=True)
    await stream.send_all(http.send_request("GET", "/derp", list(derp_request_headers(host))))
    answer = None
    while answer is None:
        answer = http.receive_data(await stream.receive_some())
    judged = judge_derp_answer(answer.status, answer.headers)
    if judged.kind is not AnswerKind.UPGRADED:
        raise RemoteProtocolError(judged.reason)
    await shake_hands(stream, connection, http.trailing_data(), own_key=own_key)


async def shake_hands(
    stream: LinkStream, connection: ClientConnection, received: bytes = b"", *, own_key: bytes | None = None
) -> None:
    """What `log_in` does after the upgrade; `received` came with that."""
    while True:
        if received:
            connection.receive_data(received)
            if connection.state is ClientState.OPEN:
                return
            if connection.refusal:
                raise ConnectError(f"it says: {fit_to_show(connection.refusal)}")
            if connection.server_key == own_key:
                raise OwnRelay("it is this relay")
            await stream.send_all(b"".join(connection.data_to_send()))
        received = await stream.receive_some()
        if not received:
            connection.receive_eof()
