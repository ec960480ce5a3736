"""The two kinds of flat vector that everything exchanges."""

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float32]  # what models give and optimisers move: responses, maps, gradients
Floats = NDArray[np.float64]  # what is summed or solved for
