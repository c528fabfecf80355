"""The GIF of an evaluation: read back, it shows what the agent saw, at the speed of the game."""

from __future__ import annotations

import errno
import subprocess
import sys

import gymnasium
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode, VectorEnv
from PIL import Image

from runs.recording import RunError, video
from runs.recording.video import MAX_FRAMES, FirstEpisode, write_gif


def noise(count, shape=(84, 84), seed=0):
    """Frames of all 256 greys."""
    return list(np.random.default_rng(seed).integers(256, size=(count, *shape), dtype=np.uint8))


def shown(path):
    """What is on the screen in each hundredth of a second, at the frames' own size."""
    frames = []
    with Image.open(path) as gif:
        for index in range(gif.n_frames):
            gif.seek(index)
            large = np.asarray(gif.convert("RGB"))
            small = large[::2, ::2, 0]
            assert np.array_equal(large, np.kron(small[:, :, None], np.ones((2, 2, 3), np.uint8)))  # doubled, and grey
            frames += [small] * (gif.info["duration"] // 10)
    return frames


def stored(path):
    """Number of frames and their durations in milliseconds."""
    with Image.open(path) as gif:
        return gif.n_frames, [gif.seek(index) or gif.info["duration"] for index in range(gif.n_frames)]


def at_hundredths(frames):
    """The same of the frames that were given: frame i from i/15 s on, to the nearest hundredth."""
    return [frames[int((hundredth + 0.5) * 15 / 100)] for hundredth in range(round(len(frames) * 100 / 15))]


@pytest.mark.parametrize("shape", [(84, 84), (3, 5)])
@pytest.mark.parametrize("count", [1, 2, 31])
def test_frames_are_exact_and_last_a_fifteenth_of_a_second(tmp_path, count, shape):
    frames = noise(count, shape)
    write_gif(tmp_path / "a.gif", frames)
    number, durations = stored(tmp_path / "a.gif")
    assert number == count and durations == ([70, 60, 70] * 11)[:count]
    assert abs(sum(durations) - 1000 * count / 15) <= 5
    assert all(np.array_equal(a, b) for a, b in zip(shown(tmp_path / "a.gif"), at_hundredths(frames), strict=True))
    with Image.open(tmp_path / "a.gif") as gif:
        assert gif.size == (2 * shape[1], 2 * shape[0]) and gif.info["loop"] == 0


@pytest.mark.parametrize("runs", [[1, 3, 2, 1], [5], [1, 4]])
def test_equal_frames_last_as_long_as_separate_ones(tmp_path, runs):
    different = noise(len(runs))
    frames = [frame for frame, times in zip(different, runs, strict=True) for _ in range(times)]
    write_gif(tmp_path / "a.gif", frames)
    assert stored(tmp_path / "a.gif")[0] == len(runs)
    assert all(np.array_equal(a, b) for a, b in zip(shown(tmp_path / "a.gif"), at_hundredths(frames), strict=True))


def test_small_changes_and_single_pixels_are_kept(tmp_path):
    """Only the part that changed is stored; what was there before must stay, black and white included."""
    frames = [np.zeros((84, 84), np.uint8)]
    for step in range(20):
        frames.append(frames[-1].copy())
        frames[-1][step, 83 - step] = 255 if step % 2 else 1
        frames[-1][0, 0] ^= 255
    write_gif(tmp_path / "a.gif", frames)
    assert all(np.array_equal(a, b) for a, b in zip(shown(tmp_path / "a.gif"), at_hundredths(frames), strict=True))


def test_equal_frames_are_equal_bytes_and_replace_the_older_file(tmp_path):
    path = tmp_path / "video" / "step-5.gif"
    write_gif(path, noise(4))
    first = path.read_bytes()
    path.write_bytes(b"half of")
    write_gif(path, noise(4))
    assert path.read_bytes() == first and [one.name for one in path.parent.iterdir()] == ["step-5.gif"]
    write_gif(path, noise(4, seed=1))
    assert path.read_bytes() != first


def test_unwritable_video_directory_is_one_line(tmp_path):
    (tmp_path / "video").write_text("in the way")
    for place in (tmp_path / "video", tmp_path / "gone" / "video"):
        with pytest.raises(RunError, match=r"^cannot write step-5\.gif in .*video: .+$"):
            write_gif(place / "step-5.gif", noise(2))


def test_full_disk_keeps_the_older_video(tmp_path, monkeypatch):
    write_gif(tmp_path / "a.gif", noise(2))
    before = (tmp_path / "a.gif").read_bytes()

    def full(handle):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(RunError, match=r"^cannot write a\.gif in .*: No space left on device$"):
        write_gif(tmp_path / "a.gif", noise(3))
    assert (tmp_path / "a.gif").read_bytes() == before and len(list(tmp_path.iterdir())) == 1


def test_pillow_is_imported_only_to_write_a_file():
    code = "import sys, runs.recording.video as r; assert 'PIL' not in sys.modules, 'imported'; r.FirstEpisode"
    subprocess.run([sys.executable, "-c", code], check=True)


# the first episode


class Numbered(VectorEnv):
    """The newest frame is number 10 * copy + step of the episode; copy i's episodes end after lengths[i] steps."""

    def __init__(self, lengths, truncates=False):
        self.truncates = np.array([truncates, *[True] * (len(lengths) - 1)])
        self.lengths, self.num_envs = np.array(lengths), len(lengths)
        self.single_action_space = gymnasium.spaces.Discrete(2)
        self.single_observation_space = gymnasium.spaces.Box(0, 255, (4, 6, 6), np.uint8)
        self.metadata = {"autoreset_mode": AutoresetMode.SAME_STEP}
        self.t, self.screen = np.zeros(self.num_envs, int), np.zeros((self.num_envs, 4, 6, 6), np.uint8)

    def stacks(self):
        """In one array that is used again and again."""
        self.screen[:, :-1] = 200
        self.screen[:, -1] = (10 * np.arange(self.num_envs) + self.t)[:, None, None]
        return self.screen

    def reset(self, *, seed=None, options=None):
        self.seed, self.t[:] = seed, 0
        return self.stacks(), {"told": seed}

    def step(self, actions):
        self.t += 1
        ended = self.t == self.lengths
        infos = {"final_obs": self.stacks().copy(), "_final_obs": ended} if ended.any() else {}
        self.t[ended] = 0
        truncated = ended & self.truncates
        return self.stacks(), actions * 1.5, ended & ~truncated, truncated, infos


def numbers(frames):
    return [int(np.unique(frame).item()) for frame in frames]


@pytest.mark.parametrize("truncates", [False, True])
def test_first_episode_of_environment_0_is_kept_with_its_last_frame(truncates):
    env = FirstEpisode(Numbered([3, 2], truncates))
    env.reset(seed=1)
    for _ in range(8):
        env.step(np.zeros(2, int))
    assert numbers(env.frames) == [0, 1, 2, 3] and all(frame.shape == (6, 6) for frame in env.frames)
    assert all(frame.base is None for frame in env.frames)  # a view would keep its whole stack
    env.reset(seed=2)
    env.step(np.zeros(2, int))
    assert numbers(env.frames) == [0, 1]  # an episode that still runs


def test_everything_else_is_unchanged():
    bare, filmed = Numbered([3, 2]), FirstEpisode(Numbered([3, 2]))
    assert filmed.num_envs == 2 and filmed.single_action_space == bare.single_action_space
    for one, other in zip(bare.reset(seed=7), filmed.reset(seed=7), strict=True):
        assert np.array_equal(one, other)
    assert filmed.env.seed == 7
    for step in range(7):
        actions = np.array([step % 2, 1])
        *parts, infos = bare.step(actions)
        *others, other_infos = filmed.step(actions)
        assert all(np.array_equal(one, other) for one, other in zip(parts, others, strict=True))
        assert infos.keys() == other_infos.keys() and all(np.array_equal(infos[k], other_infos[k]) for k in infos)


def test_first_frames_of_a_long_episode_are_kept(tmp_path, monkeypatch):
    assert MAX_FRAMES == 3 * 60 * 15  # three minutes, as the flag says
    monkeypatch.setattr(video, "MAX_FRAMES", 5)
    env = FirstEpisode(Numbered([200]))
    env.reset()
    for _ in range(40):
        env.step(np.zeros(1, int))
    assert numbers(env.frames) == [0, 1, 2, 3, 4]
    env.write(tmp_path / "a.gif")
    assert stored(tmp_path / "a.gif") == (5, [70, 60, 70, 70, 60])


def test_video_without_frames_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="no frames"):
        FirstEpisode(Numbered([3])).write(tmp_path / "video" / "a.gif")
    assert not list(tmp_path.iterdir())
