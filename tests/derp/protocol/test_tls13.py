"""TLS 1.3 records against the numbers of RFC 8448, a sealer of their own, every cut, every changed byte."""

import os
import random

import pytest
from cryptography.hazmat.primitives.hashes import SHA256, SHA384
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand
from hypothesis import given, settings
from hypothesis import strategies as st

from derp.protocol.tls13 import (
    HEADER_BYTES,
    MAX_CONTENT_BYTES,
    MAX_USELESS_RECORDS,
    RECORDS_PER_KEY,
    SUITES,
    Alert,
    CipherShelf,
    ContentType,
    Ended,
    Keys,
    RecordLayer,
    Secrets,
    expand_label,
    sealed_bytes,
)

AES_128 = SUITES["TLS_AES_128_GCM_SHA256"]
KEY_UPDATE = bytes.fromhex("1800000100")
KEY_UPDATE_REQUESTED = bytes.fromhex("1800000101")
CLOSE_NOTIFY = b"\1\0"


class Sealer:
    """The client: seals what it is told to, right or wrong, and opens what the server seals."""

    def __init__(self, suite_name: str = AES_128.name, *, sequence: int = 0) -> None:
        suite = SUITES[suite_name]
        self.secrets = Secrets(suite, os.urandom(suite.secret_bytes), os.urandom(suite.secret_bytes))
        self.writing = Keys(suite, self.secrets.client, sequence)
        self.reading = Keys(suite, self.secrets.server, sequence)
        self.shelf = CipherShelf()
        self.server = RecordLayer(
            self.shelf, Keys(suite, self.secrets.client, sequence), Keys(suite, self.secrets.server, sequence)
        )
        self.received = b""
        self._rest = b""

    def seal(self, content: bytes, kind: int = ContentType.APPLICATION_DATA, *, padding: int = 0) -> bytes:
        keys = self.writing
        inner = content + bytes((kind,)) + bytes(padding) if kind else content + bytes(padding)
        head = b"\x17\x03\x03" + (len(inner) + 16).to_bytes(2, "big")
        nonce = (keys.iv ^ keys.sequence).to_bytes(12, "big")
        keys.sequence += 1
        return head + keys.suite.cipher(keys.key).encrypt(nonce, inner, head)

    def update(self, message: bytes = KEY_UPDATE) -> bytes:
        record = self.seal(message, ContentType.HANDSHAKE)
        self.writing = self.writing.next()
        return record

    def give(self, data: bytes) -> Ended | None:
        """Have the server receive; what came out is added to `received`."""
        sealed = self._rest + data
        into = memoryview(bytearray(len(sealed)))
        rest, end, _ = self.server.receive_records(memoryview(sealed), len(sealed), into, 0)
        self.received += bytes(into[:end])
        self._rest = sealed[rest:]
        return self.server.ended

    def send(self, *pieces: bytes) -> bytes:
        """Have the server seal."""
        size = sum(map(len, pieces))
        out = memoryview(bytearray(sealed_bytes(size)))
        return bytes(out[: self.server.seal(pieces, size, out)])

    def open(self, sealed: bytes) -> list[tuple[int, bytes]]:
        """Type and content of each record that the server sealed; follows its KeyUpdates."""
        found = []
        while sealed:
            length = int.from_bytes(sealed[3:5], "big")
            head, body, sealed = sealed[:5], sealed[5 : 5 + length], sealed[5 + length :]
            keys = self.reading
            nonce = (keys.iv ^ keys.sequence).to_bytes(12, "big")
            inner = keys.suite.cipher(keys.key).decrypt(nonce, body, head)
            keys.sequence += 1
            found.append((inner[-1], inner[:-1]))
            if inner[-1] == ContentType.HANDSHAKE:
                self.reading = keys.next()
        return found


# --- RFC 8448, section 3

