"""A page of the Store alone, against a sorted list; images and fragments that are not trusted."""

from __future__ import annotations

from bisect import bisect_left, bisect_right

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from siltstone.store.page_trial import Node, decode, fragment

SET, DELETE, CUT = 1, 2, 3
FEW = settings(max_examples=60, deadline=None)

# Keys that meet: of few letters, with long common beginnings, with zeros and 0xFF at their ends.
LETTERS = st.sampled_from([b"\x00", b"a", b"b", b"\xff"])
SHORT = st.lists(LETTERS, max_size=6).map(b"".join)
LONG = st.tuples(st.sampled_from([b"", b"user:2024:", b"\xff" * 9, b"\x00" * 5, b"p" * 300]), SHORT)
KEYS = LONG.map(lambda parts: parts[0] + parts[1])
PAYLOADS = st.one_of(
    st.binary(max_size=20), st.sampled_from([b"x" * 200, b"y" * 1000, b"z" * 16383])
)
CHANGES = st.lists(
    st.one_of(
        st.tuples(st.just(SET), KEYS, PAYLOADS),
        st.tuples(st.just(DELETE), KEYS, st.just(b"")),
    ),
    max_size=60,
)


def pid(number: int) -> bytes:
    return number.to_bytes(8, "little")


def changed(model: dict[bytes, bytes], op: int, key: bytes, payload: bytes) -> None:
    if op == SET:
        model[key] = payload
    elif op == DELETE:
        model.pop(key, None)
    else:
        for old in [old for old in model if old >= key]:
            del model[old]


def filled(pairs: dict[bytes, bytes]) -> Node:
    node = Node()
    for key, payload in pairs.items():
        node.set(key, payload)
    return node


def agrees(node: Node, model: dict[bytes, bytes]) -> None:
    assert node.check() == 0
    assert node.items() == sorted(model.items())


@FEW
@given(CHANGES, st.lists(KEYS, max_size=10))
def test_a_leaf_is_a_sorted_dict(changes: list[tuple[int, bytes, bytes]], sought: list[bytes]):
    node, model = Node(), {}
    for op, key, payload in changes:
        if op == SET:
            node.set(key, payload)
        else:
            assert node.delete(key) == (key in model)
        changed(model, op, key, payload)
        assert node.check() == 0
    agrees(node, model)
    keys = sorted(model)
    for key in [*sought, *keys]:
        assert node.find(key) == (bisect_left(keys, key), key in model)


@FEW
@given(st.dictionaries(KEYS, PAYLOADS, max_size=40), CHANGES, KEYS)
def test_a_fragment_of_several_changes(
    pairs: dict[bytes, bytes], changes: list[tuple[int, bytes, bytes]], cut: bytes
):
    node = filled(pairs)
    changes = [*changes, (CUT, cut, b""), *changes[:3]]
    node.apply(fragment((*change, False) for change in changes))
    for change in changes:
        changed(pairs, *change)
    agrees(node, pairs)


@FEW
@given(st.dictionaries(KEYS, PAYLOADS, min_size=2, max_size=40), st.data())
def test_split_join_copy_and_image(pairs: dict[bytes, bytes], data: st.DataObject):
    node = filled(pairs)
    items = sorted(pairs.items())
    image = node.encode()
    agrees(decode(image), pairs)
    assert decode(image).encode() == image
    agrees(node.copy(), pairs)
    at = data.draw(st.integers(1, len(items) - 1))
    left, right = node.slice(0, at), node.slice(at, len(items))
    agrees(left, dict(items[:at]))
    agrees(right, dict(items[at:]))
    separator = node.separator(at)
    assert items[at - 1][0] < separator <= items[at][0]
    assert separator == items[at][0][: len(separator)]
    assert not separator or separator[:-1] <= items[at - 1][0]
    agrees(left.join(right), pairs)
    agrees(left.join(Node()), dict(items[:at]))
    agrees(Node().join(right), dict(items[at:]))
    assert len(image) <= node.memory


@FEW
@given(st.sets(KEYS.filter(bool), max_size=40), st.lists(KEYS, max_size=10), st.data())
def test_an_inner_node_finds_the_child(keys: set[bytes], sought: list[bytes], data: st.DataObject):
    node = Node(level=1, child=7)
    order = data.draw(st.permutations(sorted(keys)))
    for number, key in enumerate(order):
        node.set(key, pid(100 + number))
        assert node.check() == 0
    separators = sorted(keys)
    model = [(b"", pid(7))] + [(key, pid(100 + order.index(key))) for key in separators]
    assert node.items() == model
    for key in [b"", *sought, *separators]:
        assert node.descend(key) == bisect_right(separators, key)
    image = node.encode()
    assert decode(image).items() == model
    if separators:
        at = data.draw(st.integers(1, len(separators)))
        left, right = node.slice(0, at), node.slice(at, len(node))
        assert left.check() == right.check() == 0
        assert right.items() == [(b"", model[at][1]), *model[at + 1 :]]
        joined = left.join(right, separators[at - 1])
        assert joined.check() == 0
        assert joined.items() == model
        node.apply(fragment([(CUT, separators[at - 1], b"", False), (SET, b"", pid(9), False)]))
        assert node.check() == 0
        assert node.items() == [(b"", pid(9)), *model[1:at]]


