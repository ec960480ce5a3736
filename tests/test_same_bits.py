"""A fit by the default recipe has the same bits for any number of threads, a BLAS's included, at sizes that matter."""

import pytest
from oracle import run_python

FIT = """
import hashlib, json
import numpy as np, torch, lineas
torch.set_num_threads(THREADS)
torch.manual_seed(0)
UNITS = 5000

class Layer(torch.nn.Module):
    "Entry by entry, so that torch has nothing to add up in an order of its own."
    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(1 + 0.3 * torch.randn(UNITS))
    def forward(self, x):
        return torch.tanh(x * self.scale + 0.1)

net = torch.nn.Sequential(*(Layer() for _ in range(4)))
x, y = torch.randn(16, UNITS), 0.8 * torch.randn(16, UNITS) + 0.4 * torch.rand(UNITS)
penalty = None if PENALTY is None else lineas.penalties.SparseGroupLasso(*PENALTY)
s = lineas.fit(net, x, y, sites=["0", "1", "2", "3"], penalty=penalty, max_evaluations=8, progress=False)
facts = {key: value for key, value in s.info.items() if "second" not in key}
history = {key: column for key, column in s.history.items() if "second" not in key}
maps = b"".join(a.tobytes() for site in s.sites for a in (np.asarray(s.weight(site)), np.asarray(s.bias(site))))
assert len(maps) == 8 * 4 * UNITS and len(history["objective"]) > 4 and facts["ridge"] > 0
print(hashlib.sha256(maps).hexdigest(), json.dumps(history), json.dumps(facts, default=str, sort_keys=True), sep="\\n")
"""


@pytest.mark.parametrize("penalty", [None, (1e-7, 2e-7)], ids=["plain", "sparse"])
def test_a_fit_of_twenty_thousand_units_has_the_same_bits_for_any_number_of_threads(penalty):
    one, two = (
        run_python(
            FIT.replace("THREADS", str(n)).replace("PENALTY", repr(penalty)),
            OPENBLAS_NUM_THREADS=str(n), OMP_NUM_THREADS=str(n), MKL_NUM_THREADS=str(n), timeout=300,
        ).splitlines()
        for n in (1, 2)
    )  # fmt: skip
    for what, a, b in zip(("maps", "history", "info"), one, two, strict=True):
        assert a == b, what
