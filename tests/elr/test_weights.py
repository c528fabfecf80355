"""Which weights, partners, gains and offsets are chosen."""

import pytest
import torch
from torch import nn

from elr.weights import gains_and_offsets, partners, scalable_weights
from tests.elr.networks import Noisy, inputs, mlp, noisy_mlp


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


def test_attention_recurrent_and_bilinear_tensors_have_names():
    network = nn.ModuleDict(
        {
            "attention": nn.MultiheadAttention(4, 2, add_bias_kv=True),
            "cross": nn.MultiheadAttention(4, 2, kdim=3),
            "lstm": nn.LSTM(3, 4, num_layers=2, bidirectional=True, proj_size=2),
            "gru": nn.GRU(3, 4),
            "cell": nn.GRUCell(3, 4),
            "bilinear": nn.Bilinear(3, 2, 4),
            "bag": nn.EmbeddingBag(5, 4),
            "slope": nn.PReLU(4),
            "head": nn.Linear(4, 2),
        }
    )
    lstm = [f"lstm.weight_{x}_l{i}{way}" for i in (0, 1) for way in ("", "_reverse") for x in ("ih", "hh", "hr")]
    attention = ["attention.in_proj_weight", "attention.out_proj"]
    cross = [f"cross.{x}_proj_weight" for x in "qkv"] + ["cross.out_proj"]
    rest = ["gru.weight_ih_l0", "gru.weight_hh_l0", "cell.weight_ih", "cell.weight_hh", "bilinear"]
    assert list(scalable_weights(network)) == [*attention, *cross, *lstm, *rest]
    assert list(scalable_weights(network, embeddings=True)) == [*attention, *cross, *lstm, *rest, "bag"]
    assert scalable_weights(network)["lstm.weight_hr_l1"] is network["lstm"].weight_hr_l1
    assert scalable_weights(network)["bilinear"] is network["bilinear"].weight
    left = scalable_weights(network, leave=["attention", "cross.out_proj", "lstm.weight_ih_l0", "gru"])
    assert list(left) == [*cross[:3], *lstm[1:], *rest[2:]]


class Raw(nn.Module):
    """Matrices and vectors of its own."""

    def __init__(self):
        super().__init__()
        self.matrix, self.other = nn.Parameter(inputs(4, 4)), nn.Parameter(inputs(4, 4, seed=2))
        self.vector, self.bias = nn.Parameter(inputs(4)), nn.Parameter(inputs(4))
        self.scalar, self.frozen = nn.Parameter(inputs(1, 1)), nn.Parameter(inputs(4, 4), requires_grad=False)


def raw() -> nn.ModuleDict:
    return nn.ModuleDict({"a": nn.Linear(4, 4), "raw": Raw(), "b": nn.Linear(4, 4), "head": nn.Linear(4, 2)})


def test_matrices_of_unknown_modules_must_be_named():
    network = raw()
    for unnamed, options in (
        ("'raw.matrix', 'raw.other'", {}),
        ("'raw.other'", {"more_weights": ["raw.matrix"]}),
        ("'raw.matrix'", {"leave": ["raw.other"]}),
        ("'raw.matrix', 'raw.other'", {"heads": ["head"], "leave": ["raw.vector"]}),
    ):
        with pytest.raises(ValueError, match=rf"does not know what the matrices \[{unnamed}\] are"):
            scalable_weights(network, **options)
    assert list(scalable_weights(network, leave=["raw"])) == ["a", "b"]
    assert list(scalable_weights(network, heads=["head", "raw"])) == ["a", "b"]
    assert list(scalable_weights(network, heads=["head", "raw.other"], leave=["raw.matrix"])) == ["a", "b"]
    chosen = scalable_weights(network, more_weights=["raw.other", "raw.matrix"])
    assert list(chosen) == ["a", "raw.matrix", "raw.other", "b"]
    pair = [("raw.other", "raw.matrix")]
    chosen = scalable_weights(network, more_weights=pair)
    assert list(chosen) == ["a", "raw.other", "b"] and chosen["raw.other"] is network["raw"].other
    assert partners(network, chosen, pair)["raw.other"] is network["raw"].matrix
    assert partners(network, chosen, more_weights=iter(pair))["a"] is None
    assert partners(network, chosen)["raw.other"] is None


