"""Is it alive, should it get requests, what is wrong, and its numbers (layer L3): /healthz, /readyz, /health, /metrics.

The first two are for load balancers, which may ask by HEAD, and say little, so they are open; /metrics is for
operators only.  Of /health strangers get the state alone: the rest names files, addresses and agents, and says where to
push.  They never cause a measurement either.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from derp.text import fit_to_show
from tailnet import __version__
from tailnet.api.answers import Body, GoJsonResponse, GoTime, OmitNone, refusal_response
from tailnet.api.guards import OperatorOnly, ServicesOf, is_operator, query_of
from tailnet.health.codes import RULES, SeverityName
from tailnet.health.readings import Failed, Skipped
from tailnet.health.text import health_lines
from tailnet.refusals import Refused
from tailnet.services.health import CheckResult, HealthReport

METRICS_CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"

# For the schema, which would otherwise take refusals for plain text too.
REFUSED: Final[dict[str, Any]] = {
    "description": "Refused, and why",
    "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Refusal"}}},
}

StateName = Literal["ok", "warning", "error", "unknown"]
# For monitors that look at the status alone; a warning is nothing to be woken for.
_STATUS: Final = {"error": 503}


class FindingRow(Body):
    """One thing that is wrong.  Programs go by the code, people by the sentences."""

    code: str
    severity: SeverityName
    check: OmitNone[str] = None
    what: str
    advice: str


class CheckRow(Body):
    """What was looked at.  `measured`: numbers as they were, by name; `skipped`: why it cannot be measured here."""

    check: str
    severity: SeverityName
    seconds: float
    skipped: OmitNone[str] = None
    measured: OmitNone[Mapping[str, Any]] = None


class HealthPage(Body):
    """What is wrong, the worst first, and every check.  Strangers get the state alone."""

    state: StateName
    version: OmitNone[str] = None
    measured_at: OmitNone[GoTime] = None
    seconds: OmitNone[float] = None
    findings: OmitNone[Sequence[FindingRow]] = None
    checks: OmitNone[Sequence[CheckRow]] = None


router = APIRouter(tags=["health"], responses={"4XX": REFUSED, "5XX": REFUSED})


@router.head("/healthz", include_in_schema=False)
@router.get("/healthz", response_class=PlainTextResponse)
async def healthz() -> Response:
    """200 for as long as the process answers at all."""
    return PlainTextResponse("OK\n")


@router.head("/readyz", include_in_schema=False)
@router.get("/readyz", response_class=PlainTextResponse)
async def readyz(services: ServicesOf) -> Response:
    """200 when requests should come here, else 503 with the reasons."""
    reasons = services.inspection.not_ready()
    if reasons:
        return refusal_response(Refused(503, "Not ready.", "; ".join(reasons)))
    return PlainTextResponse("OK\n")


@router.head("/health", include_in_schema=False)
@router.get("/health", responses={200: {"model": HealthPage}, 503: {"model": HealthPage}})
async def health(request: Request, services: ServicesOf) -> Response:
    """What is wrong and what to do: for operators all of it, for others the state alone; `format=text` for people.

    503 when something is an error.
    """
    if await is_operator(request):
        body = health_page(await services.health.report())
    else:
        last = services.health.last
        body = HealthPage(state="unknown" if last is None else last.severity.word)
    content = body.model_dump(mode="json")
    status = _STATUS.get(content["state"], 200)
    headers = {"cache-control": "no-store"}
    if query_of(request).get("format") == "text":
        return PlainTextResponse("".join(f"{line}\n" for line in health_lines(content)), status, headers)
    return GoJsonResponse(content, status, headers)


def health_page(report: HealthReport) -> HealthPage:
    """A report as operators see it."""
    findings = [
        FindingRow(
            code=each.code.value,
            severity=each.severity.word,
            check=rule.check.value if (rule := RULES[each.code]).check is not None else None,
            what=fit_to_show(each.what),
            advice=each.advice,
        )
        for each in report.findings
    ]
    return HealthPage(
        state=report.severity.word,
        version=__version__,
        measured_at=report.measured_at,
        seconds=round(report.seconds, 3),
        findings=findings,
        checks=[_check_row(each) for each in report.results],
    )


def _check_row(result: CheckResult) -> CheckRow:
    reading = result.reading
    is_measured = not isinstance(reading, Skipped | Failed)
    return CheckRow(
        check=result.check.value,
        severity=result.severity.word,
        seconds=round(result.seconds, 3),
        skipped=fit_to_show(reading.reason) if isinstance(reading, Skipped) else None,
        measured=dataclasses.asdict(reading) if is_measured else None,
    )


@router.get("/metrics", dependencies=[OperatorOnly], response_class=PlainTextResponse)
async def metrics(services: ServicesOf) -> Response:
    """Numbers in Prometheus' text format."""
    return Response(services.metrics(), media_type=METRICS_CONTENT_TYPE)
