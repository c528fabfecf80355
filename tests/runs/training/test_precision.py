"""`in_float32` switches --bf16 off for a moment only."""

import pytest
from torch import nn

from runs.training import in_float32


@pytest.mark.parametrize("bf16", [True, False])
def test_bf16_is_off_inside_and_restored_afterwards(bf16):
    network = nn.Linear(1, 1)
    network.bf16 = bf16
    with in_float32(network):
        assert network.bf16 is False
    assert network.bf16 is bf16


def test_bf16_is_restored_after_an_exception():
    network = nn.Linear(1, 1)
    network.bf16 = True
    with pytest.raises(ZeroDivisionError), in_float32(network):
        _ = 1 / 0
    assert network.bf16 is True
