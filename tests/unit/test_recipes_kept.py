"""Deque and Index against `collections`, by random calls; kept over closing; joint changes."""

from __future__ import annotations

import collections
import pickle
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import siltstone
from siltstone import errors
from siltstone.recipes import Deque, Index

VALUES = st.integers(0, 5)
MANY = st.lists(VALUES, max_size=5)
CALLS = st.one_of(
    st.tuples(st.sampled_from(["append", "appendleft", "remove", "rotate"]), VALUES),
    st.tuples(st.sampled_from(["extend", "extendleft"]), MANY),
    st.tuples(st.sampled_from(["pop", "popleft", "reverse", "clear"])),
    st.tuples(st.sampled_from(["__getitem__", "__delitem__"]), st.integers(-4, 4)),
    st.tuples(st.just("__setitem__"), st.integers(-4, 4), VALUES),
)


def outcome(of: Any, call: tuple[Any, ...]) -> Any:
    """What it returned, or which built-in error it raised."""
    try:
        return getattr(of, call[0])(*call[1:])
    except (IndexError, ValueError) as error:
        return IndexError if isinstance(error, IndexError) else ValueError


@settings(max_examples=60, deadline=None)
@given(st.lists(CALLS, max_size=30), st.sampled_from([None, 0, 1, 4]), MANY)
def test_a_deque_is_that_of_collections(
    calls: list[tuple[Any, ...]], maxlen: int | None, begin: list[int]
) -> None:
    model = collections.deque(begin, maxlen)
    with Deque(begin, maxlen=maxlen) as deque:
        for call in calls:
            assert outcome(deque, call) == outcome(model, call), call
            assert list(deque) == list(model), call
            assert len(deque) == len(model)
        assert list(reversed(deque)) == list(reversed(model))
        assert deque == model
        assert deque <= model
        assert (deque < [9, 9]) == (list(model) < [9, 9])


def test_a_deque_is_kept(tmp_path: Path) -> None:
    with Deque("abc", tmp_path, maxlen=3) as deque:
        deque += ["d"]
        assert deque.peek() == "d"
        assert deque.peekleft() == "b"
        assert "c" in deque
        assert deque.count("c") == 1
        assert deque.index("d") == 2
        packed = pickle.dumps(deque)
    with pickle.loads(packed) as again:
        assert list(again) == ["b", "c", "d"]
        assert again.maxlen == 3
        assert again.directory == tmp_path
        with pytest.raises(errors.Locked, match="in use"):
            Deque(directory=tmp_path)
    with siltstone.Store(tmp_path) as store:
        assert list(Deque.fromstore(store, [{"e": 1}])) == ["b", "c", "d", {"e": 1}]
    with Deque(directory=tmp_path, maxlen=2) as deque:
        assert list(deque) == ["d", {"e": 1}]
        deque.maxlen = 1
        assert list(deque) == [{"e": 1}]


def test_a_deques_errors_say_what_to_do() -> None:
    with Deque([1]) as deque:
        for call in (deque.pop, deque.popleft, deque.peek, deque.peekleft, lambda: deque[0]):
            if len(deque):
                deque.clear()
            with pytest.raises(errors.OutOfRange, match="there are 0"):
                call()
        with pytest.raises(errors.InvalidValue, match="not in the deque"):
            deque.remove(7)
        with pytest.raises(errors.InvalidValue, match="a place is an int"):
            deque["a"]
        with pytest.raises(errors.InvalidValue):
            deque.extend([1, object()])
        assert list(deque) == []
        with pytest.raises(errors.ConfigError, match="maxlen"):
            deque.maxlen = -1
        with pytest.raises(errors.ConfigError, match="directory of its own"):
            pickle.dumps(deque)


@pytest.mark.parametrize("kind", [Deque, Index])
def test_joint_changes_count_together_or_not_at_all(kind: Any) -> None:
    with kind() as kept:
        add = kept.append if kind is Deque else lambda value: kept.update({value: value})
        with kept.transact():
            add("a")
            add("b")
            assert list(kept) == ["a", "b"]
            assert len(kept) == 2
            seen: list[Any] = []
            thread = threading.Thread(target=lambda: seen.extend([*kept, len(kept)]))
            thread.start()
            thread.join()
            assert seen == [0]
        with pytest.raises(ZeroDivisionError), kept.transact():  # noqa: PT012
            add("c")
            raise ZeroDivisionError
        assert list(kept) == ["a", "b"]
        assert len(kept) == 2


def test_threads_share_a_deque() -> None:
    with Deque(range(200)) as deque:
        taken: list[list[int]] = [[], [], []]

        def work(into: list[int]) -> None:
            while True:
                try:
                    into.append(deque.popleft())
                except IndexError:
                    return

        threads = [threading.Thread(target=work, args=(into,)) for into in taken]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(value for into in taken for value in into) == list(range(200))
        assert all(into == sorted(into) for into in taken)


