"""Proofs of three clouds at the door: tokens for agents; for every forgery the documented refusal, nothing written."""

import json
from base64 import b64encode
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from tailnet.api.guards import IDENTITIES_PER_ADDRESS
from tailnet.api.instance_identity import MAX_BODY_BYTES
from tailnet.api.limits import StrangerLimits
from tailnet.store.issued import MAX_ISSUED_TOKENS
from tailnet.store.store import Store
from tests.support.administration import revoke_issued, set_instance
from tests.support.api_world import LOCAL, STRANGER, World
from tests.support.cloud_world import INSTANCES, make_cloud_world
from tests.support.clouds import NOW, Aws, Azure, Google, certify, write_anchors
from tests.support.seeds import AgentSpec, fill, make_id, peer_id, seed_document, user_token

PREFIX = "/api/v2/workspaceagents/"
VECTORS = Path(__file__).parents[2] / "vectors" / "api"
CLOUDS = {"aws": "AWS", "azure": "Azure", "google": "GCP"}


class Clouds:
    """All three, and what they prove of the instances of tests/support/cloud_world.py."""

    def __init__(self, folder: Path) -> None:
        self.aws, self.azure, self.google = Aws(), Azure(), Google()
        self.folder = write_anchors(folder, self.aws, self.azure, self.google)

    def proof(self, cloud: str) -> dict[str, str]:
        match cloud:
            case "aws":
                return self.of_aws(self.aws.document())
            case "azure":
                return self.of_azure(self.azure.envelope(self.azure.content()))
            case _:
                return {"json_web_token": self.google.sign(self.google.claims())}

    def of_aws(self, document: str, signer: Aws | None = None) -> dict[str, str]:
        return {"document": document, "signature": (signer or self.aws).sign(document)}

    def of_azure(self, envelope: bytes) -> dict[str, str]:
        return {"signature": b64encode(envelope).decode(), "encoding": "pkcs7"}


@pytest.fixture(scope="module")
def clouds(tmp_path_factory: pytest.TempPathFactory) -> Clouds:
    return Clouds(tmp_path_factory.mktemp("anchors"))


@pytest.fixture
def world(store: Store, clouds: Clouds) -> World:
    return make_cloud_world(store, clouds.folder)


async def show(world: World, cloud: str, body: Any, **options: Any) -> httpx.Response:
    async with world.client() as client:
        return await client.post(f"{PREFIX}{cloud}-instance-identity", json=body, **options)


def issued(world: World) -> int:
    return sum(world.store.issued.count_issued(peer_id(name)) for name in INSTANCES.values())


@pytest.mark.stores
@pytest.mark.parametrize(("cloud", "name"), [("aws", "main"), ("azure", "gpu"), ("google", "web")])
async def test_a_proof_opens_a_session(world: World, clouds: Clouds, cloud: str, name: str) -> None:
    answer = await show(world, cloud, clouds.proof(cloud))
    assert answer.status_code == 200
    token = answer.json()["session_token"]
    assert answer.content == (VECTORS / "session_token.json").read_bytes().replace(b"TOKEN", token.encode())
    async with world.client(token=token) as client:
        assert (await client.get(f"{PREFIX}me/manifest")).json()["agent_id"] == str(make_id(name))
    revoke_issued(world.store, name)
    world.services = replace(world.services, callers=type(world.services.callers)(world.store))
    async with world.client(token=token) as client:
        assert (await client.get(f"{PREFIX}me/manifest")).status_code == 401


async def test_its_owner_sees_the_instance(world: World) -> None:
    async with world.client(token=user_token("alice")) as client:
        seen = (await client.get(f"{PREFIX}{make_id('main')}")).json()
        set_instance(world.store, "main", "")
        without = (await client.get(f"{PREFIX}{make_id('main')}")).json()
    assert seen["instance_id"] == "i-0123"
    assert "instance_id" not in without


async def test_a_proof_may_be_shown_again_and_its_tokens_are_bounded(world: World, clouds: Clouds) -> None:
    proof = clouds.proof("aws")
    tokens = [(await show(world, "aws", proof)).json()["session_token"] for _ in range(MAX_ISSUED_TOKENS + 3)]
    assert len(set(tokens)) == len(tokens)
    assert issued(world) == MAX_ISSUED_TOKENS


