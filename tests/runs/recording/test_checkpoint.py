"""Checkpoints: exact round trips, no damage goes unnoticed, a full disk costs nothing but the new one."""

import errno
import os
import random
import resource

import numpy as np
import pytest
import torch

from runs.recording import RunError, load_checkpoint, restore_rng, rng_state, save_checkpoint
from runs.recording import files as files_module

STATE = {
    "weights": {"fc.weight": torch.arange(6.0).view(2, 3), "half": torch.ones(2, dtype=torch.bfloat16)},
    "step": 12345678901,
    "big": 2**127 + 1,
    "rate": 0.1 + 0.2,
    "values": (float("inf"), -0.0, None, True, "naïve"),
    "by_index": {0: [1, 2], 1: []},
    "uint32": np.array([0, 2**32 - 1], dtype=np.uint32),
    "bool": np.array([[True], [False]]),
    "swapped": np.array([1, 258], dtype=">i2"),
    "empty": np.zeros((0, 3), dtype=np.float16),
    "fortran": np.asfortranarray(np.arange(6).reshape(2, 3)),
    "scalar": np.int64(-7),
    "float32": np.float32(0.1),
}


def assert_same(a, b):
    assert type(a) is type(b)
    if isinstance(a, dict):
        assert list(a) == list(b)
        for key in a:
            assert_same(a[key], b[key])
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            assert_same(x, y)
    elif isinstance(a, torch.Tensor):
        assert a.dtype == b.dtype and torch.equal(a, b)
    elif isinstance(a, np.ndarray):
        assert a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes() and b.flags.writeable
    else:
        assert repr(a) == repr(b)


def saved(tmp_path, state=STATE):
    path = tmp_path / "checkpoint.pt"
    save_checkpoint(path, state)
    return path


def test_every_kind_of_plain_data_is_restored_exactly(tmp_path):
    assert_same(STATE, load_checkpoint(saved(tmp_path)))


def test_optimiser_state_is_restored(tmp_path):
    def build():
        layer = torch.nn.Linear(3, 2)
        return layer, torch.optim.Adam(layer.parameters(), lr=0.01)

    layer, optimizer = build()
    layer(torch.ones(4, 3)).sum().backward()
    optimizer.step()
    loaded = load_checkpoint(saved(tmp_path, {"net": layer.state_dict(), "adam": optimizer.state_dict()}))
    twin, twin_optimizer = build()
    twin.load_state_dict(loaded["net"])
    twin_optimizer.load_state_dict(loaded["adam"])
    for net, opt in ((layer, optimizer), (twin, twin_optimizer)):
        opt.zero_grad()
        net(torch.full((4, 3), 2.0)).sum().backward()
        opt.step()
    assert torch.equal(layer.weight, twin.weight)


@pytest.mark.parametrize(
    "make",
    [
        lambda seed: np.random.default_rng(seed),
        lambda seed: np.random.Generator(np.random.MT19937(seed)),
        lambda seed: np.random.Generator(np.random.Philox(seed)),
        lambda seed: np.random.RandomState(seed),
        lambda seed: torch.Generator().manual_seed(seed),
        lambda seed: random.Random(seed),
    ],
)
def test_restored_generator_draws_what_the_saved_one_draws_next(tmp_path, make):
    def draw(g):
        if isinstance(g, torch.Generator):
            return torch.randn(5, generator=g).tolist()
        if isinstance(g, random.Random):
            return [g.gauss(0, 1) for _ in range(5)]
        return [float(g.normal()) for _ in range(5)]

    generator = make(1)
    draw(generator)  # an odd number of normals: the cached second one of RandomState is part of the state
    path = saved(tmp_path, {"rng": rng_state(generator)})
    expected, other = draw(generator), make(2)
    restore_rng(other, load_checkpoint(path)["rng"])
    assert draw(other) == expected
    assert draw(make(2)) != expected


def test_state_of_another_kind_of_generator_is_refused():
    with pytest.raises(RunError, match=r"PCG64.*random\.Random"):
        restore_rng(random.Random(0), rng_state(np.random.default_rng(0)))
    with pytest.raises(ValueError, match="not a generator"):
        rng_state(object())


@pytest.mark.parametrize(
    "bad", [object(), {1, 2}, b"raw", np.array([None]), {"__numpy_array__": 1}, torch.device("cpu")]
)
def test_values_that_are_not_plain_data_are_refused_with_their_place(tmp_path, bad):
    with pytest.raises(ValueError, match=r"state\['agent'\]\[1\]"):
        save_checkpoint(tmp_path / "c", {"agent": [0, bad]})
    assert os.listdir(tmp_path) == []


def test_view_is_saved_without_its_whole_storage(tmp_path):
    path = saved(tmp_path, {"row": torch.zeros(1000, 1000)[3]})
    assert path.stat().st_size < 20_000


def test_every_truncation_is_detected(tmp_path):
    path = saved(tmp_path)
    data = path.read_bytes()
    for length in [*range(0, 80), *range(80, len(data), 97), len(data) - 1]:
        path.write_bytes(data[:length])
        with pytest.raises(RunError, match="is empty" if length == 0 else "is truncated") as caught:
            load_checkpoint(path)
        assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_every_altered_byte_is_detected(tmp_path):
    path = saved(tmp_path)
    data = path.read_bytes()
    for position in [*range(0, 64), *range(64, len(data), 53), len(data) - 1]:
        path.write_bytes(data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :])
        with pytest.raises(RunError, match=str(path)):
            load_checkpoint(path)
    path.write_bytes(data + b"x")
    with pytest.raises(RunError, match="too long"):
        load_checkpoint(path)
    path.write_bytes(data)  # control: the untouched bytes load
    assert_same(STATE, load_checkpoint(path))


def test_foreign_and_missing_files_are_refused(tmp_path):
    path = tmp_path / "foreign.pt"
    torch.save({"a": 1}, path)
    with pytest.raises(RunError, match="is not a checkpoint"):
        load_checkpoint(path)
    with pytest.raises(RunError, match="No such file"):
        load_checkpoint(tmp_path / "missing.pt")


def no_space(*args):
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("function", ["fsync", "replace"])
def test_full_disk_keeps_the_previous_checkpoint(tmp_path, monkeypatch, function):
    path = saved(tmp_path, {"step": 1})
    with monkeypatch.context() as patch:
        patch.setattr(files_module.os, function, no_space)
        with pytest.raises(RunError, match=f"cannot write checkpoint.pt in {tmp_path}: No space left"):
            save_checkpoint(path, {"step": 2})
    assert load_checkpoint(path) == {"step": 1}
    assert os.listdir(tmp_path) == ["checkpoint.pt"]


def test_write_that_fails_half_way_keeps_the_previous_checkpoint(tmp_path):
    path = saved(tmp_path, {"step": 1})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(RunError, match=f"cannot write checkpoint.pt in {tmp_path}: File too large"):
            save_checkpoint(path, {"step": 2, "replay": torch.zeros(1_000_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert load_checkpoint(path) == {"step": 1}
    assert os.listdir(tmp_path) == ["checkpoint.pt"]


def test_interrupted_write_keeps_the_previous_checkpoint(tmp_path, monkeypatch):
    path = saved(tmp_path, {"step": 1})

    def interrupted(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(files_module.os, "fsync", interrupted)
        with pytest.raises(KeyboardInterrupt):
            save_checkpoint(path, {"step": 2})
    assert load_checkpoint(path) == {"step": 1} and os.listdir(tmp_path) == ["checkpoint.pt"]
