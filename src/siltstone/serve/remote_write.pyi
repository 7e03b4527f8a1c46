from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from typing_extensions import Buffer

BODY_BYTES_MAX: int
SERIES_MAX: int
KINDS: tuple[str, ...]

@dataclass
class Batch:
    ids: npt.NDArray[np.uint32]
    times: npt.NDArray[np.int64]
    values: npt.NDArray[np.float64]
    series: int = ...
    exemplars: int = ...
    histograms: int = ...
    refused: int = ...
    refusal: str = ...
    metadata: dict[str, dict[str, str]] = ...

class Columns:
    def __init__(self, room: int) -> None: ...

class Decoder:
    series_max: int
    body_bytes_max: int
    forgotten: int
    def __init__(
        self,
        resolve: Callable[[dict[str, str]], int],
        *,
        series_max: int = ...,
        body_bytes_max: int = ...,
    ) -> None: ...
    @property
    def series_known(self) -> int: ...
    def forget(self) -> None: ...
    def decode(self, body: Buffer) -> Batch: ...
    def decode_plain(self, message: Buffer) -> Batch: ...

def labels_of(key: Buffer) -> dict[str, str]: ...
