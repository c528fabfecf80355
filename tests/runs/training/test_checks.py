"""Checks that a script makes of its own flags."""

import math
import os
from types import SimpleNamespace

import pytest
import torch

from runs.training import (
    require,
    require_device,
    require_multiples,
    require_not_negative,
    require_positive,
    require_share,
    require_threads,
)

ARGS = SimpleNamespace(
    one=1, zero=0, minus_one=-1, half=0.5, ten=10, not_a_number=math.nan, infinite=math.inf,
    nap=SimpleNamespace(every=0, gain_strength=2.0),
)  # fmt: skip


def message_of(check, *arguments, **more):
    with pytest.raises(ValueError) as error:
        check(*arguments, **more)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    ("check", "accepted", "refused", "rule"),
    [
        (require_positive, "one half ten", ["zero", "minus_one", "not_a_number", "infinite"], "must be positive"),
        (require_not_negative, "zero one half", ["minus_one", "not_a_number", "infinite"], "must be at least 0"),
        (require_share, "zero half one", ["minus_one", "ten", "not_a_number", "infinite"], "must lie in [0, 1]"),
    ],
)
def test_numbers_are_refused_by_flag_value_and_rule(check, accepted, refused, rule):
    check(ARGS, accepted)
    check(ARGS, "")
    for name in refused:
        expected = f"--{name.replace('_', '-')} {rule}, got {getattr(ARGS, name)}"
        assert message_of(check, ARGS, f"{accepted} {name}") == expected


def test_a_flag_of_a_group_is_named_with_it():
    require_positive(ARGS, "nap.gain_strength")
    require_not_negative(ARGS, "nap.every nap.gain_strength")
    assert message_of(require_positive, ARGS, "one nap.every") == "--nap.every must be positive, got 0"
    assert message_of(require_share, ARGS, "nap.gain_strength") == "--nap.gain-strength must lie in [0, 1], got 2.0"


def test_flags_that_do_not_go_together_are_named_together():
    require(True, ARGS, "one ten", "never")
    message = message_of(require, False, ARGS, "one minus_one nap.every", "the first must be above the second")
    assert message == "--one 1 and --minus-one -1 and --nap.every 0: the first must be above the second"


def test_multiples():
    require_multiples(ARGS, "ten zero", of="one")
    assert message_of(require_multiples, ARGS, "ten one", of="ten") == "--one 1 must be a multiple of --ten 10"
    both = "--one 1 and --one 1 must be multiples of --ten 10"
    assert message_of(require_multiples, ARGS, "one ten one", of="ten") == both


def test_threads_are_limited_by_the_cores_of_the_machine(monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    for threads in (1, 16):
        require_threads(SimpleNamespace(threads=threads))
    message = message_of(require_threads, SimpleNamespace(threads=17))
    assert message == "--threads must be at most 16 (8 for each CPU core of this machine), got 17"
    assert message_of(require_threads, SimpleNamespace(threads=0)) == "--threads must be positive, got 0"


@pytest.mark.parametrize("device", ["abacus", "meta", ""])
def test_a_device_is_cpu_or_cuda(device):
    require_device(SimpleNamespace(device="cpu"))
    message = message_of(require_device, SimpleNamespace(device=device))
    assert message == f"--device must be cpu or cuda (or cuda:N), got {device}"


@pytest.mark.parametrize("device", ["cuda", "cuda:1"])
def test_cuda_needs_a_gpu(monkeypatch, device):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    require_device(SimpleNamespace(device=device))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    message = message_of(require_device, SimpleNamespace(device=device))
    assert message.startswith(f"--device {device}: this torch sees no GPU; install a CUDA build or use --device cpu")
