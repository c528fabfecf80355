"""What happens to each kind of network: what is held at which norm, what is left out, and what is refused."""

import copy
import math
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from elr.projection import Projection
from elr.scale_invariance import Call
from elr.undisturbed import tensors_in
from elr.weights import scalable_weights
from tests.elr.networks import (
    AttentionBlock,
    HandWrittenNorm,
    ImageTransformer,
    RawNoisy,
    Recurrent,
    ResidualBlock,
    ResNet,
    inputs,
    mlp,
)

FORCED = {"allow_scale_dependent": True}


def linear(fan_in: int, fan_out: int) -> nn.Linear:
    return nn.Linear(fan_in, fan_out, bias=False)


def norm_of(tensors: list[Tensor]) -> float:
    return math.sqrt(sum(float(tensor.detach().double().square().sum()) for tensor in tensors))


def train(network: nn.Module, batches: Callable[[int], Any], project: Callable[[], None], steps: int = 20) -> None:
    """Adam on the mean square of all outputs, which moves every norm."""
    optimizer = torch.optim.Adam([p for p in network.parameters() if p.requires_grad], lr=0.02)
    for step in range(steps):
        batch = batches(step)
        args, kwargs = (batch.args, batch.kwargs) if isinstance(batch, Call) else ((batch,), {})
        outputs = [t for t in tensors_in(network(*args, **kwargs)) if t.is_floating_point()]
        optimizer.zero_grad()
        sum((output - 1.0).square().mean() for output in outputs).backward()
        optimizer.step()
        project()


@dataclass
class Row:
    """A kind of network, and what is held of it.

    `weights` and `gains` map each name under which something is held to the names of the parameters whose joint norm
    it is. `moving` are parameters that must be left to the optimiser.
    """

    make: Callable[[], nn.Module]
    batch: Callable[[int], Any]
    weights: dict[str, list[str]]
    gains: dict[str, list[str]] = field(default_factory=dict)
    moving: tuple[str, ...] = ()
    options: dict[str, Any] = field(default_factory=dict)
    checked: bool = True


def flat(step: int) -> Tensor:
    return inputs(8, 6, seed=step)


def image(step: int) -> Tensor:
    return inputs(8, 1, 4, 4, seed=step)


def sequence(step: int) -> Tensor:
    return inputs(8, 5, 6, seed=step)


def tokens(step: int) -> Tensor:
    return torch.randint(0, 10, (8, 4), generator=torch.Generator().manual_seed(step))


def by_name(*names: str) -> dict[str, list[str]]:
    """Layers that are called as the module whose `weight` they are."""
    return {name: [f"{name}.weight"] for name in names}


def affine(*names: str) -> dict[str, list[str]]:
    return {name: [f"{name}.weight", f"{name}.bias"] for name in names}


def by_parameter(*names: str) -> dict[str, list[str]]:
    return {name: [name] for name in names}


def noisy() -> nn.Module:
    hidden = [linear(6, 16), nn.LayerNorm(16), nn.ReLU(), RawNoisy(16, 16), nn.LayerNorm(16), nn.ReLU()]
    return nn.Sequential(*hidden, RawNoisy(16, 3, bias=True))


def noisy_when_evaluated() -> nn.Module:
    class AlwaysNoisy(RawNoisy):
        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.linear(x, self.weight_mu + self.weight_sigma * self.weight_epsilon)

    return nn.Sequential(AlwaysNoisy(6, 16), nn.LayerNorm(16), nn.ReLU(), nn.Linear(16, 3))


