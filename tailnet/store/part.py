"""A part of the store: some tables and what can be asked of them (layer L2).

A method marked `reads` or `writes` is given a connection inside a transaction; callers leave it out.  Called plainly
it blocks, which suits commands and tests; tasks say `await store.run(part.method, ...)`.  A plain method makes its own
transactions with `self.database`.
"""

from collections.abc import Callable
from typing import Concatenate, Generic, ParamSpec, TypeVar

import sqlalchemy as sa

from tailnet.store.database import Database
from tailnet.store.writer import Change

P = ParamSpec("P")
T = TypeVar("T")
S = TypeVar("S", bound="Part")


class Part:
    """Tables that belong together.  store.py makes one of each for its database."""

    def __init__(self, database: Database) -> None:
        self.database = database


class reads(Generic[S, P, T]):  # noqa: N801  # a decorator
    """Marks a method that only reads: one snapshot.  Raises StoreError beside what it raises itself."""

    def __init__(self, method: Callable[Concatenate[S, sa.Connection, P], T]) -> None:
        self._method = method
        self.__doc__ = method.__doc__

    def __get__(self, part: S, _: type[S]) -> Callable[P, T]:
        def read(*args: P.args, **kwargs: P.kwargs) -> T:
            with part.database.reading() as connection:
                return self._method(part, connection, *args, **kwargs)

        return read


class writes(Generic[S, P, T]):  # noqa: N801  # a decorator
    """Marks a method that changes what must not be lost: once it returned, a power cut cannot take it back."""

    durable = True

    def __init__(self, method: Callable[Concatenate[S, sa.Connection, P], T]) -> None:
        self._method = method
        self.__doc__ = method.__doc__

    def __get__(self, part: S, _: type[S]) -> Change[P, T]:
        def work(connection: sa.Connection, /, *args: P.args, **kwargs: P.kwargs) -> T:
            return self._method(part, connection, *args, **kwargs)

        return Change(part.database.writing, work, durable=self.durable)


class notes(writes[S, P, T]):  # noqa: N801  # a decorator
    """Marks a method that writes what agents report: it does not wait for the disk, since they report again."""

    durable = False