CLIENT_SECRET = bytes.fromhex("9e40646ce79a7f9dc05af8889bce6552875afa0b06df0087f792ebb7c17504a5")
SERVER_SECRET = bytes.fromhex("a11af9f05531f856ad47116b45a950328204b4f44bfb6b3a4b4f1f3fcb631643")
# The same trace after a KeyUpdate, which the RFC does not have: as Botan computes it.
CLIENT_SECRET_1 = bytes.fromhex("fcdfcc72725aaee48bf64e4fd8b749cdbdbab39d90da0b26e2245ca6ea167207")
SERVER_SECRET_1 = bytes.fromhex("51921b8aa3001976eb401d0a4319a8516416a6c56001a357e5d162031e84f916")
CLIENT_DATA = bytes.fromhex(
    "1703030043a23f7054b62c94d0affafe8228ba55cbefacea42f914aa66bcab3f2b9819a8a5b46b395bd54a9a20441e2b62974e1f5a6292a2977014bd"
    "1e3deae63aeebb21694915e4"
)
CLIENT_ALERT = bytes.fromhex("1703030013c9872760655666b74d7ff1153efd6db6d0b0e3")
SERVER_DATA = bytes.fromhex(
    "17030300432e937e11ef4ac740e538ad36005fc4a46932fc3225d05f82aa1b36e30efaf97d90e6dffc602dcb501a59a8fcc49c4bf2e5f0a21c0047c2"
    "abf332540dd032e167c2955d"
)
SERVER_ALERT = bytes.fromhex("1703030013b58fd67166ebf599d24720cfbe7efa7a8864a9")
CONTENT = bytes(range(50))


def trace() -> RecordLayer:
    # The server of the trace has sent a ticket, which is its record 0.
    return RecordLayer(CipherShelf(), Keys(AES_128, CLIENT_SECRET), Keys(AES_128, SERVER_SECRET, 1))


def test_the_keys_of_the_trace() -> None:
    client, server = Keys(AES_128, CLIENT_SECRET), Keys(AES_128, SERVER_SECRET)
    assert client.key.hex() == "17422dda596ed5d9acd890e3c63f5051"
    assert client.iv.to_bytes(12, "big").hex() == "5b78923dee08579033e523d9"
    assert server.key.hex() == "9f02283b6c9c07efc26bb9f2ac92e356"
    assert server.iv.to_bytes(12, "big").hex() == "cf782b88dd83549aadf1e984"
    assert client.next().secret == CLIENT_SECRET_1
    assert server.next().secret == SERVER_SECRET_1


def test_the_records_of_the_trace() -> None:
    layer, into = trace(), memoryview(bytearray(200))
    sealed = memoryview(CLIENT_DATA + CLIENT_ALERT)
    assert layer.receive_records(sealed, len(sealed), into, 3) == (len(sealed), 53, 2)
    assert bytes(into[3:53]) == CONTENT
    assert layer.ended == Ended(None, "closed by the peer", is_clean=True)
    filled = layer.seal((CONTENT[:20], memoryview(CONTENT)[20:]), 50, into)
    assert bytes(into[:filled]) == SERVER_DATA
    assert layer.seal_alert(Alert.CLOSE_NOTIFY) == SERVER_ALERT
    assert layer.is_shut


def test_labels_expand_as_a_library_does_it() -> None:
    for digest, algorithm, size in (("sha256", SHA256(), 32), ("sha384", SHA384(), 48)):
        secret = os.urandom(size)
        for label, length in ((b"key", 16), (b"key", 32), (b"iv", 12), (b"traffic upd", size)):
            full = b"tls13 " + label
            told = length.to_bytes(2, "big") + bytes((len(full),)) + full + b"\0"
            assert expand_label(secret, label, length, digest) == HKDFExpand(algorithm, length, told).derive(secret)


# --- receiving


@settings(max_examples=150, deadline=None)
@given(
    suite=st.sampled_from(list(SUITES)),
    sizes=st.lists(
        st.tuples(st.one_of(st.integers(0, 40), st.integers(1, MAX_CONTENT_BYTES)), st.integers(0, 60), st.booleans()),
        min_size=1,
        max_size=12,
    ),
    seed=st.integers(0, 1 << 32),
)
def test_any_records_in_any_cut(suite: str, sizes: list[tuple[int, int, bool]], seed: int) -> None:
    generator, client = random.Random(seed), Sealer(suite)
    data = sealed = b""
    for size, padding, updates in sizes:
        content = generator.randbytes(size)
        data += content
        sealed += client.seal(content, padding=min(padding, MAX_CONTENT_BYTES - size))
        sealed += client.update() if updates else b""
    at = 0
    while at < len(sealed):
        cut = at + generator.choice((1, 2, 4, 5, 6, 22, 100, 20_000, 60_000))
        assert client.give(sealed[at:cut]) is None
        at = cut
    assert client.received == data


