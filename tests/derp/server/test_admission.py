"""Who comes in: every combination of lists, mesh key and control plane."""

import pytest

from derp.admission.signed import IssuerPrivate
from derp.admission.terms import Terms
from derp.admission.ticket import sign_ticket
from derp.admission.trials import Trials
from derp.config import RelayConfig
from derp.keys import MeshKey, NodePrivate
from derp.server.admission import Admission, Question, Verdict
from derp.server.advisor import REFUSED_TEXT, health_frame
from tests.derp.server.test_server import UPGRADE, client_info
from tests.derp.server.world import ask, call, closed, open_server, relay_config

GOOD, BAD, OTHER = b"g" * 32, b"b" * 32, b"o" * 32
pytestmark = pytest.mark.usefixtures("refused_briefly")

MESH = MeshKey(b"m" * 32)


class Sayings:
    """A control plane that has said something already."""

    problem = ""

    def __init__(self, said: dict[bytes, bool]) -> None:
        self.said = said
        self.asked: list[tuple[bytes, str]] = []

    def cached(self, key: bytes, address: str) -> Verdict | None:
        return Verdict(self.said[key]) if key in self.said else None

    def ask(self, question: Question) -> Verdict | None:
        self.asked.append((question.key, question.address))
        question.answer(Verdict(True))
        return None


def config(**changes: object) -> RelayConfig:
    return relay_config(**changes)


@pytest.mark.parametrize(
    ("allow", "deny", "said", "key", "expected"),
    [
        (None, (), None, OTHER, True),
        (None, (BAD,), None, BAD, False),
        (None, (BAD,), None, OTHER, True),
        ((GOOD,), (), None, GOOD, True),
        ((GOOD,), (), None, OTHER, False),
        ((), (), None, GOOD, False),
        ((GOOD,), (GOOD,), None, GOOD, False),  # to deny wins
        (None, (), {}, OTHER, None),
        (None, (), {OTHER: True}, OTHER, True),
        (None, (), {OTHER: False}, OTHER, False),
        (None, (BAD,), {BAD: True}, BAD, False),
        # All that is set has to allow: who is on the list is asked about, and who is not on it is refused unasked.
        ((GOOD,), (), {}, GOOD, None),
        ((GOOD,), (), {GOOD: True}, GOOD, True),
        ((GOOD,), (), {GOOD: False}, GOOD, False),
        ((GOOD,), (), {OTHER: True}, OTHER, False),
        ((GOOD,), (GOOD,), {GOOD: True}, GOOD, False),
    ],
)
def test_the_order_of_the_rules(
    allow: tuple[bytes, ...] | None,
    deny: tuple[bytes, ...],
    said: dict[bytes, bool] | None,
    key: bytes,
    expected: bool | None,
) -> None:
    lists = config(allow_keys=None if allow is None else frozenset(allow), deny_keys=frozenset(deny))
    admission = Admission(lists, None if said is None else Sayings(said))
    verdict = admission.decide(key, "192.0.2.1")
    assert (verdict.allowed if verdict is not None else None) is expected


def test_asking_goes_to_the_control_plane_with_key_and_address() -> None:
    plane, answers = Sayings({}), list[Verdict]()
    assert Admission(config(), plane).ask(Question(OTHER, "192.0.2.1", answers.append)) is None
    assert (plane.asked, answers) == ([(OTHER, "192.0.2.1")], [Verdict(True)])


async def test_lists_in_a_relay() -> None:
    good, bad, other = (NodePrivate.generate() for _ in range(3))
    allow = frozenset({good.public().raw, bad.public().raw})
    lists = config(allow_keys=allow, deny_keys=frozenset({bad.public().raw}), mesh_key=MESH)
    async with open_server(lists) as server:
        caller = await call(server, private=good)
        for number, private in enumerate((bad, other), 1):
            rest = (await ask(server, UPGRADE + client_info(private, server.relay.public_key.raw))).partition(
                b"\r\n\r\n"
            )[2]
            assert rest == server.relay.sessions.greeting + health_frame(REFUSED_TEXT)  # and no ServerInfo
            assert closed(server) == {"not_admitted": number}
        relay = await call(server, private=other, mesh_key=MESH)  # a relay of the region is no stranger
        await caller.aclose()
        await relay.aclose()


