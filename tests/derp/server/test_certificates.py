"""When a certificate is asked for, what becomes of the answer, and that failures cost nothing but the wait."""

import itertools
import logging
import stat
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import trio
from cryptography import x509
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key
from trio.testing import MockClock, wait_all_tasks_blocked

from derp.config.relay import AcmeConfig, TlsConfig
from derp.server.certificates import CertificateKeeper
from derp.transport.acme import AcmeError
from tests.derp.server.world import ask, open_server, relay_config
from tests.support.certificates import Issued, issue

NAME = "relay.example"
DAY = 86_400.0
START = datetime(2030, 1, 1, tzinfo=UTC).timestamp()
ROOT = issue("root", is_authority=True)


def chain_for(key: bytes, now: float, days: float = 90, name: str = NAME) -> bytes:
    """What an authority would answer: a chain for this key, valid from now on."""
    moment = datetime.fromtimestamp(now, UTC)
    private = load_pem_private_key(key, password=None)
    leaf = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([]))
        .issuer_name(ROOT.certificate.subject)
        .public_key(private.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(moment)
        .not_valid_after(moment + timedelta(days=days))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=True)
        .sign(ROOT.key, SHA256())
    )
    return leaf.public_bytes(Encoding.PEM) + ROOT.pem


class Authority:
    """Answers as its `answers` say, in order, the last one for ever; knows when it was asked, in days from START."""

    def __init__(self, *answers: Callable[[bytes, float], bytes]) -> None:
        self.answers = list(answers)
        self.asked: list[float] = []
        self.keys: list[bytes] = []
        self.done = trio.Event()
        self.enough = 1

    def now(self) -> float:
        return START + trio.current_time()

    async def __call__(self, key: bytes) -> bytes:
        self.asked.append(trio.current_time())
        self.keys.append(key)
        if len(self.asked) >= self.enough:
            self.done.set()
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        return answer(key, self.now())


def refuses(key: bytes, now: float) -> bytes:
    raise AcmeError("ca.example refused: too many certificates")


@pytest.fixture
def config(tmp_path: Path) -> TlsConfig:
    return TlsConfig(tmp_path / f"{NAME}.crt", tmp_path / f"{NAME}.key", NAME, acme=AcmeConfig("https://ca.example"))


def no_proof(keeper: CertificateKeeper) -> None:
    """Nothing is proven where `obtain` stands for the authority."""


def installed() -> None:
    """Nobody serves what is installed here."""


async def asked_times(config: TlsConfig, authority: Authority, count: int, spread: float = 0.0) -> list[float]:
    """Run a keeper in virtual time until it has asked so often; when it did, in seconds."""
    authority.enough = count
    keeper = CertificateKeeper(
        config, no_proof, installed, obtain=authority, clock=authority.now, spread=lambda: spread
    )
    async with trio.open_nursery() as nursery:
        nursery.start_soon(keeper.run)
        await authority.done.wait()
        await trio.sleep(60)  # in virtual time: the answer to the last question is dealt with
        nursery.cancel_scope.cancel()
    assert len(authority.asked) == count
    return authority.asked


async def test_it_asks_at_once_and_again_when_a_third_is_left(config: TlsConfig, autojump_clock: MockClock) -> None:
    authority = Authority(chain_for)
    assert await asked_times(config, authority, 3) == pytest.approx([0, 60 * DAY, 120 * DAY], abs=3601)
    assert config.cert_file is not None
    assert config.key_file is not None
    for file in (config.cert_file, config.key_file):
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
    # one key for all of them, so that a pair never has halves of two
    assert set(authority.keys) == {config.key_file.read_bytes()}
    leaf = x509.load_pem_x509_certificates(config.cert_file.read_bytes())[0]
    assert leaf.not_valid_after_utc.timestamp() == pytest.approx(START + 210 * DAY, abs=7300)
    assert sorted(path.name for path in config.cert_file.parent.iterdir()) == [f"{NAME}.crt", f"{NAME}.key"]


async def test_relays_spread_their_renewals(config: TlsConfig, autojump_clock: MockClock) -> None:
    first, second = await asked_times(config, Authority(chain_for), 2, spread=1.0)
    assert second - first == pytest.approx((60 - 90 / 50) * DAY, abs=3601)


async def test_short_lived_certificates_are_renewed_in_time(config: TlsConfig, autojump_clock: MockClock) -> None:
    times = await asked_times(config, Authority(lambda key, now: chain_for(key, now, days=6)), 3)
    assert times == pytest.approx([0, 4 * DAY, 8 * DAY], abs=3601)


async def test_one_that_is_there_is_not_asked_for(config: TlsConfig, autojump_clock: MockClock) -> None:
    await asked_times(config, Authority(chain_for), 1)
    # the next start, 60 s later: two thirds of its life are still to pass
    again = Authority(chain_for)
    begin = trio.current_time()
    assert await asked_times(config, again, 1) == pytest.approx([begin + 60 * DAY], abs=3601)


# By their dates both would be good for decades.
LONG = (timedelta(days=-1), timedelta(days=36_500))


@pytest.mark.parametrize("there", [issue(NAME, valid=LONG), issue("other.example", issuer=ROOT, valid=LONG), None])
@pytest.mark.parametrize("has_its_key", [True, False])
async def test_one_of_no_use_is_replaced_at_once(
    config: TlsConfig, autojump_clock: MockClock, there: Issued | None, has_its_key: bool
) -> None:
    assert config.cert_file is not None
    assert config.key_file is not None
    config.cert_file.write_bytes(b"broken" if there is None else there.pem)
    if there is not None and has_its_key:
        config.key_file.write_bytes(there.key_pem)
    assert await asked_times(config, Authority(chain_for), 1) == [0]