def separate_attention() -> nn.Module:
    class Cross(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = nn.MultiheadAttention(6, 2, kdim=4, vdim=4, add_bias_kv=True)
            self.head = nn.Linear(6, 3)

        def forward(self, query: Tensor, key: Tensor) -> Tensor:
            return self.head(self.attention(query, key, key)[0])

    return Cross()


def bilinear() -> nn.Module:
    class Pairs(nn.Module):
        def __init__(self):
            super().__init__()
            self.bilinear, self.norm, self.head = nn.Bilinear(6, 4, 8, bias=False), nn.LayerNorm(8), nn.Linear(8, 3)

        def forward(self, left: Tensor, right: Tensor) -> dict[str, Tensor]:
            return {"logits": self.head(self.norm(self.bilinear(left, right)).relu())}

    return Pairs()


def bag() -> nn.Module:
    return nn.Sequential(
        nn.EmbeddingBag(10, 8, mode="sum"), nn.LayerNorm(8), linear(8, 8), nn.LayerNorm(8), nn.ReLU(), nn.Linear(8, 3)
    )


def hand_written(shifted: bool = False) -> nn.Module:
    return nn.Sequential(linear(6, 16), HandWrittenNorm(16, shifted), nn.ReLU(), nn.Linear(16, 3))


def pretrained() -> nn.Module:
    network = mlp()
    with torch.no_grad():
        network[1].weight.fill_(0.1)
        network[4].weight.fill_(3.0)
        network[4].bias.copy_(inputs(16, seed=3))
    return network


def tied() -> nn.Module:
    class Language(nn.Module):
        """A table of embeddings that is also the decoder, and two hidden layers that share their weight."""

        def __init__(self):
            super().__init__()
            self.table = nn.Embedding(10, 8)
            self.first, self.norm1, self.second, self.norm2 = linear(8, 8), nn.RMSNorm(8), linear(8, 8), nn.RMSNorm(8)
            self.decoder = linear(8, 10)
            self.second.weight, self.decoder.weight = self.first.weight, self.table.weight

        def forward(self, words: Tensor) -> Tensor:
            x = self.norm1(self.first(self.table(words))).relu()
            return self.decoder(self.norm2(self.second(x)).relu())

    return Language()


def convolutional(norm: nn.Module, bias: bool = False) -> nn.Module:
    body = [nn.Conv2d(1, 4, 3, padding=1, bias=bias), norm, nn.ReLU(), nn.Flatten()]
    return nn.Sequential(*body, nn.Linear(64, 3))


def partly_frozen() -> nn.Module:
    network = mlp()
    for parameter in (network[0].weight, network[1].weight, network[1].bias, network[4].bias):
        parameter.requires_grad_(False)
    return network


def shared_gain() -> nn.Module:
    network = mlp()
    with torch.no_grad():
        network[1].weight.fill_(2.0)
    network[4].weight, network[4].bias = network[1].weight, network[1].bias
    return network


class ActorCritic(nn.Module):
    """As Stable-Baselines3 nests a policy; the deviations are one raw parameter."""

    def __init__(self, deviation_shape: tuple[int, ...]):
        super().__init__()
        half = lambda: nn.Sequential(linear(8, 8), nn.LayerNorm(8), nn.Tanh())  # noqa: E731
        self.log_std = nn.Parameter(torch.zeros(deviation_shape))
        self.features_extractor = nn.Sequential(linear(6, 8), nn.LayerNorm(8), nn.ReLU())
        self.mlp_extractor = nn.ModuleDict({"policy_net": half(), "value_net": half()})
        self.action_net, self.value_net = nn.Linear(8, 2), nn.Linear(8, 1)

    def forward(self, observation: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        x = self.features_extractor(observation)
        mean = self.action_net(self.mlp_extractor["policy_net"](x))
        return self.value_net(self.mlp_extractor["value_net"](x)), {"mean": mean, "deviation": 2.0 * self.log_std.exp()}


POLICY = by_name("features_extractor.0", "mlp_extractor.policy_net.0", "mlp_extractor.value_net.0")
POLICY_GAINS = affine("features_extractor.1", "mlp_extractor.policy_net.1", "mlp_extractor.value_net.1")
HEADS = ["action_net", "value_net"]
BLOCK = {"b.attention.in_proj_weight": ["b.attention.in_proj_weight"]} | by_name(
    "b.attention.out_proj", "b.up", "b.down"
)
ATTENTION = [f"blocks.{i}.attention.in_proj_weight" for i in (0, 1)]
LAYERS = [f"blocks.{i}.{layer}" for i in (0, 1) for layer in ("attention.out_proj", "up", "down")]
RESNET = by_name("stem", *(f"blocks.{i}.conv{j}" for i in (0, 1) for j in (1, 2)))


def block(pre_norm: bool) -> nn.Module:
    class Pooled(nn.Module):
        def __init__(self):
            super().__init__()
            self.inp, self.b, self.head = linear(6, 8), AttentionBlock(8, pre_norm), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.b(self.inp(x)).mean(1))

    return Pooled()


def raw_head() -> nn.Module:
    """The head is a container; a parameter of the network itself is a second one."""

    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.direction = nn.Parameter(inputs(2, 16, seed=2))
            self.body = nn.Sequential(linear(6, 16), nn.LayerNorm(16), nn.ReLU())
            self.critic = nn.Sequential(nn.Linear(16, 4), nn.LayerNorm(4), nn.ReLU(), nn.Linear(4, 1))

        def forward(self, x: Tensor) -> list[Tensor]:
            x = self.body(x)
            return [x @ self.direction.T, self.critic(x)]

    return Two()


ROWS = {
    "plain": Row(mlp, flat, by_name("0", "3"), affine("1", "4"), ("6.weight",)),
    "noisy": Row(
        noisy, flat, by_name("0") | {"3.weight_mu": ["3.weight_mu", "3.weight_sigma"]}, affine("1", "4"),
        ("6.weight_mu", "6.weight_sigma"), {"more_weights": [("3.weight_mu", "3.weight_sigma")], "heads": ["6"]},
    ),
    "noisy_when_evaluated": Row(
        noisy_when_evaluated, flat, {"0.weight_mu": ["0.weight_mu", "0.weight_sigma"]}, affine("1"), ("3.weight",),
        {"more_weights": iter([["0.weight_mu", "0.weight_sigma"]])},
    ),
    "attention": Row(lambda: block(True), sequence, by_name("inp") | BLOCK, affine("b.norm1", "b.norm2"),
                     ("head.weight", "b.attention.in_proj_bias", "b.up.bias"), FORCED, False),
    "post_norm": Row(lambda: block(False), sequence, by_name("inp") | BLOCK, affine("b.norm1", "b.norm2"),
                     ("head.weight",), FORCED, False),
    "separate_attention": Row(
        separate_attention, lambda step: Call((inputs(3, 8, 6, seed=step), inputs(3, 8, 4, seed=step + 1))),
        by_parameter("attention.q_proj_weight", "attention.k_proj_weight", "attention.v_proj_weight")
        | by_name("attention.out_proj"), {}, ("attention.bias_k", "attention.in_proj_bias"), FORCED, False,
    ),
    "image_transformer": Row(
        ImageTransformer, image, by_name("patches", *LAYERS) | by_parameter(*ATTENTION),
        affine("norm", *(f"blocks.{i}.norm{j}" for i in (0, 1) for j in (1, 2))), ("class_token", "positions"),
        FORCED | {"leave": ["class_token", "positions"]}, False,
    ),
    "lstm": Row(lambda: Recurrent(nn.LSTM(6, 4, bidirectional=True), 8), sequence,
                by_parameter(*(f"recurrent.weight_{x}h_l0{way}" for x in "ih" for way in ("", "_reverse"))),
                {}, ("recurrent.bias_ih_l0",), FORCED, False),
    "gru": Row(lambda: Recurrent(nn.GRU(6, 8), 8), sequence,
               by_parameter("recurrent.weight_ih_l0", "recurrent.weight_hh_l0"), options=FORCED, checked=False),
    "rnn": Row(lambda: Recurrent(nn.RNN(6, 8), 8), sequence,
               by_parameter("recurrent.weight_ih_l0", "recurrent.weight_hh_l0"), options=FORCED, checked=False),
    "lstm_cell": Row(lambda: Recurrent(nn.LSTMCell(6, 8), 8), sequence,
                     by_parameter("recurrent.weight_ih", "recurrent.weight_hh"), options=FORCED, checked=False),
    "bilinear": Row(bilinear, lambda step: Call((inputs(8, 6, seed=step),), {"right": inputs(8, 4, seed=step + 1)}),
                    by_name("bilinear"), affine("norm"), ("head.weight",)),
    "embedding_bag": Row(bag, tokens, by_name("2"), affine("1", "3"), ("0.weight", "5.weight")),
    "embedding_bag_held": Row(bag, tokens, by_name("0", "2"), affine("1", "3"), ("5.weight",), {"embeddings": True}),
    "hand_written_norm": Row(hand_written, flat, by_name("0"), by_parameter("1.g"), ("3.weight",),
                             {"more_gains": ["1.g"]}),
    "hand_written_norm_with_offset": Row(lambda: hand_written(True), flat, by_name("0"), {"1.g": ["1.g", "1.shift"]},
                                         ("3.weight",), {"more_gains": [("1.g", "1.shift")]}),
    "offset_left_alone": Row(mlp, flat, by_name("0", "3"), affine("1") | {"4": ["4.weight"]}, ("4.bias",),
                             {"leave": ["4.bias"]}),
    "gains_free": Row(lambda: hand_written(True), flat, by_name("0"), {}, ("1.g", "1.shift"), {"gains": "free"}),
    "compiled": Row(lambda: torch.compile(mlp(), backend="eager"), flat, by_name("0", "3"), affine("1", "4"),
                    ("6.weight",), {"heads": ["6"]}),
    "data_parallel": Row(lambda: nn.DataParallel(mlp()), flat, by_name("0", "3"), affine("1", "4"), ("6.weight",)),
    "pretrained_gains": Row(pretrained, flat, by_name("0", "3"), affine("1", "4"), ("6.weight",)),
    "weight_tying": Row(tied, tokens, by_name("first"), {"norm1": ["norm1.weight"], "norm2": ["norm2.weight"]},
                        ("table.weight",)),
    "group_norm": Row(lambda: convolutional(nn.GroupNorm(2, 4)), image, by_name("0"), affine("1"), ("4.weight",)),
    "batch_norm": Row(lambda: convolutional(nn.BatchNorm2d(4), bias=True), image, by_name("0"), affine("1"),
                      ("4.weight", "0.bias")),
    "frozen": Row(partly_frozen, flat, by_name("3"), {"4": ["4.weight"]}, ("6.weight",)),
    "shared_gain": Row(shared_gain, flat, by_name("0", "3"), affine("1"), ("6.weight",)),
    "zero_gains": Row(ResNet, image, RESNET, affine("norm", "blocks.0.norm1", "blocks.1.norm1"),
                      ("blocks.0.norm2.weight", "head.weight"), {"leave": ["blocks.0.norm2", "blocks.1.norm2"]}),
    "parametrised_head": Row(
        lambda: nn.Sequential(linear(6, 8), nn.LayerNorm(8), nn.utils.parametrizations.weight_norm(nn.Linear(8, 3))),
        flat, by_name("0"), affine("1"), ("2.parametrizations.weight.original0",)),
    "actor_critic": Row(lambda: ActorCritic((1, 2)), flat, POLICY, POLICY_GAINS, ("log_std", "action_net.weight"),
                        {"heads": [*HEADS, "log_std"]}),
    "nested_policy": Row(lambda: ActorCritic((2,)), flat, POLICY, POLICY_GAINS, ("log_std", "value_net.weight"),
                         {"heads": HEADS, "leave": ["log_std"]}),
    "container_head": Row(raw_head, flat, by_name("body.0"), affine("body.1"),
                          ("direction", "critic.0.weight", "critic.1.weight", "critic.3.weight"),
                          {"heads": ["critic", "direction"]}),
}  # fmt: skip


@pytest.mark.parametrize("kind", ROWS)
def test_norms_are_held(kind):
    row = ROWS[kind]
    torch.manual_seed(0)
    network = row.make()
    plain = copy.deepcopy(network)
    check = {"check_inputs": row.batch(999)} if row.checked else {}
    projection = Projection(network, **row.options, **check)
    parameters, free = ({_unwrapped(n): p for n, p in each.named_parameters()} for each in (network, plain))
    tied_names = {_unwrapped(n): p for n, p in network.named_parameters(remove_duplicate=False)}
    assert set(projection.weights) == set(row.weights) and set(projection.state_dict()["gain_norms"]) == set(row.gains)
    held = {**row.weights, **row.gains}
    before = {name: norm_of([tied_names[part] for part in parts]) for name, parts in held.items()}
    start = {name: p.detach().clone() for name, p in parameters.items()}
    for name in row.weights:
        assert projection.norms[name] == pytest.approx(before[name], rel=1e-7)
    train(network, row.batch, lambda: projection.step(0.02))
    train(plain, row.batch, lambda: None)
    for name, parts in held.items():
        assert norm_of([tied_names[part] for part in parts]) == pytest.approx(before[name], rel=1e-6), name
        # controls: the direction moves, and without projection the norm
        assert any(not torch.equal(start[part], parameters[part]) for part in parts if part in parameters), name
        assert norm_of([free[part] for part in parts]) != pytest.approx(before[name], rel=1e-5), name
    for name in row.moving:
        assert norm_of([parameters[name]]) != pytest.approx(norm_of([start[name]]), rel=1e-5), name
    for name, parameter in parameters.items():
        assert parameter.requires_grad or torch.equal(parameter, start[name]), name


def _unwrapped(name: str) -> str:
    return name.removeprefix("_orig_mod.").removeprefix("module.")


def unnamed(*names: str) -> str:
    """The message about matrices of no known type."""
    return f"elr does not know what the matrices {list(names)} are. Name each: "


def no_guess(name: str, why: str) -> str:
    return f"the output layer cannot be guessed: the last module with a matrix, {name!r}, {why}. Name the output layers"


def half_frozen_pair() -> nn.Module:
    network = noisy()
    network[3].weight_sigma.requires_grad_(False)
    return network


def frozen_head() -> nn.Module:
    network = mlp()
    network[6].weight.requires_grad_(False)
    return network


def one_gain_two_offsets() -> nn.Module:
    network = mlp()
    network[4].weight = network[1].weight
    return network


def embedding_last() -> nn.Module:
    network = nn.Sequential(linear(6, 8), nn.LayerNorm(8), nn.Linear(8, 3))
    network.table = nn.Embedding(4, 8)
    return network


def biased(norm: nn.Module, zero: bool) -> nn.Module:
    network = nn.Sequential(nn.Linear(6, 16), norm, nn.ReLU(), nn.Linear(16, 3))
    if zero:
        nn.init.zeros_(network[0].bias)
    return network


class FullyShardedDataParallel(nn.Module):
    """It has the name and the module of torch's class, by which that is recognised."""

    __module__ = "torch.distributed.fsdp.fully_sharded_data_parallel"


class Subclass(FullyShardedDataParallel):
    """Of the user, under a name and in a module of its own."""

    __module__ = __name__


NOISY_PAIR = ("3.weight_mu", "3.weight_sigma")
REFUSED = {
    "noisy": (noisy, {}, unnamed("3.weight_mu", "3.weight_sigma", "6.weight_mu", "6.weight_sigma")
              + "to hold its norm, more_weights=['3.weight_mu'] or, two at their joint norm, "
              "[('3.weight_mu', '3.weight_sigma')]; as an output layer, heads=['3']; to leave it alone, "
              "leave=['3.weight_mu']"),
    "noisy_without_head": (noisy, {"more_weights": [NOISY_PAIR, ("6.weight_mu", "6.weight_sigma")]},
                           no_guess("6", "is named to be held")),
    "noisy_halves": (noisy, {"more_weights": NOISY_PAIR, "heads": ["6"], "check_inputs": inputs(8, 6)},
                     "the output does not depend on ['3.weight_sigma'] for the check inputs"),
    "half_frozen_pair": (half_frozen_pair, {"more_weights": [NOISY_PAIR], "heads": ["6"]},
                         "more_weights: '3.weight_sigma' is frozen, so nothing changes its norm"),
    "positions": (ImageTransformer, {}, unnamed("class_token", "positions")),
    "raw_deviation": (lambda: ActorCritic((1, 2)), {"heads": HEADS}, unnamed("log_std")
                      + "to hold its norm, more_weights=['log_std']; as an output layer, heads=['log_std']; to leave "
                      "it alone, leave=['log_std']"),
    "nested_policy": (lambda: ActorCritic((2,)), {"heads": HEADS},
                      "elr does not know whether ['log_std'] are gains of normalisation layers. Name those that are in "
                      "more_gains=[...], alone or as a pair (gain, offset), and the others in leave=[...]; or give "
                      'gains="free"'),
    "hand_written_norm": (lambda: hand_written(True), {},
                          "elr does not know whether ['1.g', '1.shift'] are gains of normalisation layers."),
    "attention_last": (lambda: nn.Sequential(linear(4, 4), nn.MultiheadAttention(4, 2)), {},
                       no_guess("1.out_proj", "is the output projection of an attention layer, which is no output "
                                "layer by itself")),
    "recurrent_last": (lambda: nn.Sequential(linear(4, 4), nn.GRU(4, 4)), {},
                       no_guess("1", "is of type GRU, which is no output layer by itself")),
    "embedding_last": (embedding_last, {},
                       no_guess("table", "is of type Embedding, which is no output layer by itself")),
    "frozen_last": (frozen_head, {}, no_guess("6", "is frozen")),
    "head_left_alone": (mlp, {"leave": ["6"]}, no_guess("6", "is left alone")),
    "all_frozen": (lambda: mlp().requires_grad_(False), {"heads": ["6"]},
                   "no weight to project in Sequential outside the heads ['6']: it needs a trainable linear or "
                   "convolutional module that is not a head"),
    "parametrised": (
        lambda: nn.Sequential(nn.utils.parametrizations.spectral_norm(linear(6, 8)), nn.LayerNorm(8), linear(8, 3)), {},
        "the weight of '0' is computed from other parameters (weight or spectral normalisation, pruning), so scaling "
        "it in place has no effect: remove the parametrisation, or name the layer in leave=[...] or heads=[...]"),
    "weight_norm_of_an_lstm": (
        lambda: Recurrent(nn.utils.parametrizations.weight_norm(nn.LSTM(6, 8), "weight_hh_l0"), 8), {},
        "the weight of 'recurrent' is computed from other parameters"),
    "lazy": (lambda: nn.Sequential(nn.LazyLinear(8), nn.LazyBatchNorm1d(), nn.Linear(8, 3)), {},
             "the weight of '0' is not initialised: run one batch through the network first"),
    "sharded_by_a_wrapper": (lambda: nn.Sequential(mlp(), FullyShardedDataParallel()), {},
                             "1 is a FullyShardedDataParallel, where each process holds a part of a weight"),
    "sharded_by_a_subclass": (lambda: nn.Sequential(mlp(), Subclass()), {},
                              "1 is a FullyShardedDataParallel, where each process holds a part of a weight"),
    "half_precision": (lambda: mlp().bfloat16(), {},
                       "weights of type {'0': torch.bfloat16, '3': torch.bfloat16} are too coarse to hold a norm: give "
                       "the float32 copy that the optimiser steps (its master weights), or keep parameters in float32 "
                       "and compute in half precision with torch.autocast"),
    "shared_gain": (one_gain_two_offsets, {}, "'4' shares its gain with '1', but not its offset, so no single scale "
                    "fits both: share both, untie them, or name one in leave=[...]"),
    "layer_norm_bias": (lambda: biased(nn.LayerNorm(16), zero=False), {"check_inputs": inputs(32, 6)},
                        "each of ['0'] has a bias before its normalisation, so the output depends on the scale of its "
                        "weight once the bias is not zero: build it with bias=False, or pass "
                        "allow_scale_dependent=True"),
    "layer_norm_zero_bias": (lambda: biased(nn.LayerNorm(16), zero=True), {"check_inputs": inputs(32, 6)},
                             "each of ['0'] has a bias before its normalisation"),
    "layer_norm_zero_bias_behind_pixels": (lambda: biased(nn.LayerNorm(16), zero=True),
                                           {"check_inputs": 255.0 * inputs(32, 6).abs()},
                                           "each of ['0'] has a bias before its normalisation"),
    "batch_norm_in_eval_mode": (
        lambda: biased(nn.BatchNorm1d(16), zero=True).eval(), {"check_inputs": inputs(32, 6)},
        "Also, the normalisation layers ['1'] are in eval mode and use running statistics, which do not follow the "
        "weights: call network.train() first; or if they are to stay frozen, pass allow_scale_dependent=True"),
    "pre_norm_residual": (lambda: block(True), {"check_inputs": inputs(8, 5, 6)},
                          "the output depends on the scale of 'inp' ("),
}  # fmt: skip


@pytest.mark.parametrize("kind", REFUSED)
def test_refused_in_one_line(kind):
    make, options, message = REFUSED[kind]
    torch.manual_seed(0)
    network = make()
    with pytest.raises(ValueError, match=re.escape(message)) as failure:
        Projection(network, **options)
    assert "\n" not in str(failure.value)


@pytest.fixture
def process_group():
    """One process of a distributed run."""
    if not torch.distributed.is_available():
        pytest.skip("torch was built without torch.distributed")
    fake = pytest.importorskip("torch.testing._internal.distributed.fake_pg")
    torch.distributed.init_process_group("fake", store=fake.FakeStore(), rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.filterwarnings("default")  # of torch's own
def test_sharded_parameters_are_refused_by_name(process_group):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import distribute_tensor

    network = mlp()
    network[3].weight = nn.Parameter(distribute_tensor(network[3].weight.detach(), init_device_mesh("cpu", (1,))))
    with pytest.raises(
        ValueError, match=r"'3\.weight' is sharded over processes \(DTensor\), none of which knows its norm"
    ):
        Projection(network, allow_scale_dependent=True)
    assert list(Projection(network, leave=["3"], allow_scale_dependent=True).weights) == ["0"]


def test_zero_gains_are_left_alone_with_one_warning():
    torch.manual_seed(0)
    network = ResNet()
    message = (
        "the gains of ['blocks.0.norm2', 'blocks.1.norm2'] are zero and have no norm to hold, so they are left alone; "
        "leave=['blocks.0.norm2', 'blocks.1.norm2'] says so without this warning"
    )
    with pytest.warns(UserWarning, match=re.escape(message)) as caught:
        projection = Projection(network, check_inputs=image(999))
    assert len(caught) == 1 and caught[0].filename == __file__
    assert list(projection.weights) == list(RESNET)
    held = projection.state_dict()["gain_norms"]
    assert held == {
        "norm": 2.0,
        "blocks.0.norm1": 2.0,
        "blocks.0.norm2": 0.0,
        "blocks.1.norm1": 2.0,
        "blocks.1.norm2": 0.0,
    }
    train(network, image, lambda: projection.step(0.02))
    assert norm_of([network.blocks[0].norm2.weight, network.blocks[0].norm2.bias]) > 0.05
    assert norm_of([network.blocks[0].norm1.weight, network.blocks[0].norm1.bias]) == pytest.approx(2.0, rel=1e-6)
    # A run that is resumed builds its projection before or after the weights are loaded; both continue alike.
    resumed = Projection(network, check_inputs=image(999))
    resumed.load_state_dict(projection.state_dict())
    before = network.blocks[0].norm2.weight.detach().clone()
    resumed.project_()
    assert torch.equal(network.blocks[0].norm2.weight, before) and resumed.state_dict() == projection.state_dict()


def test_a_zero_gain_of_a_hand_written_layer_is_left_alone_too():
    network = hand_written()
    nn.init.zeros_(network[1].g)
    with pytest.warns(UserWarning, match=r"the gains of \['1\.g'\] are zero"):
        projection = Projection(network, more_gains=["1.g"], check_inputs=flat(999))
    assert projection.state_dict()["gain_norms"] == {"1.g": 0.0} and list(projection.weights) == ["0"]


@pytest.mark.parametrize("gains", ["regularise", "decay", "free"])
def test_other_policies_do_not_warn_of_zero_gains(gains):
    strength = 0.0 if gains == "free" else 0.5
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        projection = Projection(ResNet(), check_inputs=image(999), gains=gains, gain_strength=strength)
    assert projection.state_dict()["gain_norms"] == {}


def test_half_precision_with_masters_in_float32():
    """The network computes in bfloat16; the optimiser steps a copy in float32, and that copy is projected."""
    network = mlp().bfloat16()
    masters = copy.deepcopy(network).float()
    projection = Projection(masters, check_inputs=flat(999))
    optimizer = torch.optim.Adam(masters.parameters(), lr=0.02)
    for step in range(20):
        network.zero_grad()
        (network(flat(step).bfloat16()) - 1.0).square().mean().backward()
        for master, parameter in zip(masters.parameters(), network.parameters(), strict=True):
            master.grad = parameter.grad.float()
        optimizer.step()
        projection.step(0.02)
        with torch.no_grad():
            for master, parameter in zip(masters.parameters(), network.parameters(), strict=True):
                parameter.copy_(master)
    for name in ("0", "3"):
        weight = masters.get_submodule(name).weight
        assert norm_of([weight]) == pytest.approx(projection.norms[name], rel=1e-6)
        assert norm_of([network.get_submodule(name).weight]) == pytest.approx(projection.norms[name], rel=4e-3)


def test_half_precision_gains_are_refused():
    network = mlp()
    network[1].bfloat16()
    with pytest.raises(ValueError, match=r"gains of type \{'1': torch\.bfloat16\} are too coarse"):
        Projection(network, allow_scale_dependent=True)
    Projection(network, allow_scale_dependent=True, gains="free")


def test_batch_norm_that_stays_in_eval_mode_is_held_where_dependence_is_allowed():
    network = biased(nn.BatchNorm1d(16), zero=True)
    train(network, flat, lambda: None)
    network.eval()
    projection = Projection(network, allow_scale_dependent=True)
    train(network, flat, lambda: projection.step(0.02))
    assert norm_of([network[0].weight]) == pytest.approx(projection.norms["0"], rel=1e-6)


def test_names_and_states_are_the_same_compiled_wrapped_or_plain():
    class Nested(nn.Module):
        """A compiled and a parallel part inside of a plain one."""

        def __init__(self, wrap: bool):
            super().__init__()
            torch.manual_seed(0)
            compiled = (lambda m: torch.compile(m, backend="eager")) if wrap else lambda m: m
            parallel = nn.DataParallel if wrap else lambda m: m
            self.body = compiled(ResidualBlock(1))
            self.middle = parallel(compiled(nn.Sequential(nn.Flatten(), linear(16, 8), nn.LayerNorm(8))))
            self.head = parallel(nn.Linear(8, 3))

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.middle(self.body(x)))

    plain, wrapped = Nested(False), Nested(True)
    with torch.no_grad():
        wrapped(image(0))  # it is compiled now
    held = []
    for network in (plain, wrapped, torch.compile(wrapped, backend="eager"), nn.DataParallel(wrapped)):
        projection = Projection(network, heads=["head"], leave=["body.norm2"], check_inputs=image(1))
        held.append(projection.state_dict())
        projection.load_state_dict(held[0])
    assert held[1:] == held[:1] * 3
    assert list(held[0]["norms"]) == ["body.conv1", "body.conv2", "middle.1"]
    assert list(held[0]["gain_norms"]) == ["body.norm1", "middle.2"]
    assert list(scalable_weights(wrapped)) == ["body.conv1", "body.conv2", "middle.1"]


@pytest.mark.parametrize(("policy", "expected"), [("decay", 0.9 * 2.0), ("regularise", 2.0 - 0.1 * (2.0 - 1.0))])
def test_a_shared_gain_is_pulled_once_and_a_frozen_one_not_at_all(policy, expected):
    network = nn.Sequential(linear(6, 4), nn.LayerNorm(4), linear(4, 4), nn.LayerNorm(4), linear(4, 4), nn.LayerNorm(4),
                            nn.Linear(4, 2))  # fmt: skip
    network[3].weight = network[1].weight  # with two offsets, which only the joint norm minds
    with torch.no_grad():
        network[1].weight.fill_(2.0)
        network[5].weight.fill_(2.0)
        network[5].bias.fill_(1.0)
    network[5].weight.requires_grad_(False)
    network[5].bias.requires_grad_(False)
    projection = Projection(network, gains=policy, gain_strength=0.5, allow_scale_dependent=True)
    projection.step(0.2)
    torch.testing.assert_close(network[1].weight.detach(), torch.full((4,), expected))
    assert network[5].weight.tolist() == [2.0] * 4 and network[5].bias.tolist() == [1.0] * 4


def test_pulling_frozen_gains_only_has_nothing_to_pull():
    network = mlp()
    for layer in (1, 4):
        network[layer].requires_grad_(False)
    with pytest.raises(ValueError, match="nothing to pull"):
        Projection(network, gains="decay", gain_strength=0.1, allow_scale_dependent=True)


def test_fresh_gains_have_exactly_the_root_of_their_number():
    for width in (2, 3, 16, 511, 512, 1000):
        network = nn.Sequential(linear(6, width), nn.LayerNorm(width), nn.Linear(width, 3))
        projection = Projection(network, allow_scale_dependent=True)
        assert projection.state_dict()["gain_norms"]["1"] == math.sqrt(width)