@settings(max_examples=300, deadline=None)
@given(place=st.integers(0, 10_000), bit=st.integers(0, 7), is_padded=st.booleans())
def test_a_changed_bit_is_never_plain_text(place: int, bit: int, is_padded: bool) -> None:
    client = Sealer()
    parts = [os.urandom(size) for size in (30, 1, 200)]
    records = [client.seal(part, padding=7 * is_padded) for part in parts]
    sealed = bytearray(b"".join(records))
    place %= len(sealed)
    sealed[place] ^= 1 << bit
    ended = client.give(bytes(sealed))
    begins, whole = 0, 0
    while place >= begins + len(records[whole]):
        begins += len(records[whole])
        whole += 1
    assert client.received == b"".join(parts[:whole]), "a record that was changed, or one behind it"
    if ended is None:
        assert HEADER_BYTES - 2 <= place - begins < HEADER_BYTES, "only a greater length has us wait for more"
    else:
        assert ended.alert is not None
        assert not ended.is_clean


def test_records_twice_left_out_or_in_another_order_are_refused() -> None:
    for order in ((0, 0), (1,), (0, 2)):
        client = Sealer()
        records = [client.seal(b"%d" % number) for number in range(3)]
        ended = client.give(b"".join(records[number] for number in order))
        assert ended is not None
        assert ended.alert is Alert.BAD_RECORD_MAC
        assert client.received == (b"0" if order[0] == 0 else b"")


REFUSED = [
    (ContentType.CHANGE_CIPHER_SPEC, b"\1", Alert.UNEXPECTED_MESSAGE, "type 20"),
    (0, b"\0", Alert.UNEXPECTED_MESSAGE, "without a type"),
    (24, b"heartbeat", Alert.UNEXPECTED_MESSAGE, "type 24"),
    (255, b"", Alert.UNEXPECTED_MESSAGE, "type 255"),
    (ContentType.ALERT, b"", Alert.DECODE_ERROR, "0 bytes"),
    (ContentType.ALERT, b"\2", Alert.DECODE_ERROR, "1 bytes"),
    (ContentType.ALERT, b"\2\x28\2\x28", Alert.DECODE_ERROR, "4 bytes"),
    (ContentType.HANDSHAKE, b"", Alert.UNEXPECTED_MESSAGE, "an empty part"),
    (ContentType.HANDSHAKE, b"\1\0\0\1\0", Alert.UNEXPECTED_MESSAGE, "type 1 "),  # ClientHello: renegotiation
    (ContentType.HANDSHAKE, b"\4\0\0\1\0", Alert.UNEXPECTED_MESSAGE, "type 4 "),  # NewSessionTicket
    (ContentType.HANDSHAKE, b"\x0d\0\0\1\0", Alert.UNEXPECTED_MESSAGE, "type 13 "),  # CertificateRequest
    (ContentType.HANDSHAKE, b"\x14\0\0\1\0", Alert.UNEXPECTED_MESSAGE, "type 20 "),  # Finished
    (ContentType.HANDSHAKE, b"\x18\0\0\0", Alert.UNEXPECTED_MESSAGE, "type 24 "),
    (ContentType.HANDSHAKE, b"\x18\0\0\2\0\0", Alert.UNEXPECTED_MESSAGE, "type 24 "),
    (ContentType.HANDSHAKE, b"\x18\0\0\1\2", Alert.ILLEGAL_PARAMETER, "asks for 2"),
    (ContentType.HANDSHAKE, KEY_UPDATE + KEY_UPDATE, Alert.UNEXPECTED_MESSAGE, "behind a KeyUpdate"),
    (ContentType.HANDSHAKE, KEY_UPDATE + b"\x18", Alert.UNEXPECTED_MESSAGE, "behind a KeyUpdate"),
    (ContentType.APPLICATION_DATA, bytes(MAX_CONTENT_BYTES + 1), Alert.RECORD_OVERFLOW, "16402 bytes"),
]


@pytest.mark.parametrize("padding", [0, 3])
@pytest.mark.parametrize(("kind", "content", "alert", "text"), REFUSED)
def test_what_a_client_may_not_send(kind: int, content: bytes, alert: Alert, text: str, padding: int) -> None:
    client = Sealer()
    if len(content) > MAX_CONTENT_BYTES:
        padding = 0
    ended = client.give(client.seal(b"before") + client.seal(content, kind, padding=padding) + client.seal(b"after"))
    assert client.received == b"before"
    assert ended is not None
    assert (ended.alert, ended.is_clean) == (alert, False)
    assert text in ended.text
    # And the alert can be sent, and is the last thing.
    assert client.open(client.server.seal_alert(alert)) == [(ContentType.ALERT, bytes((2, alert)))]


