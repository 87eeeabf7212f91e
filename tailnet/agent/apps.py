"""Whether the apps of a workspace are well: their URLs are asked at intervals.  Layer L3.

An answer below 500 is a good one.  A change is told, and the first judgement.  Next hop: control.py.
"""

from collections.abc import Iterable
from typing import Final

import trio

from tailnet.agent.control import Control
from tailnet.agent.manifest import AppCheck
from tailnet.errors import CODE_UNIMPLEMENTED, RpcError, TransportError
from tailnet.proto.generated import agent_pb2 as agent
from tailnet.transport.fetch import Asker

# The head of an answer decides; its body is read so that the connection can be used again.
MAX_BODY_BYTES: Final = 64 * 1024
_FIRST_BAD_STATUS: Final = 500
# An app whose interval is a day still answers or does not.
MAX_ANSWER_SECONDS: Final = 30.0

HealthUpdate = agent.BatchUpdateAppHealthRequest.HealthUpdate


async def check_apps(checks: Iterable[AppCheck], control: Control) -> None:
    """Until cancelled.  Raises RpcError when the coordinator has other apps by now: the manifest is an old one."""
    async with trio.open_nursery() as nursery:
        for check in checks:
            nursery.start_soon(_check_app, check, control)


async def _check_app(check: AppCheck, control: Control) -> None:
    told, failures = agent.INITIALIZING, 0
    async with Asker(
        check.url, token="", verified=False, timeout_seconds=min(check.interval_seconds, MAX_ANSWER_SECONDS)
    ) as asker:
        while True:
            began = trio.current_time()
            try:
                is_well = (await asker.ask("", MAX_BODY_BYTES)).status < _FIRST_BAD_STATUS
            except TransportError:
                is_well = False
            failures = 0 if is_well else failures + 1
            health = agent.HEALTHY if is_well else agent.UNHEALTHY if failures >= check.threshold else told
            if health != told:
                told = health
                request = agent.BatchUpdateAppHealthRequest(updates=[HealthUpdate(id=check.id, health=health)])
                try:
                    await control.call("BatchUpdateAppHealths", request, agent.BatchUpdateAppHealthResponse)
                except RpcError as error:
                    if error.code != CODE_UNIMPLEMENTED:
                        raise
                    return
            await trio.sleep_until(began + check.interval_seconds)
