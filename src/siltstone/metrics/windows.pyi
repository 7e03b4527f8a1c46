import numpy as np
import numpy.typing as npt

COUNTERS: frozenset[str]
SORTERS: frozenset[str]

class Batch:
    count: int
    def __init__(
        self, times: list[npt.NDArray[np.int64]], values: list[npt.NDArray[np.float64]]
    ) -> None: ...

def instant(
    times: list[npt.NDArray[np.int64]],
    values: list[npt.NDArray[np.float64]],
    references: npt.NDArray[np.int64],
    lookback_ms: int,
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_], npt.NDArray[np.int64]]: ...
def over_time(
    name: str,
    times: list[npt.NDArray[np.int64]],
    values: list[npt.NDArray[np.float64]],
    ends: npt.NDArray[np.int64],
    range_ms: int,
    steps: npt.NDArray[np.int64],
    first: npt.NDArray[np.float64],
    second: npt.NDArray[np.float64],
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]: ...
