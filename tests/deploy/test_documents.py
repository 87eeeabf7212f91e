"""README and CONTRIBUTING say what is so: the table of flags, the files they name, the commands they show."""

import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from derp.cli import cli
from derp.config.setting import Setting
from derp.config.settings import SETTINGS
from tailnet.config.settings import RELAY_PREFIX
from tailnet.config.settings import SETTINGS as COORDINATOR_SETTINGS

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text()


def flag_rows() -> list[str]:
    """The README's table of flags, as it has to be."""
    rows = []
    for setting in SETTINGS:
        derpers = f"`-{setting.alias or setting.flags[0]}`" if setting.from_derper else ""
        rows.append(f"| `--{setting.flags[0]}` | {derpers} | {setting.help} |")
    return rows


def test_the_table_of_flags_is_the_table_of_settings() -> None:
    shown = [line for line in README.splitlines() if line.startswith("| `--")]
    assert shown == flag_rows()


@pytest.mark.parametrize(
    ("head", "is_meant"),
    [
        ("- Its own:", lambda row: not row.name.startswith(RELAY_PREFIX) and row.name not in SETTINGS.by_name),
        ("- The same as above, for whoever listens:", lambda row: row.name in SETTINGS.by_name),
        ("- Of the embedded relay:", lambda row: row.name.startswith(RELAY_PREFIX)),
    ],
)
def test_the_coordinator_s_lists_are_its_table(head: str, is_meant: Callable[[Setting], bool]) -> None:
    text = README.partition(head)[2].partition("\n- ")[0].partition("\n\n")[0]
    assert re.findall(r"`(--[a-z-]+)`", text) == [row.flag for row in COORDINATOR_SETTINGS if is_meant(row)]


@pytest.mark.parametrize("document", [README, CONTRIBUTING], ids=["README", "CONTRIBUTING"])
def test_files_that_are_named_exist(document: str) -> None:
    named = re.findall(
        r"\b(?:derp|tailnet|tests|deploy|bench|transport|server|protocol|relay)/[a-z_/]+\.[a-z]+(?:\.xz)?", document
    )
    assert len(named) >= 5
    missing = [name for name in named if not ((ROOT / name).exists() or (ROOT / "derp" / name).exists())]
    assert missing == []


def test_steps_of_walks_are_there() -> None:
    """Each line of a walk names a file and what in it does the step."""
    steps = re.findall(r"^    ([\w/]+\.py)(?:, [\w/]+\.py)?\s{2,}(?:\w+\.)?(\w+)\s{2,}", CONTRIBUTING, re.MULTILINE)
    assert len(steps) >= 30
    for file, name in steps:
        text = (ROOT / file).read_text()
        assert re.search(rf"^\s*(?:async )?(?:def|class) {name}\b|^{name}\b", text, re.MULTILINE), (
            f"{file} has no {name}"
        )


def test_commands_that_are_shown_are_understood() -> None:
    text = README.replace("\\\n", " ")
    commands = [line.partition("#")[0] for line in text.splitlines() if line.startswith("    derp ")]
    assert len(commands) >= 4
    for command in commands:
        words = shlex.split(command)[1:]
        # --help after them: everything before it is parsed, nothing is run.
        result = CliRunner().invoke(cli, [*words, "--help"])
        assert result.exit_code == 0, (command, result.output)


def test_make_targets_that_are_shown_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    shown = set(re.findall(r"\bmake ([a-z-]+)", README + CONTRIBUTING))
    assert shown >= {"serve", "test"}
    assert [target for target in shown if f"\n{target}:" not in makefile] == []
    assert makefile.count("\n") <= 70
