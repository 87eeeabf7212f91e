"""Our server as it would be without its outbox: each report is a transaction of its own.  The baseline of agents.py.

    python bench/one_by_one.py serve --store ...
The values of one report are still written together; each report goes to the store's writer as it comes.
"""

import sys
from pathlib import Path
from typing import Any

import trio

if not __package__:  # started as a file: the project's root is not on the path then
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tailnet.cli import main
from tailnet.errors import StoreError
from tailnet.store import writer
from tailnet.store.outbox import Outbox
from tailnet.store.outbox_queue import Loss


def put(self: Outbox, kind: Any, item: Any) -> None:
    """In place of Outbox.put: what comes in one step of one agent is one report."""
    waiting: dict[Any, list[Any]] = self.__dict__.setdefault("one_by_one", {})
    key = kind.name, kind.agent_of(item)
    if key in waiting:
        waiting[key].append(item)
        return
    waiting[key] = [item]
    trio.lowlevel.spawn_system_task(write, self, kind, key)


async def write(self: Outbox, kind: Any, key: Any) -> None:
    """Write one report."""
    items = self.__dict__["one_by_one"].pop(key)
    try:
        answers = await self._store.run(kind.write, items, *kind.arguments())
    except StoreError:
        self._queues[kind.name].lost[Loss.TOTAL] += len(items)
        return
    self._written[kind.name] += len(items)
    if kind.written is not None:
        kind.written(items, answers)


Outbox.put = put  # type: ignore[method-assign]
writer.MAX_GROUP = 1  # type: ignore[misc]

if __name__ == "__main__":
    main()
