"""The error tree of the relay (layer L0).

DerpError
|- ProtocolError             only cores raise these
|  |- LocalProtocolError       we misused the core: nothing changed
|  `- RemoteProtocolError      the peer misbehaved: the core is dead
|     `- Flood                    it sent more at once than any honest peer does
|- TransportError            sockets, TLS, proxies, websockets; see transport/stream.py
|  |- ConnectError             could not reach the peer, or it refused us
|  |  `- UpgradeRefused           with an HTTP status
|  |- ConnectionClosed         the peer ended a live connection
|  `- TransportTimeout         a deadline passed
|- ConfigError               names the place, the key and what to change
|  `- ListenError              an address cannot be listened on, now and here
|- KeyFormatError            a key in text form is not one
|- SignedFormatError         a document or a ticket is not what somebody trusted signed
`- MapFormatError            a DERP map is not one; names the place inside it
"""


class DerpError(Exception):
    """Root of everything this package raises on purpose."""


class ProtocolError(DerpError):
    """A rule of a wire protocol was broken."""


class LocalProtocolError(ProtocolError):
    """We asked a core for something it must not do; its state did not change."""


class RemoteProtocolError(ProtocolError):
    """The peer broke the protocol; the core that raised this accepts nothing more."""


class Flood(RemoteProtocolError):
    """The peer sent more items at once than any honest peer does; drivers count it apart."""


class TransportError(DerpError):
    """The operating system, TLS, a proxy or a websocket failed us."""


class ConnectError(TransportError):
    """The peer could not be reached, or it turned us away before the protocol began."""


class UpgradeRefused(ConnectError):
    """The server answered our upgrade with `status`; `retry_after_seconds`: when to come again, if it says so."""

    def __init__(self, text: str, status: int, retry_after_seconds: float = 0.0) -> None:
        super().__init__(text)
        self.status = status
        self.retry_after_seconds = retry_after_seconds


class ConnectionClosed(TransportError):
    """A live connection ended."""


class TransportTimeout(TransportError):
    """A deadline passed before the peer answered."""


class ConfigError(DerpError):
    """A setting is wrong.  The text names file, key and reason in one line."""


class ListenError(ConfigError):
    """An address cannot be listened on.  The setting may be right, and another program in the way."""


class KeyFormatError(DerpError, ValueError):
    """Text that should be a key is not one.  The text never repeats a private key."""


class SignedFormatError(DerpError, ValueError):
    """What should be a signed document is not to be believed.  The text goes on after the document's name: "is ..."."""


class MapFormatError(DerpError, ValueError):
    """Text or JSON that should be a DERP map is not one.  The text names the place inside the map."""
