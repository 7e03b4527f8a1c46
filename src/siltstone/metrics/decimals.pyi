from typing import final

import numpy as np
import numpy.typing as npt

def number(value: float) -> str: ...

@final
class Samples:
    count: int
    def __init__(self, moments: list[str]) -> None: ...
    def rows(
        self, values: npt.NDArray[np.float64], present: npt.NDArray[np.uint8]
    ) -> list[str]: ...
