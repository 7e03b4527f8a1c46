import numpy as np
import numpy.typing as npt

def decode(page: npt.NDArray[np.uint8], numbers: npt.NDArray[np.uint32]) -> int: ...
