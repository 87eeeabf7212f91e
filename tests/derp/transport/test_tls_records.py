"""Links that take over from OpenSSL: real handshakes, in every order and cut, and OpenSSL's own client as the peer.

What links do in general is in test_links.py, for these links too.
"""

import os
import random
import select
import shutil
import socket
import ssl
import subprocess
from pathlib import Path

import pytest

from derp.close_reason import CloseReason
from derp.protocol.tls13 import SUITES
from derp.transport.framing import RECEIVE_BYTES
from derp.transport.host import WireEnded
from derp.transport.links import TlsLink
from derp.transport.tls_records import RecordKeeper, RecordLink, SecretTap
from tests.support.certificates import client_context, issue, server_context
from tests.support.wires import HOSTNAME, PlainWire, TlsWire, own_contexts, socket_pair

ADDRESS = ("127.0.0.1", 1)
OPENSSL = shutil.which("openssl")


class Served:
    """A link and its client, which have not spoken yet."""

    def __init__(
        self,
        *,
        contexts: tuple[ssl.SSLContext, ssl.SSLContext, RecordKeeper] | None = None,
        hello: bytes = b"",
        link_class: type[RecordLink] = RecordLink,
    ) -> None:
        server, client, keeper = contexts or own_contexts()
        near, self.far = socket_pair()
        self.link = link_class(near, ADDRESS, server, keeper)
        self.plain = PlainWire(self.far)
        self.client = TlsWire(self.plain, client)
        if hello:
            self.client.write(hello)
        self.received = b""
        self.ended: WireEnded | None = None
        self._buffers = [memoryview(bytearray(2 * RECEIVE_BYTES)) for _ in range(3)]

    def receive(self) -> None:
        try:
            end = self.link.receive(self._buffers[0], 0, self._buffers[1], self._buffers[2])
        except WireEnded as ended:
            self.ended = ended
            return
        self.received += bytes(self._buffers[0][:end])
        self.ended = self.link.ending

    def shake_hands(self) -> None:
        while not self.link.is_open:
            self.receive()
            assert self.ended is None
            self.client.read()

    @property
    def is_ours(self) -> bool:
        return not hasattr(self.link, "_tls")

    def close(self) -> None:
        self.link.close()
        self.client.close()


def logged(tap: SecretTap) -> bytes:
    """What is in a tap, read beside it."""
    fd = tap._fd
    return os.pread(fd, 1 << 20, 0)


# --- the hand-over from OpenSSL


def test_after_the_handshake_there_is_no_openssl_and_no_secret_left() -> None:
    served = Served()
    tap = own_contexts()[2].tap
    assert tap is not None
    served.shake_hands()
    assert served.is_ours
    assert logged(tap) == b""
    assert served.link.version() == "TLSv1.3" == served.client.version()
    served.client.write(b"question")
    served.receive()
    assert served.received == b"question"
    served.link.send([b"ans", b"wer"], 6)
    assert served.client.read() == b"answer"
    served.close()


def test_the_tap_has_no_name_and_is_not_inherited() -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tap = SecretTap(context)
    assert str(Path(f"/proc/self/fd/{tap._fd}").readlink()).startswith("/memfd:")
    assert not os.get_inheritable(tap._fd)
    assert tap.take() == (b"", b""), "the comment at the head of the file is no secret"
    assert logged(tap) == b""
    fd = tap._fd
    del tap
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


def test_a_failed_handshake_leaves_no_secret() -> None:
    server, _, keeper = own_contexts()
    stranger = client_context(issue(common_name="another", is_authority=True))
    served = Served(contexts=(server, stranger, keeper))
    assert keeper.tap is not None
    served.receive()
    with pytest.raises(ssl.SSLCertVerificationError):
        served.client.read()
    assert logged(keeper.tap) == b""
    served.close()


def test_tls_12_stays_with_openssl_and_its_secret_is_wiped() -> None:
    authority = issue(common_name="authority", is_authority=True)
    server, keeper = server_context(issue(HOSTNAME, issuer=authority), tls12=True), RecordKeeper()
    keeper.watch(server)
    served = Served(contexts=(server, client_context(authority), keeper), hello=b"hello")
    served.shake_hands()
    while not served.received:
        served.receive()
    assert served.received == b"hello"
    assert not served.is_ours
    assert served.link.version() == "TLSv1.2"
    assert keeper.tap is not None
    assert logged(keeper.tap) == b""
    served.link.send_raw(b"answer")
    assert served.client.read() == b"answer"
    served.close()


@pytest.mark.parametrize("seed", range(20))
def test_handshakes_in_any_order_do_not_mix_their_secrets(seed: int) -> None:
    generator = random.Random(seed)
    many = [Served(hello=b"hello from %d" % number) for number in range(6)]
    while waiting := [one for one in many if not one.received]:
        one = generator.choice(waiting)
        if generator.random() < 0.5:
            one.receive()
        else:
            one.client.read()
        assert one.ended is None
    for number, one in enumerate(many):
        assert one.received == b"hello from %d" % number
        one.link.send_raw(b"for %d" % number)
        assert one.client.read() == b"for %d" % number
        one.close()


def test_what_somebody_else_left_in_the_tap_is_not_taken() -> None:
    server, client, keeper = own_contexts()
    near, far = socket_pair()
    careless = TlsLink(near, ADDRESS, server)  # logs its secrets, and takes none
    wire = TlsWire(PlainWire(far), client)
    buffers = [memoryview(bytearray(RECEIVE_BYTES)) for _ in range(2)]
    served = Served(hello=b"hello")
    served.receive()
    served.client.read()
    careless.receive(buffers[0], 0, buffers[1], buffers[1])
    wire.read()
    assert keeper.tap is not None
    assert b"TRAFFIC_SECRET_0" in logged(keeper.tap)
    served.receive()
    assert served.received == b"hello"
    served.close()
    careless.close()
    wire.close()


