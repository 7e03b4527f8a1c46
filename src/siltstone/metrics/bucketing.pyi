import numpy as np
import numpy.typing as npt

_Times = npt.NDArray[np.int64]
_Values = npt.NDArray[np.float64]

def bucket(
    times: _Times, values: _Values, step: int
) -> tuple[_Times, _Values, _Values, _Values, _Times, _Times, _Values, _Times]: ...
