from typing import final

import numpy as np
import numpy.typing as npt
from typing_extensions import Buffer

def number(value: float) -> str: ...
@final
class Samples:
    count: int
    def __init__(self, moments: list[str]) -> None: ...
    def row(self, values: npt.NDArray[np.float64], present: Buffer) -> str: ...
