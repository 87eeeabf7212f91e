"""What differs between databases, as one object (layer L2).

A dialect knows how to connect, how a transaction begins, how a row is inserted or updated, what makes a decision safe
against other processes, and what each error means to an operator.  sqlite.py and postgresql.py are the two;
database.py asks, and so do the tables that insert or update.
"""

import os
from abc import ABC, abstractmethod
from collections.abc import Collection, Sequence
from datetime import datetime
from pathlib import Path
from typing import ClassVar

import sqlalchemy as sa

from tailnet.errors import StoreError, StoreTrouble


class Dialect(ABC):
    """One kind of database.  Thread-safe; made by database.py for one URL."""

    name: ClassVar[str]  # as an operator calls it
    driver_errors: tuple[type[Exception], ...]  # what `explain` is asked about
    max_readers: int  # connections, and threads, that read at once

    def __init__(self, url: sa.URL, shown: str) -> None:
        self.url = url
        self.shown = shown  # in messages; holds no secret

    # --- connecting

    @abstractmethod
    def prepare(self, *, create: bool) -> None:
        """Make what has to be there before the first connection, or insist that it is there.  Raises StoreError."""

    @abstractmethod
    def readers(self) -> sa.Engine:
        """An engine whose transactions are snapshots and cannot write."""

    @abstractmethod
    def writer(self) -> sa.Engine:
        """An engine with one connection, for transactions that write."""

    def look(self) -> None:  # noqa: B027  # a server's identity needs no look
        """Before each transaction, so it costs microseconds: is this still the store that was opened?

        Raises StoreError.
        """

    def claim(self) -> bool:
        """Have this store to this server alone, until `leave`, where it cannot be shared.  Returns whether it is."""
        return True

    def claim_to_hand_over(self) -> int | None:
        """A descriptor that is our claim: who inherits it has the claim too, and goes on having it when we leave.  None
        where there is none."""
        return None

    def take_claim(self, descriptor: int) -> None:
        """Have the claim of the process that we replace, if it is one of this store.  The descriptor is ours then."""
        os.close(descriptor)

    def abandon(self, writers: sa.Engine) -> None:  # noqa: B027  # only files are replaced
        """Once `look` found another store: see to it that neither harms the other."""

    def leave(self) -> None:  # noqa: B027  # most leave nothing behind
        """After the last connection was closed."""

    # --- transactions

    @abstractmethod
    def begin_write(self, connection: sa.Connection, *, durable: bool) -> None:
        """At the start of a write transaction.  `durable`: its commit waits until the disk has it."""

    def begin_long(self, connection: sa.Connection) -> None:  # noqa: B027  # most have no time-outs
        """Lift the time-outs of a transaction that may take minutes: a migration."""

    @abstractmethod
    def lock(self, connection: sa.Connection, name: str) -> None:
        """Have no other process pass here with this name until this write transaction ends: for what is read, decided
        and then written."""

    # --- statements

    @abstractmethod
    def upsert(self, table: sa.Table, key: Collection[str], replaced: Collection[str]) -> sa.Insert:
        """An insert that replaces these columns where the key exists, or leaves the row as it is if there are none."""

    @abstractmethod
    def insert_rows(
        self, connection: sa.Connection, table: sa.Table, columns: Sequence[str], rows: Sequence[tuple[object, ...]]
    ) -> None:
        """Insert many rows whose values are as the database has them, in the order of `columns`.

        SQLAlchemy takes 6 us for the parameters of one row, in which no other thread of this process gets on: of 10,000
        lines of logs a second that is a pause for everybody else.
        """

    @abstractmethod
    def byte_length(self, column: sa.ColumnElement[str]) -> sa.ColumnElement[int]:
        """How many bytes a text takes."""

    # --- its keep

    @abstractmethod
    def keep_copy(self, connection: sa.Connection, revision: str) -> str:
        """Before a migration, inside its transaction: keep what is there.  Returns where, for the log.

        Raises StoreError when it cannot: then nothing is migrated.
        """

    @abstractmethod
    def vacuum(self, writers: sa.Engine) -> None:
        """Give room that deleted rows left back to the disk."""

    @abstractmethod
    def go_on_numbering(self, connection: sa.Connection, table: sa.Table) -> None:
        """After rows were inserted with their numbers: the next ones are higher."""

    @abstractmethod
    def find_damage(self, connection: sa.Connection) -> Collection[str]:
        """What is wrong with the files below the tables, a sentence each."""

    @abstractmethod
    def size_bytes(self, connection: sa.Connection) -> int:
        """How much of a disk it takes."""

    @abstractmethod
    def version(self, connection: sa.Connection) -> str:
        """Of the database's program."""

    def clock(self, connection: sa.Connection) -> datetime | None:  # most machines have one clock
        """The time of day by its own clock; None where that is ours."""
        return None

    def disk(self) -> Path | None:  # a server's disk is another machine's
        """A path on the disk that it fills, if that is one of this machine."""
        return None

    # --- what it says

    @abstractmethod
    def table_names(self, connection: sa.Connection) -> Collection[str]:
        """The tables that are there, ours and others'."""

    @abstractmethod
    def explain(self, error: Exception) -> tuple[StoreTrouble, str]:
        """What went wrong, for programs and in a sentence that says what to change."""

    def error(self, error: Exception) -> StoreError:
        """An error of a library or a driver as one of ours."""
        trouble, advice = self.explain(error)
        return StoreError(f"store {self.shown}: {advice}", trouble)
