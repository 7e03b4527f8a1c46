import numpy as np
import numpy.typing as npt

OPERATIONS: dict[str, int]

def aggregate(
    name: str,
    values: npt.NDArray[np.float64],
    present: npt.NDArray[np.uint8],
    group: npt.NDArray[np.int64],
    groups: int,
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]: ...
def quantile(
    values: npt.NDArray[np.float64],
    present: npt.NDArray[np.uint8],
    group: npt.NDArray[np.int64],
    groups: int,
    q: npt.NDArray[np.float64],
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]: ...
def select_k(
    largest: bool,
    values: npt.NDArray[np.float64],
    present: npt.NDArray[np.uint8],
    group: npt.NDArray[np.int64],
    groups: int,
    k: npt.NDArray[np.int64],
) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.int64]]: ...
def histogram_quantile(
    q: npt.NDArray[np.float64],
    bounds: npt.NDArray[np.float64],
    values: npt.NDArray[np.float64],
    present: npt.NDArray[np.uint8],
    start: npt.NDArray[np.int64],
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]: ...
