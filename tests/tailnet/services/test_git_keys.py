"""A user's pair of keys: made once, the same for all who ask, encrypted, rotated, and lost with its key."""

import pytest
import trio
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_ssh_private_key

from tailnet.errors import SecretsError
from tailnet.services.git_keys import GitKey, GitKeys, rotate_git_key
from tailnet.store.sealing import Sealer
from tailnet.store.store import Store
from tests.support.seeds import NOW, fill, make_id

pytestmark = pytest.mark.stores
ALICE = make_id("alice")
KEY = bytes(range(32))


@pytest.fixture
def filled(store: Store) -> Store:
    fill(store)
    return store


def fits(key: GitKey) -> bool:
    private = load_ssh_private_key(key.private_key.encode(), None)
    public = private.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
    return public.decode() == key.public_key.strip()


async def test_all_who_ask_at_once_get_one_pair(filled: Store) -> None:
    keys = GitKeys(filled, Sealer([KEY]), lambda: NOW)
    found: list[GitKey] = []

    async def ask() -> None:
        found.append(await keys.read(ALICE))

    async with trio.open_nursery() as nursery:
        for _ in range(8):
            nursery.start_soon(ask)
    assert len(set(found)) == 1
    assert fits(found[0])
    assert found[0].public_key.startswith("ssh-ed25519 ")
    assert found[0].private_key not in repr(found[0])
    assert await GitKeys(filled, Sealer([bytes(32), KEY])).read(ALICE) == found[0], "after a restart too"
    assert await keys.read(make_id("bob")) != found[0]


async def test_a_new_pair(filled: Store) -> None:
    keys = GitKeys(filled, Sealer([KEY]), lambda: NOW)
    before = await keys.read(ALICE)
    public = rotate_git_key(filled, Sealer([KEY]), ALICE, NOW)
    after = await keys.read(ALICE)
    assert after.public_key == public != before.public_key
    assert fits(after)


async def test_it_is_encrypted_where_it_lies(filled: Store) -> None:
    key = await GitKeys(filled, Sealer([KEY])).read(ALICE)
    row = filled.credentials.git_key(ALICE)
    assert row is not None
    middle = key.private_key.splitlines()[2].encode()
    assert middle not in row.sealed


async def test_a_pair_that_cannot_be_read_is_not_replaced(filled: Store) -> None:
    with pytest.raises(SecretsError, match="--secrets-key-file"):
        await GitKeys(filled, Sealer()).read(ALICE)
    assert filled.credentials.git_key(ALICE) is None
    made = await GitKeys(filled, Sealer([KEY])).read(ALICE)
    with pytest.raises(SecretsError, match="has to have that one"):
        await GitKeys(filled, Sealer([bytes(32)])).read(ALICE)
    assert await GitKeys(filled, Sealer([KEY])).read(ALICE) == made
