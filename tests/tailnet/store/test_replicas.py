"""Rows of replicas."""

from tailnet.store.store import Store


def test_rows_are_written_read_and_swept(store: Store) -> None:
    renew = store.replicas.renew
    assert renew("aa", b"first", 1, []) == [("aa", 1, b"first")]
    assert renew("bb", b"second", 1, []) == [("aa", 1, b"first"), ("bb", 1, b"second")]
    assert renew("bb", b"second again", 2, ["aa", "cc"]) == [("bb", 2, b"second again")]
    store.replicas.leave("bb")
    store.replicas.leave("bb")
    assert renew("aa", b"first", 2, []) == [("aa", 2, b"first")]