def forgeries(clouds: Clouds) -> dict[str, tuple[str, dict[str, str], str]]:
    """What it is: the cloud, the body, words of the reason."""
    aws, azure, google = clouds.aws, clouds.azure, clouds.google
    stranger = Azure()
    late = certify("late.metadata.azure.com", azure.intermediate, expires=NOW - timedelta(seconds=1))
    silent = certify("silent.metadata.azure.com", azure.intermediate, may_sign=False)
    envelope, claims = azure.envelope(azure.content()), google.claims()
    document, at = aws.document(), int(NOW.timestamp())
    header, payload, mark = google.sign(claims).split(".")
    return {
        "aws, other signer": ("aws", clouds.of_aws(document, Aws()), "none of the certificates"),
        "aws, changed": ("aws", clouds.of_aws(document) | {"document": document + " "}, "none of the certificates"),
        "aws, other region": ("aws", clouds.of_aws(aws.document(region="us-east-1")), "another region"),
        "aws, from the future": ("aws", clouds.of_aws(aws.document(pendingTime="2026-06-01T12:02:00Z")), "future"),
        "aws, no base64": ("aws", clouds.of_aws(document) | {"signature": "???"}, "base64"),
        "aws, huge": ("aws", {"document": "x" * 100_000, "signature": "eA=="}, "more than"),
        "azure, changed": ("azure", clouds.of_azure(envelope.replace(b"vm-1", b"vm-2")), "other content"),
        "azure, other root": ("azure", clouds.of_azure(stranger.envelope(azure.content())), "lead to a root"),
        "azure, two signers": (
            "azure",
            clouds.of_azure(azure.envelope(azure.content(), azure.signer, azure.signer)),
            "2 signers",
        ),
        "azure, expired signer": ("azure", clouds.of_azure(azure.envelope(azure.content(), late)), "expired"),
        "azure, may not sign": ("azure", clouds.of_azure(azure.envelope(azure.content(), silent)), "may not sign"),
        "azure, an authority": (
            "azure",
            clouds.of_azure(azure.envelope(azure.content(), azure.intermediate, extra=(azure.root,))),
            "not Azure's metadata",
        ),
        "azure, stale": (
            "azure",
            clouds.of_azure(
                azure.envelope(
                    azure.content(
                        timeStamp={"createdOn": "05/01/26 09:00:00 -0000", "expiresOn": "05/01/26 15:00:00 -0000"}
                    )
                )
            ),
            "expired",
        ),
        "azure, nonsense": ("azure", {"signature": "eA==", "encoding": "pkcs7"}, "no PKCS #7"),
        "google, other signer": ("google", {"json_web_token": Google().sign(claims)}, "none of the keys"),
        "google, changed": ("google", {"json_web_token": f"{header}.{payload[:-4]}AAAA.{mark}"}, "none of the keys"),
        "google, unsigned": ("google", {"json_web_token": f"eyJhbGciOiJub25lIn0.{payload}."}, "none of the keys"),
        "google, stale": ("google", {"json_web_token": google.sign(google.claims(exp=at - 3600))}, "expired"),
        "google, other issuer": ("google", {"json_web_token": google.sign(google.claims(iss="x"))}, "another issuer"),
    }


async def test_forgeries(world: World, clouds: Clouds, caplog: pytest.LogCaptureFixture) -> None:
    planted = forgeries(clouds)
    assert len(planted) < IDENTITIES_PER_ADDRESS
    for what, (cloud, body, reason) in planted.items():
        answer = await show(world, cloud, body)
        assert (answer.status_code, answer.json()["message"]) == (401, f"Invalid {CLOUDS[cloud]} identity."), what
        assert reason in answer.json()["detail"], what
        assert answer.json().keys() == {"message", "detail"}
    assert issued(world) == 0, "nothing was written"
    shown = caplog.text
    assert all(value not in shown for _, body, _ in planted.values() for value in body.values() if len(value) > 20)


@pytest.mark.parametrize("cloud", CLOUDS)
async def test_nobody_is_believed_by_default(store: Store, clouds: Clouds, cloud: str) -> None:
    closed = make_cloud_world(store, None)
    answer = await show(closed, cloud, clouds.proof(cloud))
    assert (answer.status_code, answer.json()["message"]) == (401, f"Invalid {CLOUDS[cloud]} identity.")
    assert "this server trusts no" in answer.json()["detail"]
    assert issued(closed) == 0


async def test_claims_that_say_nothing(world: World, clouds: Clouds) -> None:
    answer = await show(world, "google", {"json_web_token": clouds.google.sign(clouds.google.claims(google=None))})
    assert (answer.status_code, answer.json()["message"]) == (400, "Error decoding JWT claims.")


