"""The clouds of tests/support/clouds.py, made once: their keys take a while."""

from pathlib import Path

import pytest

from tailnet.identity.anchors import Anchors, load_anchors
from tests.support.clouds import Aws, Azure, Google, write_anchors


@pytest.fixture(scope="package")
def aws() -> Aws:
    return Aws()


@pytest.fixture(scope="package")
def azure() -> Azure:
    return Azure()


@pytest.fixture(scope="package")
def google() -> Google:
    return Google()


@pytest.fixture(scope="package")
def folder(tmp_path_factory: pytest.TempPathFactory, aws: Aws, azure: Azure, google: Google) -> Path:
    return write_anchors(tmp_path_factory.mktemp("anchors"), aws, azure, google)


@pytest.fixture(scope="package")
def anchors(folder: Path) -> Anchors:
    return load_anchors(folder)
