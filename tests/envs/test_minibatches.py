"""envs.minibatches: order of the minibatches, normalised pixels, shifts and mirror images."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from envs.images import Images
from envs.minibatches import Minibatches, Pixels

CPU = torch.device("cpu")


def images(name="digits", channels=1, count=12, size=8):
    rng = np.random.default_rng(0)
    x = torch.from_numpy(rng.integers(200, size=(count, channels, size, size)).astype(np.uint8))
    y = torch.from_numpy(rng.integers(10, size=count))
    return Images(x, y, x.flip(0), y.flip(0), 10, name, "made")


def draws(minibatches, count):
    return np.concatenate([minibatches.draw() for _ in range(count)])


def test_an_epoch_holds_each_image_once_in_a_new_order():
    drawn = draws(Minibatches(10, 4, np.random.default_rng(0)), 5)
    assert sorted(drawn[:10]) == sorted(drawn[10:]) == list(range(10))
    assert list(drawn[:10]) != list(drawn[10:])


def test_growing_begins_an_epoch_over_all_images():
    minibatches = Minibatches(10, 4, np.random.default_rng(0))
    draws(minibatches, 2)
    minibatches.grow(13)
    assert sorted(draws(minibatches, 13)) == sorted([*range(13)] * 4)


def test_a_batch_may_be_larger_than_an_epoch():
    drawn = Minibatches(3, 8, np.random.default_rng(0)).draw()
    assert sorted(drawn[:3]) == sorted(drawn[3:6]) == [0, 1, 2]
    assert len(drawn) == 8


def test_state_and_generator_continue_the_order():
    first = Minibatches(10, 4, np.random.default_rng(0))
    draws(first, 2)
    second = Minibatches(5, 4, np.random.default_rng(1))
    second.load_state_dict(first.state_dict())
    second.rng.bit_generator.state = first.rng.bit_generator.state
    assert draws(first, 6).tolist() == draws(second, 6).tolist()


def test_pixels_are_normalised_by_channel_of_the_training_set():
    made = images(channels=3)
    x = Pixels(made, CPU).normalised(made.train_x)
    assert x.dtype == torch.float32 and x.is_contiguous(memory_format=torch.channels_last)
    assert torch.allclose(x.mean((0, 2, 3)), torch.zeros(3), atol=1e-5)
    assert torch.allclose(x.std((0, 2, 3), correction=0), torch.ones(3), atol=1e-5)


def shifts(before, after):
    """The (dy, dx, mirrored) of which `after` is the window of `before`, padded by one pixel."""
    padded = F.pad(before, (1, 1, 1, 1))
    windows = {(dy, dx): padded[:, dy : dy + 8, dx : dx + 8] for dy in range(3) for dx in range(3)}
    plain = [(*key, False) for key, window in windows.items() if torch.equal(window, after)]
    return plain + [(*key, True) for key, window in windows.items() if torch.equal(window.flip(2), after)]


@pytest.mark.parametrize(("name", "mirrors"), [("digits", False), ("cifar10", True)])
def test_augmentation_shifts_by_an_eighth_and_mirrors_cifar_only(name, mirrors):
    made = images(name, count=400)
    x = made.train_x + 1  # so that 0 is padding
    found = [shifts(*pair) for pair in zip(x, Pixels(made, CPU).augmented(x, np.random.default_rng(0)), strict=True)]
    assert all(len(options) == 1 for options in found)
    seen = {options[0] for options in found}
    assert len(seen) == 9 * (1 + mirrors)
    assert any(mirrored for *_, mirrored in seen) == mirrors
