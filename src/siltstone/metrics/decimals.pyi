import numpy as np
import numpy.typing as npt

def number(value: float) -> str: ...
def rows_text(
    heads: list[bytes],
    times: npt.NDArray[np.int64],
    values: npt.NDArray[np.float64],
    present: npt.NDArray[np.uint8],
    single: bool,
) -> str: ...
