from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

_Bytes = npt.NDArray[np.uint8]

TIMES_LEFT: int
VALUES_LEFT: int
DAMAGED: int

def decode(
    rows: _Bytes,
    blocks: list[bytes | _Bytes],
    block: npt.NDArray[np.int64],
    inside: npt.NDArray[np.int64],
    places: npt.NDArray[np.int64],
    seeds: list[tuple[int, int]],
    at: npt.NDArray[np.int64],
    times: npt.NDArray[np.int64],
    values: npt.NDArray[np.float64],
) -> list[tuple[int, int, bytes, int, int]]: ...
def locate(
    rows: _Bytes,
    places: npt.NDArray[np.int64],
    stored: list[bool],
    load: Callable[[int], Any],
    block_bytes: int,
    block_bits: int,
) -> tuple[list[Any], npt.NDArray[np.int64], npt.NDArray[np.int64]]: ...
def trim(
    times: npt.NDArray[np.int64],
    firsts: npt.NDArray[np.int64],
    lasts: npt.NDArray[np.int64],
    start: int,
    end: int,
) -> list[tuple[int, int]]: ...
def put_checksums(rows: _Bytes, data: _Bytes, salt: int, version: int, base: int) -> None: ...
