"""The error tree drawn in the docstring is the tree of the classes."""

import inspect

from derp import errors


def drawn_tree() -> dict[str, str | None]:
    """Child to parent, as the docstring of derp/errors.py draws it: three columns of drawing a level."""
    parents: dict[str, str | None] = {}
    path: list[str] = []
    for line in (errors.__doc__ or "").splitlines():
        name = line.lstrip("|- `").split("  ")[0].strip()
        if not name.isidentifier():
            continue
        depth = (len(line) - len(line.lstrip("|- `"))) // 3
        path[depth:] = [name]
        parents[name] = path[depth - 1] if depth else None
    return parents


def test_the_tree_is_the_one_that_is_drawn() -> None:
    defined = {
        name: parent.__name__ if (parent := kind.__mro__[1]) is not Exception else None
        for name, kind in inspect.getmembers(errors, inspect.isclass)
        if kind.__module__ == errors.__name__
    }
    assert drawn_tree() == defined


def test_every_error_says_what_it_is_for() -> None:
    for name, kind in inspect.getmembers(errors, inspect.isclass):
        assert kind.__doc__, name
        assert issubclass(kind, errors.DerpError)


def test_one_except_clause_tells_our_fault_from_the_peers() -> None:
    # A driver catches RemoteProtocolError and closes; a LocalProtocolError must not slip into that clause.
    assert not issubclass(errors.LocalProtocolError, errors.RemoteProtocolError)
    assert not issubclass(errors.RemoteProtocolError, errors.LocalProtocolError)
    assert not issubclass(errors.TransportError, errors.ProtocolError)
    # What parses text for a command line may be caught as the ValueError it is.
    assert issubclass(errors.KeyFormatError, ValueError)