@pytest.mark.parametrize(
    ("head", "alert"),
    [
        ("1403030001", Alert.UNEXPECTED_MESSAGE),  # change_cipher_spec is for the handshake alone
        ("1503030002", Alert.UNEXPECTED_MESSAGE),  # an alert in the clear
        ("1603030010", Alert.UNEXPECTED_MESSAGE),
        ("474554202f", Alert.UNEXPECTED_MESSAGE),  # "GET /"
        ("1703034012", Alert.RECORD_OVERFLOW),
        ("170303ffff", Alert.RECORD_OVERFLOW),
        ("1703030000", Alert.BAD_RECORD_MAC),
        ("1703030010", Alert.BAD_RECORD_MAC),
    ],
)
def test_heads_are_judged_before_anything_is_waited_for(head: str, alert: Alert) -> None:
    client = Sealer()
    ended = client.give(bytes.fromhex(head))
    assert ended is not None
    assert ended.alert is alert


def test_the_largest_record_and_the_most_padding() -> None:
    client = Sealer()
    data = os.urandom(MAX_CONTENT_BYTES)
    assert client.give(client.seal(data) + client.seal(b"x", padding=MAX_CONTENT_BYTES - 1)) is None
    assert client.received == data + b"x"


@pytest.mark.parametrize(
    ("content", "kind"),
    [(b"", ContentType.APPLICATION_DATA), (b"\1\x5a", ContentType.ALERT), (None, ContentType.HANDSHAKE)],
)
def test_what_carries_nothing_has_a_bound_in_succession(content: bytes | None, kind: ContentType) -> None:
    client = Sealer()

    def one() -> bytes:
        return client.update() if content is None else client.seal(content, kind)

    for _ in range(3):  # data between them begins anew
        assert client.give(b"".join(one() for _ in range(MAX_USELESS_RECORDS)) + client.seal(b"x")) is None
    ended = client.give(b"".join(one() for _ in range(MAX_USELESS_RECORDS + 1)))
    assert ended is not None
    assert ended.alert is Alert.UNEXPECTED_MESSAGE
    assert client.received == b"xxx"


def test_nor_may_crumbs_between_them_hide_it() -> None:
    client = Sealer()
    sealed = b"".join(client.update() + client.seal(b"x") for _ in range(MAX_USELESS_RECORDS + 1))
    ended = client.give(sealed)
    assert ended is not None
    assert ended.alert is Alert.UNEXPECTED_MESSAGE


def test_alerts_of_the_peer_end_it_without_one_of_ours() -> None:
    for number, text in ((20, "bad_record_mac"), (46, "certificate_unknown"), (99, "99"), (255, "255")):
        client = Sealer()
        ended = client.give(client.seal(b"before") + client.seal(bytes((2, number)), ContentType.ALERT))
        assert client.received == b"before"
        assert ended == Ended(None, f"alert of the peer: {text}")


# --- new keys


def test_a_key_update_that_asks_is_answered_once_before_the_next_data() -> None:
    client = Sealer()
    for _ in range(3):
        assert client.give(client.update(KEY_UPDATE_REQUESTED)) is None
    assert client.give(client.seal(b"under the third")) is None
    assert client.received == b"under the third"
    assert client.open(client.send(b"data")) == [(22, KEY_UPDATE), (23, b"data")]
    assert client.open(client.send(b"more")) == [(23, b"more")]


def test_one_that_does_not_ask_is_not_answered() -> None:
    client = Sealer()
    assert client.give(client.update() + client.seal(b"x")) is None
    assert client.open(client.send(b"data")) == [(23, b"data")]


@pytest.mark.parametrize("cut", range(1, 5))
def test_a_key_update_in_two_records(cut: int) -> None:
    client = Sealer()
    first = client.seal(KEY_UPDATE[:cut], ContentType.HANDSHAKE)
    assert client.give(first + client.update(KEY_UPDATE[cut:]) + client.seal(b"x")) is None
    assert client.received == b"x"


