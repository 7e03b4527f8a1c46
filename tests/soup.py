"""Half-valid requests for the fuzzers: words of the protocol in any order."""

from __future__ import annotations

from hypothesis import strategies as st

KEYS = (b"a", b"b", b"k" * 250, b"k" * 251, b"YQ==", b"!!", b"a:b", b"\x00\xff", b"noreply")
NUMBERS = (b"0", b"1", b"2", b"5", b"-1", b"x", b"+3", b"100", b"2592001", b"4294967296",
           b"18446744073709551615", b"18446744073709551616", b"999999999999", b"1.5",
           b"")  # fmt: skip
COMMANDS = (b"get", b"gets", b"gat", b"gats", b"set", b"add", b"replace", b"append", b"prepend",
            b"cas", b"incr", b"decr", b"delete", b"touch", b"version", b"mg", b"ms", b"md", b"ma",
            b"mn", b"me", b"verbosity", b"stats", b"lru_crawler", b"slabs", b"extstore", b"watch",
            b"cache_memlimit", b"shutdown", b"bogus", b"", b"G", b"lru")  # fmt: skip
FLAGS = tuple(
    letter + token
    for letter in (b"b", b"c", b"f", b"h", b"k", b"l", b"q", b"s", b"t", b"u", b"v", b"x", b"C",
                   b"D", b"E", b"F", b"I", b"J", b"L", b"M", b"N", b"O", b"P", b"R", b"S", b"T")
    for token in (b"", b"1", b"30", b"-1", b"x", b"A", b"E", b"S", b"999999999999999999999")
)  # fmt: skip
WORDS = COMMANDS + KEYS + NUMBERS + FLAGS + (b"noreply", b"on", b"dump", b"all", b"HTTP/1.1")
ENDS = (b"\r\n", b"\n", b"\r\r\n", b" \r\n", b"")

word = st.sampled_from(WORDS)
line = st.builds(
    lambda words, end: b" ".join(words) + end,
    st.lists(word, max_size=8),
    st.sampled_from(ENDS),
)
STORES = (b"set", b"add", b"replace", b"append", b"prepend", b"ms")


def _store(command: bytes, key: bytes, data: bytes, off: int, tail: bytes) -> bytes:
    size = b"%d" % max(0, len(data) + off)
    head = [command, key, size] if command == b"ms" else [command, key, b"0", b"0", size]
    return b" ".join([*head, tail]) + b"\r\n" + data + b"\r\n"


store = st.builds(
    _store,
    st.sampled_from(STORES),
    st.sampled_from(KEYS),
    st.binary(max_size=30),
    st.sampled_from((0, 0, 0, 0, 1, -1, 3)),
    st.sampled_from((b"", b"noreply", b"c", b"q k O1", b"T30", b"1")),
)
sound = st.sampled_from(
    (b"get a b\r\n", b"gets a\r\n", b"mg a v t c f k O1\r\n", b"incr b 5\r\n", b"md a I\r\n",
     b"delete b\r\n", b"touch a 100\r\n", b"ma b N0 J5 v\r\n", b"gat 50 a b\r\n", b"mg b N30 v\r\n",
     b"set b 0 0 1\r\n7\r\n", b"append a 0 0 2\r\nzz\r\n", b"mg a R60 q\r\n")
)  # fmt: skip
soup = st.lists(st.one_of(line, store, store, sound, sound, st.binary(max_size=20)), max_size=25)
