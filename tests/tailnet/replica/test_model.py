"""Random histories on two replicas beside one Coordinator that has all peers: what everybody knows must be the same.

Peers do what stock ones do: a new connection says its node and opens its tunnels again.  While the two replicas are cut
off from each other nothing is compared; when they have met again and doubts are over everything is.
"""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from tailnet.coordinator.core import Coordinator
from tailnet.coordinator.messages import Deliver, Effect, EndConnection, Kind, Request
from tailnet.coordinator.policy import AgentPolicy, ManyAgentsPolicy, Policy
from tailnet.replica.core import UNCONFIRMED_SECONDS
from tailnet.types import TAILSCALE_SERVICE_PREFIX, PeerID
from tests.tailnet.coordinator.playbook import make_node, peer_id
from tests.tailnet.replica.playbook import Replicas

AGENTS, CLIENTS = "AB", "CDE"
NAMES = AGENTS + CLIENTS
IDS = {name: peer_id(name) for name in NAMES}
# The same histories each time; take more and others when the rules change.
SETTINGS = settings(max_examples=120, stateful_step_count=40, deadline=None, derandomize=True)


class Known(Replicas):
    """Two replicas, and what each connection believes."""

    def __init__(self) -> None:
        super().__init__("12")
        self.lines = []
        self.knows: dict[str, dict[PeerID, bytes]] = {}

    def _take(self, name: str, effects: list[Effect[str]]) -> None:
        believe(self.knows, effects)
        super()._take(name, effects)


def believe(knows: dict[str, dict[PeerID, bytes]], effects: list[Effect[str]]) -> None:
    for effect in effects:
        if isinstance(effect, EndConnection):
            knows.pop(effect.connection, None)
        elif isinstance(effect, Deliver):
            for receiver in effect.receivers:
                for update in effect.updates:
                    if update.kind is Kind.NODE:
                        assert update.node is not None
                        knows[receiver][update.peer_id] = update.node.raw
                    elif update.kind is not Kind.READY_FOR_HANDSHAKE:
                        del knows[receiver][update.peer_id]


class Histories(RuleBasedStateMachine):
    """A step is carried out on the replicas, on the one, and in quiet both have told everybody the same."""

    def __init__(self) -> None:
        super().__init__()
        self.two = Known()
        self.one: Coordinator[str] = Coordinator()
        self.knows: dict[str, dict[PeerID, bytes]] = {}
        self.here: dict[str, tuple[str, str]] = {}  # peer -> its replica and connection
        self.wants: dict[str, set[str]] = {name: set() for name in NAMES}
        self.number = 0

    @rule(name=st.sampled_from(NAMES), replica=st.sampled_from("12"))
    def dials(self, name: str, replica: str) -> None:
        """Also while an older connection is there, here or at the other."""
        self.number += 1
        connection = f"{name.lower()}{self.number}"
        policy: Policy = AgentPolicy(IDS[name]) if name in AGENTS else ManyAgentsPolicy()
        self.two.knows[connection], self.knows[connection] = {}, {}
        self.here[name] = replica, connection
        believe(self.knows, self.one.handle_connect(IDS[name], policy, connection, self.two.now))
        core = self.two.cores[replica]
        self.two._take(replica, core.handle_connect(IDS[name], policy, connection, self.two.now))
        self.says_node(name)
        for other in sorted(self.wants[name]):
            self.ask(name, Request(add_tunnel=IDS[other], allowed=IDS.values()))

    @rule(name=st.sampled_from(NAMES))
    def says_node(self, name: str) -> None:
        self.number += 1
        address = f"{IDS[name].address(TAILSCALE_SERVICE_PREFIX)}/128"
        self.ask(name, Request(node=make_node(f"{name}{self.number}", [address])))

    @rule(name=st.sampled_from(CLIENTS), other=st.sampled_from(NAMES))
    def opens(self, name: str, other: str) -> None:
        if name in self.here and name != other:
            self.wants[name].add(other)
            self.ask(name, Request(add_tunnel=IDS[other], allowed=IDS.values()))

    @rule(name=st.sampled_from(CLIENTS), other=st.sampled_from(NAMES))
    def shuts(self, name: str, other: str) -> None:
        if name in self.here and other in self.wants[name]:
            self.wants[name].discard(other)
            self.ask(name, Request(remove_tunnel=IDS[other]))

    @rule(name=st.sampled_from(NAMES), graceful=st.booleans())
    def leaves(self, name: str, graceful: bool) -> None:
        if name in self.here:
            replica, connection = self.here.pop(name)
            believe(self.knows, self.one.handle_disconnect(connection, graceful, self.two.now))
            core = self.two.cores[replica]
            self.two._take(replica, core.handle_disconnect(connection, graceful, self.two.now))
            self.settle()

    @rule()
    def cut(self) -> None:
        if self.is_together:
            self.two.step("cut 1 2")

    @rule(replica=st.sampled_from("12"))
    def silent(self, replica: str) -> None:
        if not self.is_together:
            self.two.step(f"{replica} silent {'12'.replace(replica, '')}")

    @rule()
    def meet(self) -> None:
        if not self.is_together:
            self.two.step("up 1 2")
            self.two.step(f"pass {UNCONFIRMED_SECONDS + 1}")

    @rule()
    def compare(self) -> None:
        if self.is_together:
            self.two.step("sync 1 2")

    @rule(seconds=st.sampled_from([7, 40]))
    def time_passes(self, seconds: int) -> None:
        self.two.step(f"pass {seconds}")

    @property
    def is_together(self) -> bool:
        return bool(self.two.together)

    def ask(self, name: str, request: Request) -> None:
        if name in self.here:
            replica, connection = self.here[name]
            believe(self.knows, self.one.handle_request(connection, request, self.two.now))
            self.two._take(replica, self.two.cores[replica].handle_request(connection, request, self.two.now))
            self.settle()

    def settle(self) -> None:
        self.two.now += 0.5
        self.two.settle()

    @invariant()
    def everybody_knows_the_same(self) -> None:
        if self.is_together:
            for name, (_, connection) in self.here.items():
                assert self.two.knows[connection] == self.knows[connection], (name, self.two.lines)


def test_histories_that_hypothesis_finds() -> None:
    run_state_machine_as_test(Histories, settings=SETTINGS)