def test_a_new_context_in_the_middle_of_a_handshake() -> None:
    authority = issue(common_name="authority", is_authority=True)
    keeper, client = RecordKeeper(), client_context(authority)
    first, second = (server_context(issue(HOSTNAME, issuer=authority)) for _ in range(2))
    keeper.watch(first)
    begun = Served(contexts=(first, client, keeper), hello=b"old")
    begun.receive()
    keeper.watch(second)
    later = Served(contexts=(second, client, keeper), hello=b"new")
    for one, hello in ((later, b"new"), (begun, b"old")):
        one.shake_hands()
        assert one.received == hello
        assert one.is_ours
        one.close()


# --- what stands right behind the client's Finished


def flight(served: Served) -> bytes:
    """The client's second flight with its first data, not sent."""
    served.receive()
    send, served.plain.write = served.plain.write, lambda data: None  # type: ignore[method-assign]
    sent: list[bytes] = []
    served.plain.write = sent.append  # type: ignore[method-assign, assignment]
    served.client.read()
    served.plain.write = send  # type: ignore[method-assign]
    return b"".join(sent)


def test_data_behind_finished_at_every_cut() -> None:
    whole = Served(hello=b"early")
    size = len(flight(whole))
    whole.close()
    for cut in range(1, size):
        served = Served(hello=b"early")
        data = flight(served)
        for part in (data[:cut], data[cut:]):
            served.plain.write(part)
            served.receive()
        assert served.received == b"early", cut
        served.close()


def test_much_data_and_the_end_in_one_segment_with_finished() -> None:
    served = Served(hello=b"x" * 50_000)
    served.plain.write(flight(served) + served.client.say_goodbye())
    while served.ended is None:
        served.receive()
        served.plain.flush()
    assert served.received == b"x" * 50_000
    assert served.ended.reason is CloseReason.CLOSED_BY_PEER
    served.close()


def test_a_broken_record_behind_finished_is_answered_with_an_alert() -> None:
    served = Served(hello=b"never heard")
    data = bytearray(flight(served))
    data[-1] ^= 1
    served.plain.write(bytes(data))
    served.receive()
    assert served.received == b""
    assert served.ended is not None
    assert served.ended.reason is CloseReason.TLS_FAILED
    with pytest.raises(ssl.SSLError, match="BAD_RECORD_MAC"):
        served.client.read()
    served.close()


# --- the end


@pytest.mark.parametrize("how", ["end_output", "close"])
def test_the_peer_is_told_that_nothing_more_comes(how: str) -> None:
    served = Served(hello=b"x")
    served.shake_hands()
    served.link.send_raw(b"last words")
    getattr(served.link, how)()
    assert served.client.read() == b"last words"
    assert served.client._tls.read(1) == b"", "a close_notify; without one it would want more"
    served.close()


def test_no_goodbye_into_the_middle_of_what_the_kernel_did_not_take() -> None:
    served = Served(hello=b"x")
    served.shake_hands()
    while not served.link.blocked:
        served.link.send([bytes(60_000)], 60_000)
    assert served.link.tail
    served.link.close()
    read = served.client.read()
    while data := served.client.read():
        read += data
    assert read == bytes(len(read)), "what came is what was sent"
    assert served.client.ended
    served.close()


# --- OpenSSL's client


@pytest.mark.skipif(OPENSSL is None, reason="wants the openssl command")
@pytest.mark.parametrize("suite", SUITES)
def test_openssl_in_every_suite_with_new_keys_both_ways(suite: str, tmp_path: Path) -> None:
    authority = issue(common_name="authority", is_authority=True)
    (tmp_path / "authority.pem").write_bytes(authority.pem)
    server, keeper = server_context(issue(HOSTNAME, issuer=authority)), RecordKeeper()
    keeper.watch(server)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(60)
        command = [OPENSSL or "", "s_client", "-connect", f"127.0.0.1:{listener.getsockname()[1]}"]
        command += ["-ciphersuites", suite, "-tls1_3", "-servername", HOSTNAME]
        command += ["-CAfile", str(tmp_path / "authority.pem"), "-verify_return_error"]
        pipe = subprocess.PIPE
        with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe) as peer, listener.accept()[0] as sock:
            assert peer.stdin
            assert peer.stdout
            assert peer.stderr
            sock.setblocking(False)
            link = RecordLink(sock, ADDRESS, server, keeper)
            # A line of k or K is a command: new keys with the next data, and K asks for ours.
            for letter, line in ((b"", b"one\n"), (b"K", b"two\n"), (b"k", b"three\n"), (b"K", b"four\n")):
                if letter:
                    peer.stdin.write(letter + b"\n")
                    peer.stdin.flush()
                    while b"KEYUPDATE" not in peer.stderr.readline():
                        assert peer.poll() is None
                peer.stdin.write(line)
                peer.stdin.flush()
                received = b""
                while received != line:
                    assert select.select([sock], [], [], 60)[0]
                    received += receive_from(link)
                link.send_raw(b"<" + line)
                while not peer.stdout.readline().endswith(b"<" + line):
                    assert peer.poll() is None
            assert not hasattr(link, "_tls")
            link.close()
            assert peer.wait(60) == 0, "the end was not a clean one"


def receive_from(link: RecordLink) -> bytes:
    view, scratch = memoryview(bytearray(RECEIVE_BYTES)), memoryview(bytearray(RECEIVE_BYTES))
    return bytes(view[: link.receive(view, 0, scratch, scratch)])