@pytest.mark.parametrize("inner", [False, True])
@pytest.mark.parametrize("count", [1, 2, 3, 15, 16, 17, 31, 32, 33, 70, 200])
def test_every_key_is_found_in_nodes_of_any_size(count: int, inner: bool):
    """Heads apart, all alike but for two, and the largest there is, which no head is above."""
    for form in (b"%c%c...", b"\xff\xff\xff\xff%c%c", b"same%c%c"):
        keys = [form % divmod(2 * number + 1, 256) for number in range(count)] + [b"", b"\xff" * 4]
        keys = sorted(set(filter(bool, keys)))
        node = Node(level=1, child=7) if inner else Node()
        for number, key in enumerate(keys):
            node.set(key, pid(number))
        assert node.check() == 0
        between = [form % divmod(2 * number, 256) for number in range(count + 1)]
        for key in [*keys, *between, b"", b"\xff" * 9]:
            if inner:
                assert node.descend(key) == bisect_right(keys, key)
            else:
                assert node.find(key) == (bisect_left(keys, key), key in keys)


def test_what_all_keys_begin_with_is_stored_once():
    pairs = {b"a long common beginning %06d" % number: b"" for number in range(100)}
    node = filled(pairs).slice(0, 100)
    assert node.prefix == b"a long common beginning 0000"
    assert len(node.encode()) < 100 * (4 + 2) + 100
    node.set(b"another", b"")
    assert node.prefix == b"a"
    agrees(node, {**pairs, b"another": b""})


def test_replacing_and_deleting_do_not_grow_a_node():
    pairs = {b"%08d" % number: b"v" * 100 for number in range(30)}
    node = filled(pairs)
    for step in range(3000):
        key = b"%08d" % (step % 30)
        pairs[key] = b"w" * (50 + step % 51)
        if step % 3:
            node.delete(key)
        node.set(key, pairs[key])
    agrees(node, pairs)
    assert node.memory < 2.0 * len(node.encode()) + 512


def test_the_longest_key_and_payload():
    key, payload = b"k" * 65536, b"v" * 16383
    node = filled({key: payload, key[:-1]: b"", b"": b""})
    agrees(node, {key: payload, key[:-1]: b"", b"": b""})
    agrees(decode(node.encode()), {key: payload, key[:-1]: b"", b"": b""})


@settings(max_examples=300, deadline=None)
@given(st.dictionaries(KEYS, PAYLOADS, max_size=12), st.booleans(), st.data())
def test_a_damaged_image_is_refused_or_is_a_page(pairs, inner, data: st.DataObject):
    if inner:
        node = Node(level=1)
        for key in filter(None, pairs):
            node.set(key, pid(5))
    else:
        node = filled(pairs)
    image = bytearray(node.encode())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(image) - 1))
        image[at] = data.draw(st.integers(0, 255))
    if data.draw(st.booleans()):
        del image[data.draw(st.integers(0, len(image))) :]
    try:
        damaged = decode(bytes(image))
    except ValueError:
        return
    assert damaged.check() == 0
    damaged.encode()


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=80))
def test_bytes_that_are_no_image(data: bytes):
    for head in (b"", b"\x01\x00\x00\x00", b"\x02\x01\x00\x00", b"\x03\x00\x00\x00"):
        try:
            node = decode(head + data)
        except ValueError:
            continue
        assert node.check() == 0
        assert node.encode() == head + data


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=60), st.dictionaries(KEYS, PAYLOADS, max_size=6), st.booleans())
def test_a_fragment_that_is_none_changes_nothing(data: bytes, pairs, inner: bool):
    node = Node(level=1) if inner else filled(pairs)
    before = node.items()
    for head in (b"", b"\x01\x01\x00\x00\x00", b"\x02\x01\x00\x00\x00", b"\x03\x00\x00\x00\x00"):
        try:
            node.apply(head + data)
        except ValueError:
            assert node.items() == before
        assert node.check() == 0
        before = node.items()


@pytest.mark.parametrize(
    "change",
    [
        (4, b"k", b"", False),  # no such operation
        (DELETE, b"k", b"v", False),
        (CUT, b"k", b"", True),
        (SET, b"k" * 65537, b"", False),
        (SET, b"k", b"short", True),  # no blob reference
    ],
)
def test_a_change_that_makes_no_sense(change: tuple[int, bytes, bytes, bool]):
    node = filled({b"a": b"1"})
    with pytest.raises(ValueError):
        node.apply(fragment([(SET, b"b", b"2", False), change]))
    agrees(node, {b"a": b"1"})


@pytest.mark.parametrize(
    "change", [(DELETE, b"", b"", False), (CUT, b"", b"", False), (SET, b"k", b"pid", False)]
)
def test_a_change_that_makes_no_sense_in_an_inner_node(change: tuple[int, bytes, bytes, bool]):
    node = Node(level=2, child=3)
    with pytest.raises(ValueError):
        node.apply(fragment([change]))
    assert node.items() == [(b"", pid(3))]
