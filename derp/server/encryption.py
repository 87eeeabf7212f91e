"""TLS of a server as its settings want it, and who keeps its certificate good.  Layer L3.

Called by life.py.  Next hop: transport/tls.py, and for certificates of an authority certificates.py.
"""

import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from derp.config import TlsConfig
from derp.keys import NodePublic
from derp.transport.tls import TlsServer

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


def open_keeper(tls: TlsServer | None, changed: Callable[[], None]) -> "CertificateKeeper | None":
    """Who asks an authority for certificates and renews them; None where nobody has to.  `changed`: files have."""
    if tls is None or tls.config.acme is None:
        return None
    from derp.server.certificates import CertificateKeeper

    return CertificateKeeper(tls.config, tls.show_proof, changed)
