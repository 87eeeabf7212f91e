"""AWS documents: the genuine form, and forgeries of every kind."""

import json
import re
from base64 import b64encode

import pytest

from tailnet.identity.anchors import Anchors
from tailnet.identity.aws import verify_aws
from tailnet.identity.instance import CLOCK_SKEW_SECONDS, MAX_PROOF_BYTES, IdentityRefused, Instance
from tests.support.clouds import NOW, Aws

AT = NOW.timestamp()


def test_a_document(aws: Aws, anchors: Anchors) -> None:
    document = aws.document()
    assert verify_aws(document, aws.sign(document), anchors, AT) == Instance("i-0123", "eu-west-1")


def test_a_signature_in_lines_and_shown_again(aws: Aws, anchors: Anchors) -> None:
    document = aws.document()
    folded = re.sub("(.{64})", r"\1\n", aws.sign(document))
    for _ in range(2):
        assert verify_aws(document, folded, anchors, AT).instance_id == "i-0123"


def refused(document: str, signature: str, anchors: Anchors, now: float = AT) -> str:
    with pytest.raises(IdentityRefused) as caught:
        verify_aws(document, signature, anchors, now)
    return str(caught.value)


def test_forgeries(aws: Aws, anchors: Anchors) -> None:
    document = aws.document()
    signature = aws.sign(document)
    assert "none of the certificates" in refused(document, Aws().sign(document), anchors)
    assert "none of the certificates" in refused(document + " ", signature, anchors)
    assert "none of the certificates" in refused(aws.document(instanceId="i-other"), signature, anchors)
    assert "none of the certificates" in refused(document, b64encode(b"\0" * 256).decode(), anchors)
    assert "base64" in refused(document, "!" + signature, anchors)
    assert "more than" in refused(document, "A" * (MAX_PROOF_BYTES + 1), anchors)
    assert "more than" in refused("x" * (MAX_PROOF_BYTES + 1), signature, anchors)
    assert "trusts no AWS" in refused(document, signature, Anchors())


@pytest.mark.parametrize("document", ["", "[]", "{", '{"instanceId": 7}', '{"instanceId": ""}', "[" * 30_000])
def test_signed_nonsense(aws: Aws, anchors: Anchors, document: str) -> None:
    assert "document" in refused(document, aws.sign(document), anchors)


def test_another_region(aws: Aws, anchors: Anchors) -> None:
    document = aws.document(region="us-east-1")
    assert "another region" in refused(document, aws.sign(document), anchors)


def test_clocks(aws: Aws, anchors: Anchors) -> None:
    started = json.loads(aws.document())["pendingTime"]
    at = NOW.fromisoformat(started).timestamp()
    document = aws.document()
    assert verify_aws(document, aws.sign(document), anchors, at - CLOCK_SKEW_SECONDS).instance_id == "i-0123"
    assert "future" in refused(document, aws.sign(document), anchors, at - CLOCK_SKEW_SECONDS - 1)
