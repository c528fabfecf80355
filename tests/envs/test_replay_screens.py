"""Frames on the host and on a device hold and give the same."""

import numpy as np
import pytest
import torch

from envs.replay.screens import DeviceScreens, HostScreens, screens, size_of

SHAPE = (50, 6, 5)
CPU, GPU = torch.device("cpu"), torch.device("cuda")


def two():
    return HostScreens(SHAPE), DeviceScreens(SHAPE, CPU)


def test_what_is_written_is_read_at_its_place():
    rng = np.random.default_rng(0)
    literal = {}
    host, device = two()
    for _ in range(12):
        places = rng.choice(50, size=rng.integers(1, 9), replace=False)
        frames = rng.integers(256, size=(len(places), 6, 5), dtype=np.uint8)
        literal |= dict(zip(places.tolist(), frames, strict=True))
        for each in (host, device):
            each.write(places, frames)
    places = np.array(list(literal))
    for each in (host, device):
        assert np.array_equal(each.read(places), [literal[p] for p in places])
        empty = np.setdiff1d(np.arange(50), places)
        assert len(empty) and not each.read(empty).any()


def test_stacks_are_the_frames_and_zeros_where_they_are_blank():
    rng = np.random.default_rng(1)
    frames = rng.integers(1, 256, size=SHAPE, dtype=np.uint8)
    places, blank = rng.integers(50, size=(7, 4)), rng.random((7, 4)) < 0.4
    assert blank.any() and not blank.all()
    for each in two():
        each.write(np.arange(50), frames)
        stacks = np.asarray(each.stacks(places, blank))
        for b in range(7):
            for k in range(4):
                assert np.array_equal(stacks[b, k], 0 * frames[0] if blank[b, k] else frames[places[b, k]])
        assert np.array_equal(each.read(np.arange(50)), frames)  # blanks are zeroed in the batch only


def test_frames_of_a_view_are_written():
    """The newest of each stack is not contiguous in memory."""
    stacks = np.random.default_rng(2).integers(256, size=(3, 4, 6, 5), dtype=np.uint8)
    for each in two():
        each.write(np.array([4, 9, 0]), stacks[:, -1])
        assert np.array_equal(each.read(np.array([4, 9, 0])), stacks[:, -1])


@pytest.mark.parametrize(("free", "kind"), [(2 * size_of(SHAPE), DeviceScreens), (2 * size_of(SHAPE) - 1, HostScreens)])
def test_auto_takes_a_gpu_if_half_of_its_free_memory_is_enough(monkeypatch, free, kind):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, 10 * free))
    monkeypatch.setattr(DeviceScreens, "__init__", lambda self, shape, device: None)
    assert type(screens(SHAPE, "auto", GPU)) is kind


def test_auto_takes_the_host_where_there_is_no_gpu():
    assert type(screens(SHAPE, "auto", CPU)) is HostScreens
    assert type(screens(SHAPE, "device", CPU)) is DeviceScreens
    assert type(screens(SHAPE, "host", CPU)) is HostScreens


def test_too_little_memory_is_one_line():
    with pytest.raises(ValueError, match=r"--replay-device device: no 50000000000\.0 GB") as error:
        DeviceScreens((10**10, 10**5, 5 * 10**4), CPU)
    assert "\n" not in str(error.value) and "--buffer-size" in str(error.value)