def test_a_key_that_is_expected_comes_in_while_it_is() -> None:
    admission = Admission(config(allow_keys=frozenset({GOOD}), deny_keys=frozenset({BAD})))
    with admission.expecting(OTHER), admission.expecting(BAD):
        assert admission.decide(OTHER, "") == admission.decide(BAD, "") == Verdict(True)
    for key in (OTHER, BAD):
        verdict = admission.decide(key, "")
        assert verdict is not None
        assert not verdict.allowed


class Known:
    """A key set, as admission sees it."""

    problem = ""

    def __init__(self, keys: tuple[bytes, ...], revoked: tuple[bytes, ...] = (), closed_by: str = "") -> None:
        self.keys, self.revoked, self.closed_by = keys, revoked, closed_by

    def has(self, key: bytes) -> bool:
        return key in self.keys

    def is_revoked(self, key: bytes) -> bool:
        return key in self.revoked

    def tenant_of(self, key: bytes) -> str:
        return "known" if key in self.keys else ""


@pytest.mark.parametrize(
    ("allow", "known", "said", "key", "expected"),
    [
        (None, Known((GOOD,)), None, GOOD, True),
        (None, Known((GOOD,)), None, OTHER, False),
        (None, Known((GOOD,)), {}, GOOD, True),  # nobody is asked about a key of the set
        (None, Known((GOOD,)), {}, OTHER, None),
        (None, Known((), (BAD,)), {BAD: True}, BAD, False),  # revoked, whoever else allows it
        ((BAD,), Known((BAD,), (BAD,)), None, BAD, False),
        ((OTHER,), Known((GOOD,)), None, GOOD, False),  # the list has to allow too
        ((OTHER,), Known((GOOD,)), None, OTHER, False),
    ],
)
def test_the_order_of_key_sets(
    allow: tuple[bytes, ...] | None, known: Known, said: dict[bytes, bool] | None, key: bytes, expected: bool | None
) -> None:
    lists = config(allow_keys=None if allow is None else frozenset(allow))
    admission = Admission(lists, None if said is None else Sayings(said), known=[known])
    verdict = admission.decide(key, "192.0.2.1")
    assert (verdict.allowed if verdict is not None else None) is expected


def test_nobody_can_be_admitted_only_if_no_way_is_open() -> None:
    ended = Known((), (), "the key set 7 ended")
    assert Admission(config(), known=[ended]).closed_by == "the key set 7 ended"
    assert Admission(config(), known=[ended, Known((GOOD,))]).closed_by == ""
    assert Admission(config(), known=[ended], trials=Trials()).closed_by == ""
    assert Admission(config()).closed_by == ""
    verdict = Admission(config(), known=[ended]).decide(GOOD, "")
    assert verdict is not None
    assert verdict.because == "the key set 7 ended"


def test_a_ticket_opens_what_the_list_does_not_and_a_denial_stands() -> None:
    issuer, now = IssuerPrivate(b"i" * 32), 1_800_000_000.0
    host = f"{sign_ticket(issuer, GOOD, now, now + 60)}.relay.example:443"
    rules = config(issuers=(issuer.public(),), allow_keys=frozenset({OTHER}))
    admission = Admission(rules, clock=lambda: now)
    verdict = admission.decide(GOOD, "", host)
    assert verdict is not None
    assert (verdict.terms, verdict.tenant) == (Terms("the ticket of this machine", now + 60), "")
    of_acme = f"{sign_ticket(issuer, GOOD, now, now + 60, 'acme')}.relay.example:443"
    verdict = admission.decide(GOOD, "", of_acme)
    assert verdict is not None
    assert (verdict.allowed, verdict.tenant) == (True, "acme")
    for key, shown, because in (
        (GOOD, "", "it is none of --allow-keys"),
        (BAD, host, "it is none of --allow-keys"),
    ):
        refused = admission.decide(key, "", shown)
        assert refused is not None
        assert (refused.allowed, refused.because) == (False, because)
    denied = Admission(config(issuers=(issuer.public(),), deny_keys=frozenset({GOOD})), clock=lambda: now)
    refused = denied.decide(GOOD, "", host)
    assert refused is not None
    assert refused.because == "it is one of --deny-keys"
    alone = Admission(config(issuers=(issuer.public(),)), clock=lambda: now)
    for key, shown, because in (
        (GOOD, "", "it shows no ticket and no invitation"),
        (BAD, host, "its ticket is for another key, or of no issuer that is trusted here"),
    ):
        refused = alone.decide(key, "", shown)
        assert refused is not None
        assert refused.because == because
