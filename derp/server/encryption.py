"""TLS of a server as its settings want it, and who keeps its certificate good.  Layer L3.

Called by life.py.  Next hop: transport/tls.py, and for certificates of an authority certificates.py.
"""

import logging
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from derp.config import TlsConfig
from derp.keys import NodePublic
from derp.transport.tls import TlsServer
from derp.transport.tls_alpn import show_proof

if TYPE_CHECKING:
    from derp.server.certificates import CertificateKeeper

_log = logging.getLogger("derp.server")


def open_tls(config: TlsConfig | None, public_key: NodePublic) -> TlsServer | None:
    """TLS with the certificate that settings name; None where they want none.  Raises ConfigError."""
    if config is None:
        return None
    if config.acme is not None:
        # Imported here: the library behind it is large, and most servers do without.
        from derp.server.autocert import adopt_autocert

        for notice in adopt_autocert(config):
            _log.warning("! %s", notice)
    tls = TlsServer(config, public_key, now=time.time())
    for notice in tls.notices:
        _log.warning("! %s", notice)
    return tls


class KeptElsewhere:
    """A worker's part of a certificate for which its supervisor asks: it shows what the supervisor's keeper says."""

    def __init__(self, tls: TlsServer) -> None:
        self._tls = tls
        self.challenges: dict[str, bytes] = {}
        self.failures = 0

    def show(self, digest: bytes | None, challenges: Mapping[str, bytes], failures: int) -> None:
        """Show what the keeper has of each (certificates.py) from now on."""
        show_proof(self._tls, digest)
        self.challenges.clear()
        self.challenges.update(challenges)
        self.failures = failures


def open_keeper(
    tls: TlsServer | None,
    installed: Callable[[], None],
    changed: "Callable[[CertificateKeeper], None] | None" = None,
) -> "CertificateKeeper | None":
    """Who asks an authority for certificates and renews them; None where nobody has to, or somebody else does.

    `installed`: there is a new one in the files.  `changed`: who shows its proofs (certificates.py), if not `tls`.
    """
    if tls is None or tls.config.acme is None or tls.config.is_kept_elsewhere:
        return None
    from derp.server.certificates import CertificateKeeper

    def show(keeper: CertificateKeeper) -> None:
        show_proof(tls, keeper.digest)

    return CertificateKeeper(tls.config, changed or show, installed)
