"""Callers of whom one loses its right when a test says so, for streams that follow by a permit."""

from typing import cast

from tailnet.api.streams import POLICY_VIOLATION, End, Permit
from tailnet.auth.callers import Callers, Changes


class Standing:
    """What a stream asks of tailnet/auth/callers.py."""

    def __init__(self) -> None:
        self.end: End | None = None
        self.changes = Changes()
        self.permit = Permit(cast(Callers, self), self.ask)

    async def ask(self) -> End | None:
        return self.end

    def change(self) -> None:
        """Callers changed, this one or another."""
        self.changes.note()

    def withdraw(self) -> None:
        """This one may not follow any longer."""
        self.end = POLICY_VIOLATION, "authorization withdrawn"
        self.change()