def test_a_pair_may_take_the_weight_of_a_known_layer():
    network = raw()
    pair = [("b.weight", "raw.matrix")]
    chosen = scalable_weights(network, more_weights=pair, leave=["raw.other"])
    assert list(chosen) == ["a", "b.weight"] and partners(network, chosen, pair)["b.weight"] is network["raw"].matrix
    chosen = scalable_weights(network, more_weights=[("raw.matrix", "b.weight")], leave=["raw.other"])
    assert list(chosen) == ["a", "raw.matrix"]
    network["a"].weight = network["b"].weight
    assert list(scalable_weights(network, more_weights=pair, leave=["raw.other"])) == ["b.weight"]


def test_names_are_given_once_match_something_and_may_come_from_a_generator():
    network = raw()
    known = {"leave": ["raw"]}
    for options, message in (
        (
            {"leave": ["raw", "nope"]},
            r"leave: 'nope' is not a parameter or a module that has any; there are \['a', 'a\.w",
        ),
        ({"more_weights": ["raw"]}, r"more_weights: 'raw' is not a parameter; there are \['a\.weight', 'a\.bias', 'r"),
        ({"more_weights": [("raw.matrix", "nope")]}, "more_weights: 'nope' is not a parameter"),
        (
            {"heads": ["raw.vector"]},
            r"head 'raw\.vector' is not a parameter or module with a matrix; there are \['a', 'ra",
        ),
        ({"leave": ["raw", "raw"]}, "'raw' is named twice in leave: name it once"),
        ({"leave": ["head"], "heads": ["head"]}, "'head' is named in leave and in heads"),
        ({"more_weights": [("raw.matrix", "raw.matrix")]}, r"'raw\.matrix' is named twice in more_weights"),
        ({"leave": "raw"}, r"leave='raw' is one string; give a sequence of names, such as \['raw'\]"),
        ({"more_weights": "raw.matrix"}, "more_weights='raw.matrix' is one string"),
        ({"leave": [3]}, "leave holds 3, which is not the name of a module or parameter"),
        ({"leave": [("raw.matrix", "raw.other")]}, "leave holds .*, which is not the name"),
        ({"more_weights": [("raw.matrix",)]}, "more_weights holds .*neither a parameter's name nor a pair"),
        ({"more_weights": ["raw.matrix"], "leave": ["raw"]}, "more_weights: 'raw.matrix' lies in 'raw', which is left"),
        ({"more_weights": ["head.weight"], "heads": ["head"], **known}, "'head.weight' lies in the head 'head', which"),
        ({"more_weights": ["a.weight"], **known}, "more_weights: 'a.weight' is held already, as 'a': do not name it"),
        ({"more_weights": ["raw.frozen"], "leave": ["raw.other", "raw.matrix"]}, "'raw.frozen' is frozen"),
        ({"more_weights": ["head.weight"], **known}, "'head', is named to be held"),
    ):
        with pytest.raises(ValueError, match=message) as failure:
            scalable_weights(network, **options)
        assert "\n" not in str(failure.value)
    names = {"leave": ["raw.vector"], "heads": ["head"], "more_weights": ["raw.matrix", "raw.other"]}
    generators = {argument: (name for name in given) for argument, given in names.items()}
    assert list(scalable_weights(network, **generators)) == ["a", "raw.matrix", "raw.other", "b"]


def test_long_lists_in_messages_are_cut():
    network = nn.Sequential(*(nn.Linear(2, 2) for _ in range(30)))
    with pytest.raises(ValueError, match=r"there are \['0', .*, '19'\] and 10 more$"):
        scalable_weights(network, heads=["nope"])


def test_heads_hold_everything_beneath_them():
    network = nn.ModuleDict({"body": nn.Linear(4, 4), "head": nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))})
    assert list(scalable_weights(network)) == ["body", "head.0"]
    assert list(scalable_weights(network, heads=["head"])) == ["body"]
    assert list(scalable_weights(network, heads=["head.0.weight"])) == ["body", "head.1"]


