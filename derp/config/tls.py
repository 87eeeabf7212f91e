"""The certificate's source, as the settings of relay and coordinator say it: a pair of files, one that is made here, or
an authority that is asked (layer L2).  What becomes of it: transport/tls.py, server/certificates.py."""

import ipaddress
import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Final

from derp.config.relay import GOOGLE_DIRECTORY, LETSENCRYPT_DIRECTORY, AcmeConfig, TlsConfig
from derp.config.sources import Given
from derp.map import is_address

Addresses = tuple[tuple[str, int], ...]

# By --cert-mode: whom to ask.
_AUTHORITIES: Final = {"letsencrypt": LETSENCRYPT_DIRECTORY, "gcp": GOOGLE_DIRECTORY}
_ACME: Final = ("acme_email", "acme_ip_certs", "acme_dns_hook", "acme_directory_url", "acme_eab_kid", "acme_eab_key")


def read_tls(
    given: Given, listen: Addresses, *, hostname: str, default_http_port: int, as_derper: bool
) -> TlsConfig | None:
    """What the settings say, None for plain HTTP; raises ConfigError.

    `hostname`: as the operator spells it.  `default_http_port`: of plain HTTP beside TLS, -1 for none.  `as_derper`:
    port 443 is TLS whatever else is said, and asks Let's Encrypt if nothing is.
    """
    tls = _read_source(given, listen, hostname=hostname, default_http_port=default_http_port, as_derper=as_derper)
    if given.get("tls_records", "openssl") == "openssl":
        return tls
    if tls is None and not given.get("dev", False):
        given.fail("tls_records", "has no effect without a certificate: set --cert-mode, --tls-cert or the like")
    return tls and replace(tls, own_records=True)


def _read_source(
    given: Given, listen: Addresses, *, hostname: str, default_http_port: int, as_derper: bool
) -> TlsConfig | None:
    mode = given.get("cert_mode")
    manual, pair, generated = mode == "manual", "tls_cert" in given, given.get("tls_self_signed", False)
    is_tls_port, dev = as_derper and any(port == 443 for _, port in listen), given.get("dev", False)
    # derper's own default, but only for one who said a name: nobody else can mean it.
    if mode is None and is_tls_port and hostname and not (pair or generated or dev):
        mode = "letsencrypt"
        given.notices.append(
            "no source of the certificate was given: asking Let's Encrypt as derper does, which accepts its terms; "
            "--cert-mode says it, or something else"
        )
    # Under --dev derper's default mode means plain HTTP, and so it does here.
    acme = mode in _AUTHORITIES and not (mode == "letsencrypt" and dev and not is_tls_port)
    _check_sources(given, sources=manual + acme + pair + generated)
    spelled, hostname = hostname, str(ipaddress.ip_address(hostname)) if is_address(hostname) else hostname
    if manual:
        if not hostname:
            given.fail("hostname", "--cert-mode manual needs --hostname: the certificate's file is called after it")
        return _manual_tls(given, hostname, spelled)
    if acme:
        return _acme_tls(given, mode, hostname, listen, default_http_port)
    for name in _ACME:
        if given.get(name) and not dev:
            given.fail(name, "has no effect without --cert-mode letsencrypt or gcp, and a --hostname: add them")
    if pair:
        return TlsConfig(given.get("tls_cert"), given.get("tls_key"), hostname)
    if generated:
        return _generated_tls(given, hostname, listen)
    if is_tls_port:
        given.fail(
            "listen",
            "port 443 speaks TLS and needs a certificate: set --hostname, and --cert-mode letsencrypt or manual, or "
            "--tls-cert and --tls-key, or --tls-self-signed; for plain HTTP listen on another port, or use --dev",
        )
    return None


def _check_sources(given: Given, *, sources: int) -> None:
    pair = "tls_cert" in given
    if pair != ("tls_key" in given):
        given.fail("tls_cert" if pair else "tls_key", "a certificate needs its key: set both --tls-cert and --tls-key")
    if sources > 1:
        given.fail(
            "tls_cert" if pair else "tls_self_signed",
            "only one of --cert-mode, --tls-cert and --tls-self-signed can be the source of the certificate",
        )


def _certificate_files(folder: Path, hostname: str) -> tuple[Path, Path]:
    # derper's names: what is no letter, digit, dot or dash is left out, so ::1 becomes 1.
    stem = re.sub(r"[^a-zA-Z0-9\-.]", "", hostname)
    return folder / f"{stem}.crt", folder / f"{stem}.key"


def _certificate_folder(given: Given) -> Path:
    if "cert_dir" in given:
        folder: Path = given.get("cert_dir")
        return folder
    cache = given.environ.get("XDG_CACHE_HOME") or os.path.join(given.environ.get("HOME", ""), ".cache")
    if not os.path.isabs(cache):
        given.fail("cert_dir", "has no default without a home directory: say where the certificates lie")
    return Path(cache) / "tailscale" / "derper-certs"


