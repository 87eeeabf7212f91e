"""The directory of those who are believed, and what is wrong with one."""

import shutil
from pathlib import Path

import pytest

from derp.errors import ConfigError
from tailnet.identity.anchors import Anchors, load_anchors
from tests.support.certificates import issue


def test_a_directory(anchors: Anchors) -> None:
    assert [anchor.region for anchor in anchors.aws] == ["eu-west-1"]
    assert (len(anchors.azure_roots), len(anchors.azure_intermediates), len(anchors.google_keys)) == (1, 1, 2)


def test_a_file_of_any_region(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "aws").mkdir()
    shutil.copy(folder / "aws" / "eu-west-1.pem", tmp_path / "aws" / "all.pem")
    assert [anchor.region for anchor in load_anchors(tmp_path).aws] == [""]


def test_an_empty_directory_trusts_nobody(tmp_path: Path) -> None:
    assert load_anchors(tmp_path) == Anchors()


@pytest.mark.parametrize(
    ("file", "content", "complaint"),
    [
        ("aws/x.pem", b"no certificate", "holds no certificates"),
        ("aws/x.pem", issue("ec").pem, "RSA"),
        ("aws/x.pem", b"#" * 1_048_577, "more than"),
        ("azure/x.pem", b"", "holds no certificates"),
        ("google/jwks.json", b"{", "no JSON"),
        ("google/jwks.json", b"[]", '"keys"'),
        ("google/jwks.json", b'{"keys": [{"kty": "oct", "k": "AA"}]}', "RSA or EC"),
    ],
)
def test_what_is_wrong_is_named_with_its_file(tmp_path: Path, file: str, content: bytes, complaint: str) -> None:
    path = tmp_path / file
    path.parent.mkdir()
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=complaint) as caught:
        load_anchors(tmp_path)
    assert str(path) in str(caught.value)


def test_no_directory(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no directory"):
        load_anchors(tmp_path / "nowhere")
