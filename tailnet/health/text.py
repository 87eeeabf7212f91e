"""A health report as people read it (layer L1), from its JSON: for api/health.py and for `tailnet health`."""

from collections.abc import Iterator, Mapping
from typing import Any


def health_lines(page: Mapping[str, Any]) -> Iterator[str]:
    """`page`: a HealthPage as JSON, or what strangers get: the state alone."""
    state = page["state"]
    if "checks" not in page:
        yield f"{state}; details are for operators: by loopback or with an administrator's token"
        return
    count = len(page["findings"])
    found = "nothing is wrong" if not count else "one thing is wrong" if count == 1 else f"{count} things are wrong"
    seconds, version = page["seconds"], page["version"]
    yield f"{state}: {found}; measured at {page['measured_at']} within {seconds:.1f} s, version {version}"
    for finding in page["findings"]:
        yield ""
        yield f"{finding['severity']}: {finding['code']}: {finding['what']}"
        yield f"    {finding['advice']}"
    yield ""
    for check in page["checks"]:
        skipped = check.get("skipped")
        yield f"{check['check']:<12} {check['severity'] if skipped is None else f'not measured: {skipped}'}"
