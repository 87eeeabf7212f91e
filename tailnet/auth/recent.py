"""Answers in memory (layer L2): a new one pushes out the least recently used; those about strangers are kept apart.

Strangers choose the keys of what nobody knows: few of them are kept, and they never push out callers that were found.
"""

from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping
from typing import Final, Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")

# An entry has about half a kilobyte, so 32 MB at the most.  An agent that is both caller and target has two.
MAX_FOUND: Final = 65_536
MAX_UNKNOWN: Final = 4_096


class RecentAnswers(Generic[K, V]):
    """Answers by key; None is the answer that there is nobody."""

    def __init__(self, max_found: int = MAX_FOUND, max_unknown: int = MAX_UNKNOWN) -> None:
        self._max_found = max_found
        self._max_unknown = max_unknown
        self._found: OrderedDict[K, V] = OrderedDict()
        self._unknown: OrderedDict[K, None] = OrderedDict()

    def __contains__(self, key: K) -> bool:
        return key in self._found or key in self._unknown

    def __len__(self) -> int:
        return len(self._found) + len(self._unknown)

    def get(self, key: K) -> V | None:
        answer = self._found.get(key)
        if answer is not None:
            self._found.move_to_end(key)
        return answer

    def keep(self, answers: Mapping[K, V | None]) -> None:
        for key, answer in answers.items():
            if answer is None:
                self._found.pop(key, None)
                self._unknown[key] = None
            else:
                self._unknown.pop(key, None)
                self._found[key] = answer
                self._found.move_to_end(key)
        while len(self._found) > self._max_found:
            self._found.popitem(last=False)
        while len(self._unknown) > self._max_unknown:
            self._unknown.popitem(last=False)

    def drop(self, key: K) -> None:
        """Forget one answer."""
        self._found.pop(key, None)
        self._unknown.pop(key, None)

    def drop_where(self, is_old: Callable[[V | None], bool]) -> None:
        """Forget the answers of which that is so."""
        for answers in (self._found, self._unknown):
            for key in [key for key, answer in answers.items() if is_old(answer)]:
                del answers[key]

    def clear(self) -> None:
        self._found.clear()
        self._unknown.clear()
