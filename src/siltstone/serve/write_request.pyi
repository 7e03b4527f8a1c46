from collections.abc import Callable, Mapping
from typing import Any

SERIES_MAX: int

class Packer:
    def __init__(self, labels_of: Callable[[int], Mapping[str, str]]) -> None: ...
    def pack(self, ids: Any, times: Any, values: Any) -> bytes: ...

def pack_labels(labels: Mapping[str, str]) -> bytes: ...