async def test_a_chain_without_its_key_is_replaced_at_once(config: TlsConfig, autojump_clock: MockClock) -> None:
    there = issue(NAME, issuer=ROOT, valid=LONG)
    assert config.cert_file is not None
    assert config.key_file is not None
    config.cert_file.write_bytes(there.pem)
    config.key_file.write_bytes(there.key_pem)
    # a good pair: nobody is asked for decades
    keeper = CertificateKeeper(config, no_proof, installed, obtain=Authority(chain_for), clock=lambda: START)
    assert keeper._due() > START + 1000 * DAY
    config.key_file.write_bytes(issue(NAME).key_pem)
    assert await asked_times(config, Authority(chain_for), 1) == [0]


async def test_failures_wait_longer_each_time_and_keep_the_old_one(
    config: TlsConfig, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    await asked_times(config, Authority(chain_for), 1)
    assert config.cert_file is not None
    before = config.cert_file.read_bytes()
    times = await asked_times(config, Authority(refuses), 10)
    waits = [round((later - earlier) / 60) for earlier, later in itertools.pairwise(times)]
    assert waits == [10, 20, 40, 80, 160, 320, 360, 360, 360]
    assert config.cert_file.read_bytes() == before
    line = next(record.getMessage() for record in caplog.records if record.levelno == logging.ERROR)
    assert line == (
        "! no new certificate: ca.example refused: too many certificates; "
        "the one in service lasts until 2030-04-01 00:00 UTC; trying again in 10 min, on SIGHUP at once"
    )


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (lambda key, now: b"no PEM", "what the authority issued is no PEM chain"),
        (lambda key, now: issue(NAME).pem, f"what the authority issued is not for our key and {NAME}"),
        (lambda key, now: chain_for(key, now, name="b.example"), f"is not for our key and {NAME}"),
    ],
)
async def test_what_could_not_be_served_is_not_installed(
    config: TlsConfig,
    autojump_clock: MockClock,
    caplog: pytest.LogCaptureFixture,
    answer: Callable[[bytes, float], bytes],
    says: str,
) -> None:
    await asked_times(config, Authority(answer), 1)
    assert config.cert_file is not None
    assert not config.cert_file.exists()
    assert says in caplog.text
    assert "clients refuse the temporary one; trying again in 10 min" in caplog.text


async def test_a_folder_that_is_a_file_is_told(
    tmp_path: Path, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "certs").write_text("")
    config = TlsConfig(tmp_path / "certs" / "r.crt", tmp_path / "certs" / "r.key", NAME, acme=AcmeConfig())
    keeper = CertificateKeeper(config, no_proof, installed, obtain=Authority(chain_for), clock=lambda: START)
    with trio.move_on_after(200):
        await keeper.run()
    assert f"{tmp_path}/certs" in caplog.text
    assert "--cert-dir has to be writable" in caplog.text


async def test_a_key_that_is_none_is_named_and_never_overwritten(
    config: TlsConfig, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    assert config.key_file is not None
    config.key_file.write_text("half a key")
    with trio.move_on_after(200):
        await CertificateKeeper(config, no_proof, installed, obtain=Authority(chain_for), clock=lambda: START).run()
    assert f"{config.key_file}: is no private key without passphrase: remove it" in caplog.text
    assert config.key_file.read_text() == "half a key"


async def test_the_operator_may_ask_for_another_attempt(config: TlsConfig, mock_clock: MockClock) -> None:
    authority = Authority(refuses, chain_for)
    keeper = CertificateKeeper(config, no_proof, installed, obtain=authority, clock=authority.now, spread=lambda: 0.0)
    assert config.cert_file is not None
    async with trio.open_nursery() as nursery:  # in a time that stands still
        nursery.start_soon(keeper.run)
        await authority.done.wait()
        await wait_all_tasks_blocked()
        assert authority.asked == [0]
        keeper.retry_now()
        while not config.cert_file.exists():  # written by a thread, which virtual time does not wait for
            await trio.lowlevel.checkpoint()
        assert authority.asked == [0, 0]
        await wait_all_tasks_blocked()
        keeper.retry_now()  # after a success there is nothing to retry
        await wait_all_tasks_blocked()
        assert authority.asked == [0, 0]
        nursery.cancel_scope.cancel()


async def test_challenges_are_shown_on_the_plain_port_and_on_the_other(tmp_path: Path) -> None:
    # nobody listens on port 1: the first attempt fails, the relay does not
    acme = AcmeConfig("https://127.0.0.1:1/dir")
    tls = TlsConfig(tmp_path / "r.crt", tmp_path / "r.key", NAME, acme=acme)
    get = b"GET /.well-known/acme-challenge/%s HTTP/1.1\r\nHost: relay.example\r\nConnection: close\r\n\r\n"
    async with open_server(relay_config(tls=tls, http_port=0)) as server:
        assert server.keeper is not None
        server.keeper.challenges["tok-en_1"] = b"tok-en_1.thumb"
        shown = await ask(server, get % b"tok-en_1", "http")
        assert shown.startswith(b"HTTP/1.1 200 ")
        assert shown.endswith(b"\r\n\r\ntok-en_1.thumb")
        unknown = await ask(server, get % b"other", "http")
        assert unknown.startswith(b"HTTP/1.1 404 ")
        assert b"does the name lead to another machine as well?" in unknown
    async with open_server(relay_config()) as server:
        assert (await ask(server, get % b"tok-en_1")).startswith(b"HTTP/1.1 200 "), "without ACME it is any page"