def test_a_module_with_two_names_is_one_module():
    network = nn.ModuleDict({"first": nn.Linear(4, 4), "head": nn.Linear(4, 4)})
    network["again"] = network["first"]
    assert list(scalable_weights(network)) == ["first"]
    assert list(scalable_weights(network, heads=["again"])) == ["head"]
    assert list(scalable_weights(network, leave=["again"], heads=())) == ["head"]


def test_a_cycle_of_modules_ends():
    network = nn.ModuleDict({"a": nn.Linear(4, 4), "head": nn.Linear(4, 2)})
    network["a"].__dict__["_modules"]["parent"] = network
    assert list(scalable_weights(network)) == ["a"]


def test_frozen_parameters_are_left_alone():
    network = raw()
    network["raw"].requires_grad_(False)
    assert list(scalable_weights(network)) == ["a", "b"]
    network["a"].weight.requires_grad_(False)
    assert list(scalable_weights(network)) == ["b"]
    table = nn.Embedding(3, 4).requires_grad_(False)  # it cannot be an output layer, and nothing trains it
    assert list(scalable_weights(nn.ModuleDict({"a": nn.Linear(4, 4), "head": nn.Linear(4, 4), "table": table}))) == [
        "a"
    ]


def test_what_is_left_out_may_not_share_a_tensor_with_what_is_held():
    network = nn.ModuleDict({"a": nn.Linear(4, 4), "b": nn.Linear(4, 4), "raw": Raw(), "head": nn.Linear(4, 2)})
    network["b"].weight = network["a"].weight
    with pytest.raises(ValueError, match="'b' shares its weight with 'a', which is left alone: untie them, or leave"):
        scalable_weights(network, leave=["a", "raw"])
    assert list(scalable_weights(network, leave=["raw"])) == ["a"]
    network["raw"].matrix = network["a"].weight  # known by its other name
    assert list(scalable_weights(network, leave=["raw.other"])) == ["a"]
    network["raw"].matrix, network["more"] = network["raw"].other, Raw()
    network["more"].matrix, network["more"].other = network["raw"].other, network["raw"].other
    assert list(scalable_weights(network, leave=["raw"], heads=["head"])) == ["a"]  # both are left under that name
    del network["more"]
    with pytest.raises(ValueError, match=r"'raw\.other' is a tensor that is named under another name as well"):
        scalable_weights(network, more_weights=["raw.matrix", "raw.other"])
    network["a"].weight = network["raw"].other
    with pytest.raises(ValueError, match=r"'raw\.other' is to be held, but shares its tensor with 'a', which is left"):
        scalable_weights(network, more_weights=["raw.other"], leave=["a"])


def test_half_of_what_is_scaled_together_is_refused():
    for freeze in ("weight", "weight_sigma"):
        network = noisy_mlp()
        getattr(network[0], freeze).requires_grad_(False)
        with pytest.raises(ValueError, match="are not both trained and held: freeze or leave out both"):
            scalable_weights(network)
    with pytest.raises(ValueError, match="are not both trained and held"):
        scalable_weights(noisy_mlp(), leave=["0.weight"])
    assert list(scalable_weights(noisy_mlp(), leave=["0"])) == ["3"]
    with pytest.raises(ValueError, match=r"'0\.weight_sigma' is held already, together with the weight of its layer"):
        scalable_weights(noisy_mlp(), more_weights=["0.weight_sigma"])
    network = noisy_mlp()
    chosen = scalable_weights(network, more_weights=[("0.weight", "0.weight_sigma")])  # as the type declares it
    assert list(chosen) == ["0.weight", "3"] and partners(network, chosen)["0.weight"] is network[0].weight_sigma


def test_further_matrices_of_a_subclass_must_be_named():
    class Scaled(nn.Linear):
        def __init__(self):
            super().__init__(4, 4)
            self.matrix = nn.Parameter(inputs(4, 4))

    network = nn.Sequential(Scaled(), nn.Linear(4, 2))
    with pytest.raises(ValueError, match=r"the matrices \['0\.matrix'\]"):
        scalable_weights(network)
    assert list(scalable_weights(network, leave=["0.matrix"])) == ["0"]
    assert list(scalable_weights(nn.Sequential(nn.Linear(4, 4), Scaled()))) == ["0"]  # all of it is the head


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
