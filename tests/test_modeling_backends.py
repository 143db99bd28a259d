"""Every back end, layout and precision against eager float64: the contract of benchmarks/parity.py, of its own cells.

pytest tests/test_modeling_backends.py; with `-m gpu` the cells of a CUDA device
"""

import pytest
import torch
from parity import LONGEST, PRECISIONS, bound, cells, exact, measure


def takes_long(cell):
    """CPUs multiply float16 matrices at a few GFLOP/s: seven cells take half a minute. The benchmark has them."""
    weights, autocast = PRECISIONS[cell.precision]
    if cell.layout != LONGEST or torch.float16 not in (weights, autocast):
        return False
    return autocast is not None or cell.quantity == "gradients"


CPU_CELLS = [cell for cell in cells("cpu") if cell.why_not() is None and not takes_long(cell)]
GPU_CELLS = list(cells("cuda"))


def name(cell):
    return "-".join(cell[1:])


@pytest.fixture(scope="module", autouse=True)
def forget():
    """What is cached is large, on a GPU too."""
    yield
    exact.cache_clear()


@pytest.mark.parametrize("cell", CPU_CELLS, ids=name)
def test_on_a_cpu(cell):
    assert measure(cell) <= bound(cell)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("cell", GPU_CELLS, ids=name)
def test_on_a_gpu(cell):
    if reason := cell.why_not():
        pytest.skip(reason)
    assert measure(cell) <= bound(cell)
