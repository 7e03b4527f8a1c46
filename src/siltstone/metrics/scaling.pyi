import numpy as np
import numpy.typing as npt

def whole_numbers(
    values: npt.NDArray[np.float64],
) -> tuple[npt.NDArray[np.int64], int, int, int, int] | None: ...
def numbers_back(values: npt.NDArray[np.float64], scale: int, first: int, factor: int) -> None: ...
