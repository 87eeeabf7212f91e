"""Which agent of an instance is meant, anchors that change, and a store that loses the agent meanwhile."""

from datetime import timedelta
from pathlib import Path
from uuid import UUID

import pytest

from tailnet.errors import ConfigError
from tailnet.identity.anchors import Anchors
from tailnet.identity.instance import IdentityRefused
from tailnet.services.instance_identity import InstanceIdentity, NoSuchInstance, SeveralAgents, _choose
from tailnet.store.rows import InstanceAgent
from tailnet.store.store import Store
from tailnet.tokens import agent_token_digest
from tests.support.administration import set_instance
from tests.support.clouds import NOW, Aws, Azure, Google, write_anchors
from tests.support.seeds import fill, make_id, peer_id

TOKEN = UUID(int=7)


@pytest.fixture(scope="module")
def aws() -> Aws:
    return Aws()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, aws: Aws) -> Path:
    return write_anchors(tmp_path_factory.mktemp("anchors"), aws, Azure(), Google())


def agent(name: str, workspace: str = "dev", key: str = "") -> InstanceAgent:
    return InstanceAgent(peer_id(key or name), name, make_id(workspace))


def test_the_newest_of_a_name_counts() -> None:
    new, old, other = agent("main", key="new"), agent("main", key="old"), agent("gpu")
    assert _choose("i", [new, old], "") is new
    assert _choose("i", [new, old, other], "main") is new
    assert _choose("i", [new, old, other], "gpu") is other
    with pytest.raises(SeveralAgents) as several:
        _choose("i", [new, old, other], "")
    assert several.value.names == ["gpu", "main"]
    assert _choose("i", [new, agent("main", "another workspace", "x")], "") is new


def test_nobody_is_meant() -> None:
    for found, name in (([], ""), ([], "main"), ([agent("gpu")], "main")):
        with pytest.raises(NoSuchInstance):
            _choose("i", found, name)


async def test_a_token(store: Store, folder: Path, aws: Aws) -> None:
    fill(store)
    set_instance(store, "main", "i-0123")
    identity = InstanceIdentity(store, folder, lambda: NOW, lambda: TOKEN)
    document = aws.document()
    assert await identity.aws(document, aws.sign(document), "") == TOKEN
    with pytest.raises(NoSuchInstance):
        await identity.aws(document, aws.sign(document), "another")
    assert identity.outcomes == {"issued": 1, "unknown": 1}
    assert agent_token_digest(TOKEN) in store.callers.agents_by_token_digests([agent_token_digest(TOKEN)])


async def test_a_clock_that_is_behind(store: Store, folder: Path, aws: Aws, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    identity = InstanceIdentity(store, folder, lambda: NOW - timedelta(days=9))
    document = aws.document()
    for _ in range(3):
        with pytest.raises(IdentityRefused, match="clock"):
            await identity.aws(document, aws.sign(document), "")
    assert caplog.text.count("an instance's proof opens nothing: the document is from the future") == 1
    assert identity.outcomes == {"refused": 3}


def test_anchors_are_read_again(store: Store, folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "aws").mkdir()
    certificate = tmp_path / "aws" / "eu-west-1.pem"
    certificate.write_bytes((folder / "aws" / "eu-west-1.pem").read_bytes())
    identity = InstanceIdentity(store, tmp_path)
    assert [anchor.region for anchor in identity.anchors.aws] == ["eu-west-1"]
    certificate.rename(certificate.with_name("any.pem"))
    identity.reload()
    assert [anchor.region for anchor in identity.anchors.aws] == [""]
    certificate.write_text("nonsense")
    identity.reload()
    assert [anchor.region for anchor in identity.anchors.aws] == [""], "what was good stays"
    assert "those of before go on" in caplog.text


def test_anchors_that_cannot_be_read_stop_the_start(store: Store, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no directory"):
        InstanceIdentity(store, tmp_path / "absent")
    unset = InstanceIdentity(store)
    unset.reload()
    assert unset.anchors == Anchors()