def _generated_tls(given: Given, hostname: str, listen: Addresses) -> TlsConfig:
    hostname = hostname or next((host for host, _ in listen if host), "localhost")
    if "cert_dir" in given:
        return TlsConfig(*_certificate_files(given.get("cert_dir"), hostname), hostname, self_signed=True)
    given.notices.append(
        f"{given.place('tls_self_signed')}: makes another certificate at every start, and clients that have pinned "
        "this one lose us: set --cert-dir to keep it"
    )
    return TlsConfig(hostname=hostname, self_signed=True)


def _manual_tls(given: Given, hostname: str, spelled: str) -> TlsConfig:
    # The files are called as the operator spells the name, 2001:0DB8::1 too: another name would mean another
    # certificate than the one that clients pin.
    # By address no client sends SNI, so any is served, and a missing certificate can only be a self-signed one.
    by_address = is_address(hostname)
    files = _certificate_files(_certificate_folder(given), spelled)
    return TlsConfig(*files, hostname, require_sni=not by_address, self_signed=by_address)


def _acme_tls(given: Given, mode: str, hostname: str, listen: Addresses, default_http_port: int) -> TlsConfig:
    by_address, http_port = is_address(hostname), given.get("http_port", default_http_port)
    if not hostname or (by_address and not given.get("acme_ip_certs", False)):
        given.fail(
            "hostname",
            f"--cert-mode {mode} needs a host name to get a certificate for: set --hostname; for an address add "
            "--acme-ip-certs, or use --cert-mode manual, which makes a certificate for the map to pin",
        )
    if given.get("acme_ip_certs", False) and (mode != "letsencrypt" or not by_address):
        given.fail(
            "acme_ip_certs",
            "gets a certificate from Let's Encrypt for --hostname when that is an IP address: set it to the address "
            "that clients dial, or leave --acme-ip-certs out",
        )
    acme = AcmeConfig(
        directory_url=given.get("acme_directory_url", _AUTHORITIES[mode]),
        email=given.get("acme_email", ""),
        challenges=_acme_challenges(given, listen, http_port),
        dns_hook=given.get("acme_dns_hook", ()),
        eab_kid=given.get("acme_eab_kid", ""),
        eab_key=given.get("acme_eab_key", b""),
    )
    if bool(acme.eab_kid) != bool(acme.eab_key):
        given.fail(
            "acme_eab_kid" if acme.eab_kid else "acme_eab_key",
            "an external account binding is a pair: set both --acme-eab-kid and --acme-eab-key",
        )
    if mode == "gcp" and not (acme.eab_kid and acme.email):
        given.fail("cert_mode", "Google wants to know who asks: set --acme-eab-kid, --acme-eab-key and --acme-email")
    _check_acme_port(given, acme.challenges[0], hostname, listen, http_port)
    # Every name but ours is refused, as derper does; by address clients say none.
    files = _certificate_files(_certificate_folder(given), hostname)
    return TlsConfig(*files, hostname, require_sni=not by_address, acme=acme)


def _acme_challenges(given: Given, listen: Addresses, http_port: int) -> tuple[str, ...]:
    wanted, hook = given.get("acme_challenge", "auto"), given.get("acme_dns_hook")
    if wanted == "auto" and hook:
        wanted = "dns-01"
    if (wanted == "dns-01") != bool(hook):
        given.fail(
            "acme_dns_hook" if hook else "acme_challenge",
            "--acme-challenge dns-01 and --acme-dns-hook go together: the hook publishes the record",
        )
    if wanted == "http-01" and http_port < 0:
        given.fail(
            "http_port",
            "the authority asks there whether the name is ours: set it to 80, or use --acme-challenge tls-alpn-01 "
            "or dns-01",
        )
    if wanted != "auto":
        return (wanted,)
    if http_port < 0:
        return ("tls-alpn-01",)
    # First the one that most likely works: behind a forwarded port we cannot know.
    is_tls_port = any(port == 443 for _, port in listen)
    return ("tls-alpn-01", "http-01") if is_tls_port or http_port != 80 else ("http-01", "tls-alpn-01")


def _check_acme_port(given: Given, challenge: str, hostname: str, listen: Addresses, http_port: int) -> None:
    asked, ours = {
        "http-01": (80, [http_port]),
        "tls-alpn-01": (443, [port for _, port in listen]),
    }.get(challenge, (0, [0]))
    if asked not in ours:
        given.notices.append(
            f"the authority asks at port {asked} whether {hostname} is ours: "
            f"it has to be forwarded to port {ours[0]} here"
        )
