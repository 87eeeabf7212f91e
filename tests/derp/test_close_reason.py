"""Why connections end: the words that dashboards and alerts have."""

from pathlib import Path

from derp.close_reason import CloseReason

ROOT = Path(__file__).resolve().parents[2]


def test_the_values_are_labels_and_never_change() -> None:
    assert [reason.value for reason in CloseReason] == [reason.name.lower() for reason in CloseReason]


def test_every_reason_has_somebody_who_gives_it() -> None:
    code = "".join(path.read_text() for folder in ("derp", "tailnet") for path in (ROOT / folder).rglob("*.py"))
    assert [reason.name for reason in CloseReason if f"CloseReason.{reason.name}" not in code] == []
