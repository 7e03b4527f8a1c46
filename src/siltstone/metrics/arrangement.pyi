from typing import Any, final

import numpy as np
import numpy.typing as npt

_Numbers = npt.NDArray[np.int64]
_Values = npt.NDArray[np.float64]

def in_order(rows: npt.NDArray[np.uint8]) -> bool: ...

@final
class Chooser:
    def __init__(self, ids: npt.NDArray[np.uint32], start: int, end: int) -> None: ...
    def places(self, rows: npt.NDArray[np.uint8]) -> _Numbers: ...

@final
class Arrangement:
    rows: npt.NDArray[Any]
    places: _Numbers
    at: _Numbers
    edges: _Numbers
    bases: _Numbers
    ends: _Numbers
    total: int
    def __init__(
        self,
        rows: npt.NDArray[Any],
        places: _Numbers,
        firsts: _Numbers,
        lasts: _Numbers,
        counts: _Numbers,
        late: _Numbers,
    ) -> None: ...
    def put_heads(
        self,
        times: _Numbers,
        values: _Values,
        head_times: _Numbers,
        head_values: _Values,
        first: int,
    ) -> None: ...
    def mixed(self, times: _Numbers, good: npt.NDArray[np.uint8]) -> list[bool]: ...
