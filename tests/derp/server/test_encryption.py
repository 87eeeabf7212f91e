"""TLS as settings want it: none, self-signed, or by an authority, whose client is loaded by nobody else."""

import subprocess
import sys
from pathlib import Path

from derp.config.relay import AcmeConfig, TlsConfig
from derp.keys import NodePrivate
from derp.server.encryption import KeptElsewhere, open_keeper, open_tls
from tests.derp.server.world import SELF_SIGNED

KEY = NodePrivate.generate().public()


def test_without_tls_there_is_nothing_to_keep() -> None:
    assert open_tls(None, KEY) is None
    assert open_keeper(None, lambda: None) is None


def test_what_nobody_renews_has_no_keeper() -> None:
    tls = open_tls(SELF_SIGNED, KEY)
    assert tls is not None
    assert open_keeper(tls, lambda: None) is None


def test_a_certificate_of_an_authority_has_one(tmp_path: Path) -> None:
    config = TlsConfig(
        cert_file=tmp_path / "cert.pem",
        key_file=tmp_path / "key.pem",
        hostname="relay.example",
        acme=AcmeConfig(directory_url="https://127.0.0.1:1/"),
    )
    tls = open_tls(config, KEY)
    assert tls is not None
    keeper = open_keeper(tls, lambda: None)
    assert keeper is not None
    assert keeper.challenges == {}


def test_a_worker_shows_what_its_supervisor_says_and_asks_nobody(tmp_path: Path) -> None:
    config = TlsConfig(tmp_path / "c", tmp_path / "k", "relay.example", acme=AcmeConfig(), is_kept_elsewhere=True)
    tls = open_tls(config, KEY)
    assert tls is not None
    assert open_keeper(tls, lambda: None) is None
    kept = KeptElsewhere(tls)

    kept.show(b"d" * 32, {"token": b"body"}, 2)
    assert (tls.proof is None, kept.challenges, kept.failures) == (False, {"token": b"body"}, 2)

    kept.show(None, {}, 0)
    assert (tls.proof, kept.challenges, kept.failures) == (None, {}, 0)


def test_the_authority_s_client_is_not_loaded_without_one() -> None:
    code = "import sys, derp.server.server; print([name for name in sys.modules if name in ('acme', 'josepy')])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
