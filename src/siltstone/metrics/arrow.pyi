from collections.abc import Mapping
from typing import Any

import numpy.typing as npt

class Column:
    name: bytes
    format: bytes
    buffers: list[npt.NDArray[Any] | None]
    null_count: int
    def __init__(self, name: str, values: npt.NDArray[Any]) -> None: ...

class Table:
    columns: list[Column]
    length: int
    def __init__(self, columns: Mapping[str, npt.NDArray[Any]]) -> None: ...

def export_stream(columns: Mapping[str, npt.NDArray[Any]]) -> object: ...
