from typing import Any

import numpy as np
import numpy.typing as npt

_Column = list[str | None] | tuple[npt.NDArray[Any], npt.NDArray[np.bool_] | None]

NUMBERS: dict[str, str]
UNITS: dict[str, str]

def batches(table: Any) -> list[dict[str, _Column]]: ...
