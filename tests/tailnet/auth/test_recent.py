"""Answers in memory: bounded, and strangers never push out those who were found."""

from tailnet.auth.recent import RecentAnswers


def test_the_least_recently_used_goes_first() -> None:
    recent: RecentAnswers[str, int] = RecentAnswers(max_found=2)
    recent.keep({"a": 1, "b": 2})
    assert recent.get("a") == 1
    recent.keep({"c": 3})
    assert [recent.get(key) for key in "abc"] == [1, None, 3]
    assert "b" not in recent
    assert len(recent) == 2


def test_strangers_have_room_of_their_own() -> None:
    recent: RecentAnswers[str, int] = RecentAnswers(max_found=1, max_unknown=2)
    recent.keep({"a": 1})
    recent.keep(dict.fromkeys("xyz"))
    assert recent.get("a") == 1
    assert ["x" in recent, "y" in recent, "z" in recent] == [False, True, True]
    assert len(recent) == 3


def test_the_last_word_counts() -> None:
    recent: RecentAnswers[str, int] = RecentAnswers()
    recent.keep({"a": 1})
    recent.keep({"a": None})
    assert ("a" in recent, recent.get("a"), len(recent)) == (True, None, 1)
    recent.keep({"a": 2})
    assert (recent.get("a"), len(recent)) == (2, 1)
    recent.drop("a")
    recent.drop("b")
    assert "a" not in recent
    recent.keep({"a": 1, "b": None})
    recent.clear()
    assert len(recent) == 0
