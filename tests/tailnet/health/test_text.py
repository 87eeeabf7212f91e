"""A report as people read it."""

from tailnet.health.text import health_lines

PAGE = {
    "state": "warning",
    "version": "1.2",
    "measured_at": "2026-01-01T00:00:00Z",
    "seconds": 0.12,
    "findings": [{"code": "disk-full", "severity": "warning", "check": "disk", "what": "is full", "advice": "Do it."}],
    "checks": [
        {"check": "disk", "severity": "warning", "seconds": 0.1, "measured": {}},
        {"check": "relay", "severity": "ok", "seconds": 0.1, "skipped": "it is off"},
    ],
}


def test_the_report() -> None:
    assert list(health_lines(PAGE)) == [
        "warning: one thing is wrong; measured at 2026-01-01T00:00:00Z within 0.1 s, version 1.2",
        "",
        "warning: disk-full: is full",
        "    Do it.",
        "",
        "disk         warning",
        "relay        not measured: it is off",
    ]


def test_how_many() -> None:
    assert next(health_lines(PAGE | {"findings": []})).startswith("warning: nothing is wrong; ")
    assert next(health_lines(PAGE | {"findings": [*PAGE["findings"], *PAGE["findings"]]})).startswith(
        "warning: 2 things are wrong; "
    )


def test_strangers_learn_the_state() -> None:
    [line] = health_lines({"state": "error"})
    assert line.startswith("error; details are for operators")