@pytest.mark.parametrize(("kind", "content"), [(23, b"x"), (21, CLOSE_NOTIFY), (23, b"")])
def test_nothing_may_stand_within_a_message(kind: int, content: bytes) -> None:
    client = Sealer()
    ended = client.give(client.seal(KEY_UPDATE[:2], ContentType.HANDSHAKE) + client.seal(content, kind))
    assert client.received == b""
    assert ended is not None
    assert ended.alert is Alert.UNEXPECTED_MESSAGE


def test_our_keys_end_before_the_cipher_is_weak() -> None:
    client = Sealer(sequence=RECORDS_PER_KEY - 1)
    assert client.open(client.send(b"last")) == [(23, b"last")]
    assert client.open(client.send(b"first")) == [(22, KEY_UPDATE), (23, b"first")]
    assert client.reading.sequence == 1
    assert client.open(client.send(b"second")) == [(23, b"second")]


def test_a_peer_that_keeps_its_keys_too_long_is_asked_once() -> None:
    client = Sealer(sequence=RECORDS_PER_KEY - 1)
    assert client.give(client.seal(b"a")) is None
    assert client.give(client.seal(b"b")) is None
    assert client.open(client.send(b"x")) == [(22, KEY_UPDATE_REQUESTED), (23, b"x")]
    assert client.give(client.seal(b"c")) is None
    assert client.open(client.send(b"y")) == [(23, b"y")], "it has not answered yet"
    assert client.give(client.update() + client.seal(b"d")) is None
    assert client.open(client.send(b"z")) == [(23, b"z")]
    assert client.received == b"abcd"


# --- sending


@settings(max_examples=80, deadline=None)
@given(
    suite=st.sampled_from(list(SUITES)),
    sizes=st.lists(st.one_of(st.integers(0, 50), st.integers(0, 40_000)), min_size=1, max_size=6),
)
def test_what_is_sealed_opens_again(suite: str, sizes: list[int]) -> None:
    client = Sealer(suite)
    for _ in range(2):
        pieces = [os.urandom(size) for size in sizes]
        opened = client.open(client.send(*pieces))
        assert {kind for kind, _ in opened} == {ContentType.APPLICATION_DATA}
        assert b"".join(content for _, content in opened) == b"".join(pieces)
        assert max(len(content) for _, content in opened) <= MAX_CONTENT_BYTES


# --- from one process to another


@settings(max_examples=50, deadline=None)
@given(suite=st.sampled_from(list(SUITES)), steps=st.lists(st.sampled_from("rwukpm"), max_size=25))
def test_an_exported_layer_goes_on_where_it_was(suite: str, steps: list[str]) -> None:
    client = Sealer(suite)
    sent = b""
    for number, step in enumerate([*steps, "m", "r", "w"]):
        data = b"%d" % number
        if step == "r":
            assert client.give(client.seal(data)) is None
            sent += data
        elif step == "w":
            assert client.open(client.send(data))[-1] == (23, data)
        elif step in "uk":
            assert client.give(client.update(KEY_UPDATE if step == "u" else KEY_UPDATE_REQUESTED)) is None
        elif step == "p":  # a message that the next record ends
            assert client.give(client.seal(KEY_UPDATE[:3], ContentType.HANDSHAKE)) is None
            client.server = RecordLayer.restore(client.shelf, client.server.export())
            assert client.give(client.update(KEY_UPDATE[3:]) + client.seal(data)) is None
            sent += data
        else:
            client.server = RecordLayer.restore(CipherShelf(), client.server.export())
    assert client.received == sent


# --- ciphers


def test_ciphers_of_who_was_quiet_go_and_come_back() -> None:
    shelf = CipherShelf(room=4)
    many = [Keys(AES_128, os.urandom(32)) for _ in range(10)]
    for keys in many:
        shelf.cipher_of(keys)
    assert [keys.cipher is not None for keys in many] == [False] * 6 + [True] * 4
    first = shelf.cipher_of(many[0])
    assert first is shelf.cipher_of(many[0])
    assert sum(keys.cipher is not None for keys in many) == 4


def test_more_connections_than_ciphers() -> None:
    shelf = CipherShelf(room=3)
    clients = [Sealer() for _ in range(5)]
    for client in clients:
        client.server = RecordLayer.of_server(shelf, client.secrets)
    for number in range(3):
        for client in clients:
            assert client.give(client.seal(b"%d" % number)) is None
            assert client.open(client.send(b"to you")) == [(23, b"to you")]
    assert {client.received for client in clients} == {b"012"}