# Index --------------------------------------------------------------------------------------

KEYS = st.one_of(st.integers(-2, 2), st.sampled_from(["a", "b", ("t", 1)]))
INDEX_CALLS = st.one_of(
    st.tuples(st.just("__setitem__"), KEYS, VALUES),
    st.tuples(st.sampled_from(["__getitem__", "__delitem__", "pop", "__contains__"]), KEYS),
    st.tuples(st.sampled_from(["setdefault", "get"]), KEYS, VALUES),
    st.tuples(st.just("popitem"), st.booleans()),
    st.tuples(st.sampled_from(["clear", "__len__"])),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(INDEX_CALLS, max_size=30))
def test_an_index_is_an_ordered_dict(calls: list[tuple[Any, ...]]) -> None:
    model: Any = collections.OrderedDict()

    def run(of: Any, call: tuple[Any, ...]) -> Any:
        try:
            return getattr(of, call[0])(*call[1:])
        except KeyError:
            return KeyError

    with Index() as index:
        for call in calls:
            assert run(index, call) == run(model, call), call
            assert list(index.items()) == list(model.items()), call
            assert len(index) == len(model)
        assert list(reversed(index)) == list(reversed(model))
        assert index == model
        assert index == dict(model)
        if len(model) > 1:
            model.move_to_end(next(iter(model)))
            assert index != model
            assert index == dict(model)


@pytest.fixture
def index(tmp_path: Path) -> Iterator[Index]:
    with Index(tmp_path / "index") as opened:
        yield opened


def test_an_index_is_kept(tmp_path: Path) -> None:
    with Index(str(tmp_path), [("b", 1), (b"\xff", [2])], a=None) as index:
        packed = pickle.dumps(index)
        assert index.peekitem() == ("a", None)
        assert index.peekitem(last=False) == ("b", 1)
    with pickle.loads(packed) as again:
        assert list(again.items()) == [("b", 1), (b"\xff", [2]), ("a", None)]
        assert again.keys() & {"a", "z"} == {"a"}
    with siltstone.Store(tmp_path) as store:
        assert Index.fromstore(store, {"c": 3})["c"] == 3


def test_an_index_holds_queues(index: Index) -> None:
    assert index.pull() == (None, None)
    assert index.pull("jobs", default=None) is None
    first = index.push("a")
    assert index.push("b") == first + 1  # type: ignore[operator]
    assert index.push("z", side="front") == first - 1  # type: ignore[operator]
    index["jobs-"] = index["jobs-5000000000000000"] = index["jobs-50000000000000x"] = 0
    assert index.push({"job": 1}, prefix="jobs") == "jobs-500000000000000"
    index.push({"job": 2}, prefix="jobs")
    index.push("other", prefix="jobs-more")
    assert index["jobs-500000000000001"] == {"job": 2}
    assert [index.pull()[1] for _ in range(3)] == ["z", "a", "b"]
    assert index.pull("jobs", side="back") == ("jobs-500000000000001", {"job": 2})
    assert index.pull("jobs")[1] == {"job": 1}
    assert index.pull("jobs") == (None, None)
    assert index.pull("jobs-more")[1] == "other"
    assert len(index) == 3
    with pytest.raises(errors.InvalidValue, match="front"):
        index.push(1, side="left")


def test_an_index_memoizes(index: Index) -> None:
    calls: list[int] = []

    @index.memoize()
    def double(number: int) -> int:
        calls.append(number)
        return number * 2

    assert [double(2), double(2), double(3)] == [4, 4, 6]
    assert calls == [2, 3]
    assert index[double.__cache_key__(3)] == 6  # type: ignore[attr-defined]


def test_an_indexs_errors(index: Index) -> None:
    for call in (lambda: index["a"], lambda: index.pop("a"), index.popitem, index.peekitem):
        with pytest.raises(errors.KeyMissing):
            call()
    with pytest.raises(errors.KeyMissing):
        del index["a"]
    with pytest.raises(errors.InvalidKey):
        index[1.5] = 1  # type: ignore[index]
    with pytest.raises(errors.InvalidValue):
        index.update({"a": 1, "b": object()})
    assert not len(index)


def test_what_is_sent_elsewhere_keeps_its_codec(tmp_path: Path) -> None:
    deque = Deque([b"raw"], tmp_path / "deque", maxlen=3, codec="raw")
    index = Index(tmp_path / "index", {"k": b"raw"}, codec="raw")
    sent = pickle.dumps((deque, index))
    deque.close()
    index.close()
    deque, index = pickle.loads(sent)
    with deque, index:
        for take in (deque.append, lambda value: index.update(k=value)):
            with pytest.raises(errors.InvalidValue):
                take({"no": "bytes"})
        assert list(deque) == [b"raw"]
        assert index["k"] == b"raw"
