"""schemathesis asks every operation of the administration API what its description allows and forbids, as
tests/tailnet/api/test_schemathesis.py does with the public one."""

from typing import Any

import pytest
from schemathesis import GenerationMode

from tailnet.services.events import Events
from tailnet.store.outbox import Outbox
from tailnet.store.rows import EventType
from tests.support.administration import ALICE, BOB, DEV, MAIN, AdminWorld, put
from tests.support.described_api import Walk, each_mode, name_of, operations_of
from tests.support.openapi_document import administration_document
from tests.support.seeds import NOW, make_id, peer_id

WALK = Walk(
    base_url="http://tailnet.example.com",
    examples=6,
    known={
        "user": str(ALICE),
        "token": "alicexxxxx",
        "workspace": str(DEV),
        "grant": f"{DEV}:{BOB}",
        "agent": str(MAIN),
        "app": str(make_id("editor of main")),
        "script": str(make_id("start of main")),
        "code": "conflict",
    },
    tokens={"authorization"},
    meant={"cursor", "limit", "if-match", "if-none-match"},
)
# JSON lines, which schemathesis cannot write: test_transfer.py does.
BULK = "/api/v2/admin/bulk"
OPERATIONS = [each for each in operations_of(administration_document()) if each.path != BULK]


@each_mode
@pytest.mark.parametrize("operation", OPERATIONS, ids=name_of)
async def test_what_is_answered_is_described(world: AdminWorld, operation: Any, mode: GenerationMode) -> None:
    put(world.services.administration, "grant", f"{DEV}:{BOB}", workspace_id=str(DEV), user_id=str(BOB), rights=["ssh"])
    outbox = Outbox(world.store)
    world.services.events = Events(world.store, outbox, is_on=True, clock=lambda: NOW)
    world.services.events.note(peer_id("main"), EventType.READY)
    await outbox.flush()
    async with world.client() as client:
        await WALK.take(client, operation, mode)