async def test_an_instance_that_nobody_knows(world: World, clouds: Clouds) -> None:
    answer = await show(world, "aws", clouds.of_aws(clouds.aws.document(instanceId="i-9")))
    assert (answer.status_code, answer.json()) == (404, {"message": 'Instance with id "i-9" not found.'})
    answer = await show(world, "aws", clouds.proof("aws") | {"agent_name": "x"})
    assert answer.json() == {"message": 'No agent found with instance ID "i-0123" and name "x".'}
    assert (answer.status_code, issued(world)) == (404, 0)


async def test_several_agents_of_a_machine_say_their_names(world: World, clouds: Clouds) -> None:
    set_instance(world.store, "gpu", "i-0123")
    answer = await show(world, "aws", clouds.proof("aws"))
    text = 'Multiple agents found with instance ID "i-0123". Set CODER_AGENT_NAME to one of: gpu, main'
    assert (answer.status_code, answer.json()) == (409, {"message": text})
    answer = await show(world, "aws", clouds.proof("aws") | {"agent_name": "gpu"})
    assert answer.status_code == 200
    assert world.store.issued.count_issued(peer_id("gpu")) == 1


async def test_a_newer_build_takes_the_place_of_an_older_one(world: World, clouds: Clouds) -> None:
    newer = seed_document((AgentSpec("main", "dev", "alice"),))
    newer["agents"][0] |= {"id": str(make_id("newer")), "token": str(make_id("t")), "instance_id": "i-0123"}
    with world.store.writing() as connection:  # the older one was there the day before
        connection.exec_driver_sql("UPDATE agents SET created_at = created_at - 86400000000")
    fill(world.store, newer)
    assert (await show(world, "aws", clouds.proof("aws"))).status_code == 200
    assert world.store.issued.count_issued(peer_id("newer")) == 1
    assert issued(world) == 0


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"signature": "x"}, "document"),
        ({"signature": "", "document": "{}"}, "signature"),
        ({"signature": None, "document": "{}"}, "signature"),
        ({"signature": "x", "document": "\ud800"}, "document"),
        ({"signature": "x", "document": "{}", "agent_name": "n" * 300}, "agent_name"),
    ],
)
async def test_what_is_missing_is_named(world: World, body: Any, field: str) -> None:
    async with world.client() as client:
        content = json.dumps(body).encode()
        answer = await client.post(f"{PREFIX}aws-instance-identity", content=content)
    assert (answer.status_code, answer.json()["message"]) == (400, "Validation failed.")
    validation = answer.json()["validations"][0]
    assert validation["field"] == field
    if not body.get(field, "") and body.get(field, "") is not None:
        assert validation["detail"] == 'Validation failed for tag "required" with value: ""'


@pytest.mark.parametrize(
    ("content", "status", "message"),
    [
        (b"", 400, "Request body must be valid JSON."),
        (b"{", 400, "Request body must be valid JSON."),
        (b'{"document": "\xff"}', 400, "Request body must be valid JSON."),
        (b"[]", 400, "Validation failed."),
        (b" " * (MAX_BODY_BYTES + 1), 413, "Request body is too large."),
    ],
)
async def test_bodies_that_are_none(world: World, content: bytes, status: int, message: str) -> None:
    async with world.client() as client:
        answer = await client.post(f"{PREFIX}azure-instance-identity", content=content)
    assert (answer.status_code, answer.json()["message"]) == (status, message)


async def test_strangers_have_a_number_of_tries(world: World, clouds: Clouds) -> None:
    world.services = replace(world.services, identity_limits=StrangerLimits(2, 4))
    body = {"signature": "eA==", "document": "{}"}

    async def statuses(address: str) -> list[int]:
        async with world.client((address, 1)) as client:
            return [(await client.post(f"{PREFIX}aws-instance-identity", json=body)).status_code for _ in range(3)]

    assert await statuses("2001:db8::1") == [401, 401, 429]
    assert await statuses("2001:db8::2") == [429] * 3, "one of the same network"
    assert await statuses(STRANGER[0]) == [401, 401, 429], "others are not held back"
    assert await statuses(LOCAL[0]) == [429] * 3, "but all together have a limit too"
    async with world.client(LOCAL) as client:
        answer = await client.post(f"{PREFIX}aws-instance-identity", json=clouds.proof("aws"))
    assert int(answer.headers["retry-after"]) > 0
    assert world.services.identity_limits.refused_count == 9
