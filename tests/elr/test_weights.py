"""Which weights, partners, gains and offsets are chosen."""

import pytest
import torch
from torch import nn

from elr.weights import gains_and_offsets, partners, scalable_weights
from tests.elr.networks import Noisy, mlp, noisy_mlp


def test_weights_are_chosen_by_type_and_the_last_layer_is_the_head():
    network = nn.ModuleDict(
        {
            "weight_free_norm": nn.LayerNorm(4),
            "c1": nn.Conv1d(2, 3, 2),
            "c2": nn.Conv2d(2, 3, 2),
            "c3": nn.Conv3d(2, 3, 2),
            "t1": nn.ConvTranspose1d(2, 3, 2),
            "t2": nn.ConvTranspose2d(2, 3, 2),
            "t3": nn.ConvTranspose3d(2, 3, 2),
            "table": nn.Embedding(5, 4),
            "actor": nn.Linear(4, 2),
            "critic": nn.Linear(4, 1),
            "batch": nn.BatchNorm2d(3),
        }
    )
    kernels = ["c1", "c2", "c3", "t1", "t2", "t3"]
    assert list(scalable_weights(network)) == [*kernels, "actor"]
    assert list(scalable_weights(network, heads=["actor", "critic"])) == kernels
    assert list(scalable_weights(network, embeddings=True, heads=())) == [*kernels, "table", "actor", "critic"]
    assert scalable_weights(network)["c2"] is network["c2"].weight


def test_bad_heads_and_modules_are_errors():
    network = mlp()
    for heads in (["nope"], ["1"], ["2"]):
        with pytest.raises(ValueError, match=f"head '{heads[0]}' is not"):
            scalable_weights(network, heads=heads)
    with pytest.raises(ValueError, match="one string"):
        scalable_weights(network, heads="6")
    with pytest.raises(ValueError, match="no weight to project"):
        scalable_weights(nn.Sequential(nn.LayerNorm(3), nn.Linear(3, 3)))
    with pytest.raises(ValueError, match="computed from other parameters"):
        scalable_weights(nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)), nn.Linear(4, 4)))
    with pytest.raises(ValueError, match="not initialised"):
        scalable_weights(nn.Sequential(nn.LazyLinear(4), nn.Linear(4, 4)))


def test_tied_weights_are_chosen_once_and_not_with_the_head():
    network = nn.ModuleDict({"a": nn.Linear(4, 4), "b": nn.Linear(4, 4), "head": nn.Linear(4, 4)})
    network["b"].weight = network["a"].weight
    assert list(scalable_weights(network)) == ["a"]
    network["head"].weight = network["a"].weight
    with pytest.raises(ValueError, match="shares its weight with the head 'head'"):
        scalable_weights(network)


def test_gains_and_offsets_by_type():
    network = nn.Sequential(
        nn.LayerNorm(4), nn.GroupNorm(2, 4), nn.RMSNorm(4), nn.BatchNorm1d(4), nn.LayerNorm(4, bias=False),
        nn.LayerNorm(4, elementwise_affine=False), nn.Linear(4, 4),
    )  # fmt: skip
    found = gains_and_offsets(network)
    assert list(found) == ["0", "1", "2", "3", "4"]
    assert [offset is not None for _, offset in found.values()] == [True, True, False, True, False]
    assert found["1"][0] is network[1].weight and found["1"][1] is network[1].bias


def test_partners_are_those_that_the_module_type_declares():
    network = noisy_mlp()
    found = partners(network, scalable_weights(network))
    assert list(found) == ["0", "3"] and found["0"] is network[0].weight_sigma and found["3"] is None
    assert partners(network, {"other": torch.ones(2)}) == {"other": None}
    network[3] = tied = Noisy(6, 16)
    tied.weight = network[0].weight
    with pytest.raises(ValueError, match="'3' shares its weight"):
        partners(network, scalable_weights(network))
    tied.weight_sigma = network[0].weight_sigma
    assert partners(network, {"0": tied.weight})["0"] is tied.weight_sigma
