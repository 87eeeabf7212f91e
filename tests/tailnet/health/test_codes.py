"""The table of codes: complete, said in docs/health.md, and each with a test that plants its fault."""

import re
from pathlib import Path

import pytest

from tailnet.health.codes import RULES, Check, Code, Severity

ROOT = Path(__file__).resolve().parents[3]
DOCUMENT = (ROOT / "docs" / "health.md").read_text()
# Those of one server, and those of several.
FAULTS = "".join(
    (ROOT / "tests" / "tailnet" / place).read_text()
    for place in ("server/test_health.py", "services/test_replicas_health.py")
)


def test_every_code_has_its_rule() -> None:
    assert set(RULES) == set(Code)
    assert {rule.check for rule in RULES.values()} == {*Check, None}
    for code, rule in RULES.items():
        if rule.check in (Check.REPLICAS, Check.PEERS):
            assert re.fullmatch(r"ER\d\d", code.value)
        else:
            assert re.fullmatch(r"[a-z]+(-[a-z]+)+", code.value)
            assert rule.check is None or code.value.startswith(rule.check.value)
        assert rule.severities
        assert Severity.OK not in rule.severities
        assert re.fullmatch(r"[A-Z][^\n]*\.", rule.advice)
        assert not rule.when.endswith(".")


def row(code: Code) -> str:
    rule = RULES[code]
    check = rule.check.value if rule.check is not None else "any"
    severities = " or ".join(each.word for each in rule.severities)
    return f"| `{code.value}` | {check} | {severities} | {rule.when} | {rule.advice} |"


def test_the_document_is_the_table() -> None:
    shown = [line for line in DOCUMENT.splitlines() if line.startswith("| `")]
    assert shown == [row(code) for code in RULES]


@pytest.mark.parametrize("code", Code, ids=lambda code: code.value)
def test_the_fault_of_every_code_is_planted(code: Code) -> None:
    assert f"Code.{code.name}" in FAULTS
