"""Why a TLS handshake with somebody who called did not come about, as a reason to count and a sentence.  Layer L2.

Who runs nginx or Caddy in front sees a bare alert on that side; what was wrong with the hello is known here alone.
tls.py notes the name that was asked for, links.py asks `handshake_failure`, server/door.py counts and logs it.
"""

import ssl
from typing import Final

from derp.close_reason import CloseReason
from derp.text import error_text, printable

_MAX_NAME: Final = 80
_TOO_OLD: Final = frozenset(
    {
        *("UNSUPPORTED_PROTOCOL", "VERSION_TOO_LOW", "NO_PROTOCOLS_AVAILABLE", "UNKNOWN_PROTOCOL"),
        *("NO_SHARED_CIPHER", "NO_SUITABLE_KEY_SHARE", "NO_SUITABLE_SIGNATURE_ALGORITHM", "NO_SHARED_GROUP"),
        *("NO_SHARED_SIGNATURE_ALGORITHMS", "INAPPROPRIATE_FALLBACK", "TLSV1_ALERT_PROTOCOL_VERSION"),
    }
)
_NOT_TLS: Final = frozenset({"HTTP_REQUEST", "HTTPS_PROXY_REQUEST", "WRONG_VERSION_NUMBER", "BAD_RECORD_TYPE"})
_DISTRUST: Final = frozenset(
    {
        *("TLSV1_ALERT_UNKNOWN_CA", "SSLV3_ALERT_BAD_CERTIFICATE", "SSLV3_ALERT_CERTIFICATE_EXPIRED"),
        *("SSLV3_ALERT_CERTIFICATE_UNKNOWN", "SSLV3_ALERT_CERTIFICATE_REVOKED", "SSLV3_ALERT_UNSUPPORTED_CERTIFICATE"),
        "TLSV1_ALERT_ACCESS_DENIED",
    }
)


class AskedTls(ssl.SSLObject):
    """The server's side, which remembers the name in a hello that is refused (ssl.SSLContext.sslobject_class)."""

    is_name_refused = False
    asked_name: str | None = None
    served_name = ""

    def refuse_name(self, asked: str | None, served: str) -> None:
        """Called from the SNI callback, in the middle of the handshake that fails by it."""
        self.is_name_refused, self.asked_name, self.served_name = True, asked, served


def handshake_failure(tls: ssl.SSLObject, error: ssl.SSLError) -> tuple[CloseReason, str]:
    """The reason and the sentence, for an error of the server's side before the handshake was over."""
    reason = getattr(error, "reason", None) or ""
    if isinstance(tls, AskedTls) and tls.is_name_refused:
        if tls.asked_name is None:
            return CloseReason.TLS_NO_NAME, (
                f"the hello has no name (SNI), and only {tls.served_name} is served: a proxy in front has to send it "
                "(nginx: proxy_ssl_server_name on and proxy_ssl_name; Caddy: tls_server_name; HAProxy: sni)"
            )
        asked = printable(tls.asked_name, _MAX_NAME)
        return CloseReason.TLS_OTHER_NAME, f"the hello asks for {asked}, and only {tls.served_name} is served"
    if reason in _TOO_OLD:
        return CloseReason.TLS_TOO_OLD, f"the hello has no version or cipher of ours, TLS 1.2 and 1.3 ({reason})"
    if reason in _NOT_TLS:
        kind = "plain HTTP" if reason.startswith("HTTP") else "no TLS"
        return CloseReason.TLS_NOT_SPOKEN, (
            f"{kind} came to a port that speaks TLS: it wants https:// (nginx: proxy_pass https://...) ({reason})"
        )
    if reason in _DISTRUST:
        return CloseReason.TLS_DISTRUSTED, (
            f"the client refuses our certificate ({reason}): it does not trust its issuer, or expects another name or "
            "pin; `derp probe` shows what clients see"
        )
    return CloseReason.TLS_FAILED, f"TLS: {reason or error_text(error)}"
