"""The command line: presets, conflicts, errors in one line, resuming, and configurations as JSON."""

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runs.recording import Preset, Run, RunError, config_from_dict, config_to_dict, parse
from runs.recording.flag_help import families


@dataclass(frozen=True)
class Rewarm:
    """Re-warming."""

    trigger: Literal["never", "every", "cusum"] = "never"
    """what restarts the schedule"""
    every: int | None = None
    """updates between restarts"""
    moments: bool = True
    """keep Adam's moments"""


@dataclass(frozen=True)
class Args:
    """A script's flags."""

    seed: int = 0
    """seed of all streams"""
    seeds: tuple[int, ...] = ()
    """several seeds"""
    learning_rate: float = 1e-3
    """rate at the start"""
    normalise: bool = True
    """LayerNorm before each nonlinearity"""
    sizes: tuple[int, ...] = (64, 64)
    """hidden widths"""
    span: tuple[float, str] = (0.5, "x")
    """a pair"""
    data: Path = Path("data")
    """where the data is"""
    directory: Path | None = None
    """of the run"""
    resume: Path | None = None
    """continue this run"""
    rewarm: Rewarm = field(default_factory=Rewarm)

    LATER: ClassVar[tuple[str, ...]] = ("seeds",)

    def __post_init__(self):
        if (self.rewarm.trigger == "every") != (self.rewarm.every is not None):
            raise ValueError("--rewarm.every and --rewarm.trigger every\ngo together")


PRESETS = {
    "nap-cyclic": Preset("projection, a cycle of 5 updates", Args(rewarm=Rewarm("every", 5))),
    "baseline": Preset("plain", Args()),
}


def read(*words):
    return parse(Args, PRESETS, words, "Trains a thing.")


def refused(capsys, *words):
    with pytest.raises(SystemExit) as caught:
        read(*words)
    assert caught.value.code == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1 and "Traceback" not in message
    return message


def test_defaults_preset_and_flags_over_a_preset():
    assert read() == Args()
    assert read("nap-cyclic") == PRESETS["nap-cyclic"].args
    assert read("nap-cyclic", "--seed", "3", "--rewarm.every", "7") == Args(seed=3, rewarm=Rewarm("every", 7))
    assert read("--no-normalise", "--sizes", "1", "2", "3") == Args(normalise=False, sizes=(1, 2, 3))
    assert type(read("nap-cyclic")) is Args


def test_unknown_preset_gets_a_list_and_a_suggestion(capsys):
    message = refused(capsys, "nap-cyclc", "--seed", "3")
    assert "nap-cyclic, baseline" in message and "did you mean nap-cyclic?" in message


def test_conflicting_flags_are_refused_and_the_preset_is_named(capsys):
    assert "go together" in refused(capsys, "--rewarm.trigger", "every")
    message = refused(capsys, "nap-cyclic", "--rewarm.every", "None")
    assert "go together (flags not on your command line come from the preset nap-cyclic)" in message


def test_mistyped_flags_and_values_are_refused_in_one_line(capsys):
    assert "unknown flag --sede; did you mean --seed?" in refused(capsys, "--sede", "3")
    assert "unknown flag --rewarm.evry; did you mean --rewarm.every?" in refused(capsys, "--rewarm.evry=3")
    assert "did you mean --rewarm.no-moments?" in refused(capsys, "--no-rewarm.moments")
    assert "unknown flag --cuda; give --device cpu or" in refused(capsys, "--cuda", "False")
    assert "unknown flag --zzz; --help lists all flags" in refused(capsys, "--zzz")
    assert "--seed" in refused(capsys, "--seed", "three")
    assert "--rewarm.trigger" in refused(capsys, "--rewarm.trigger", "sometimes")


def test_flags_may_be_written_with_underscores_and_equals_signs():
    assert read("--learning_rate=0.5", "--no_normalise") == Args(learning_rate=0.5, normalise=False)


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--seed", "4"], "--seeds and --seed cannot be given together: list every seed after --seeds"),
        (["--seed=4"], "--seeds and --seed cannot"),
        (["--resume", "RUN"], "--seeds and --resume cannot be given together: a run is resumed on its own"),
        (["--directory", "x"], "--seeds and --directory cannot"),
    ],
)
def test_several_seeds_go_with_no_flag_of_a_single_run(capsys, words, named):
    assert read("--seeds", "1", "2", "--no-normalise") == Args(seeds=(1, 2), normalise=False)
    assert named in refused(capsys, "--seeds", "1", "2", *words)
    assert named in refused(capsys, "nap-cyclic", *words, "--seeds", "1", "2")


def test_several_seeds_are_at_least_one(capsys):
    assert "--seeds needs numbers" in refused(capsys, "--seeds")
    assert "--seeds needs numbers" in refused(capsys, "--seeds", "--no-normalise")


@pytest.mark.parametrize("words", [["1,2"], ["1,", "2"], ["1", "2,"], ["--seeds=1,2"]])
def test_seeds_with_commas_get_a_hint(capsys, words):
    words = words if words[0].startswith("-") else ["--seeds", *words]
    message = refused(capsys, *words, "--sizes", "3", "4")
    assert message.endswith("--seeds takes numbers with spaces between them: --seeds 1 2\n")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--seed", "1", "baseline"], "the preset baseline must be the first word"),
        (["nap", "cyclic"], "unknown preset 'nap'"),
        (["nap-cyclic", "baseline"], "only one preset can be given, got nap-cyclic and baseline"),
        (["--rewarm.moments", "True"], "--rewarm.moments takes no value, got True: give --rewarm.moments, or "
            "--rewarm.no-moments to turn it off"),
        (["--no-normalise=1"], "--no-normalise takes no value, got 1: give --normalise, or --no-normalise to turn"),
        (["--seed", "1e6"], "--seed is a whole number: write 1000000 for 1e6"),
        (["--rewarm.every=2.0"], "--rewarm.every is a whole number: write 2 for 2.0"),
        (["--sizes", "3", "1e2"], "--sizes is a whole number: write 100 for 1e2"),
        (["--seed", "1", "2"], "'2' belongs to no flag: --seed is complete without it"),
        (["--span", "1", "a", "b"], "'b' belongs to no flag: --span is complete"),
        (["--num-envs", "8"], "unknown flag --num-envs; the PPO and Atari scripts step several environments"),
        (["--torch-deterministic"], "unknown flag --torch-deterministic; runs on a CPU repeat exactly"),
        (["--capture-video"], "unknown flag --capture-video; `python -m runs evaluate RUN --video` films"),
    ],
)  # fmt: skip
def test_common_mistakes_get_a_hint(capsys, words, message):
    assert message in refused(capsys, *words)


def test_two_presets_that_are_one_are_joined(capsys):
    with pytest.raises(SystemExit):
        parse(Args, {**PRESETS, "nap": PRESETS["baseline"], "cyclic": PRESETS["baseline"]}, ["nap", "cyclic"])
    assert "got nap and cyclic; did you mean nap-cyclic?" in capsys.readouterr().err


def test_a_flag_that_has_another_name_here_is_named(capsys):
    @dataclass(frozen=True)
    class Filmed(Args):
        record_video: bool = False

    with pytest.raises(SystemExit):
        parse(Filmed, {}, ["--capture-video"])
    assert "unknown flag --capture-video; give --record-video" in capsys.readouterr().err


def shown(capsys, *words):
    """What a command line that asks for help prints."""
    with pytest.raises(SystemExit) as caught:
        read(*words)
    assert caught.value.code == 0
    return capsys.readouterr().out


def words_of(text):
    return " ".join(text.split())


def test_help_shows_usage_example_presets_flags_and_groups_folded(capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["agents/x.py"])
    text = words_of(shown(capsys, "--help"))
    for expected in (
        "usage: agents/x.py [PRESET] [--flag value ...]",
        "example: python agents/x.py nap-cyclic --seed 2",
        "Trains a thing.",
        " nap-cyclic, baseline",
        "seed of all streams [default: 0]",
        "LayerNorm before each nonlinearity [on by default; --no-normalise]",
        "--rewarm.* Re-warming. [--help-rewarm]",
    ):
        assert expected in text
    assert "--rewarm.trigger" not in text and "a cycle of 5" not in text
    assert words_of(shown(capsys, "-h")) == text


def test_help_of_a_group_has_the_defaults_of_the_preset(capsys):
    text = words_of(shown(capsys, "nap-cyclic", "--help-rewarm"))
    assert "updates between restarts [default: 5]" in text
    assert "what restarts the schedule [default: every; one of never, every, cusum]" in text
    assert "--seed" not in text


def test_help_of_presets_and_of_everything(capsys):
    assert "nap-cyclic  projection, a cycle of 5 updates" in shown(capsys, "--help-presets")
    text = shown(capsys, "--help-all")
    for expected in (
        "nap-cyclic  projection, a cycle of 5",
        "seed of all streams",
        "--rewarm.trigger",
        "Trains a thing",
    ):
        assert expected in text


def test_an_unknown_topic_of_help_gets_a_list(capsys):
    assert "there is no --help-nap; there are --help, --help-all, --help-presets, --help-rewarm" in refused(
        capsys, "--help-nap"
    )


def test_presets_are_folded_by_their_first_word():
    assert families(["a", "nap", "b-1", "b-2", "nap-x", "b-3-c"]) == ["a, nap, nap-x", "b-{1, 2, 3-c}"]


@pytest.fixture
def run_dir(tmp_path):
    args = Args(seed=4, learning_rate=0.1, rewarm=Rewarm("every", 9))
    run = Run.create(tmp_path / "run", config_to_dict(args), argv=["script.py"])
    run.checkpoint(1, {})
    run.interrupt(1)
    return run.directory


def test_resume_takes_the_recorded_flags(run_dir):
    expected = Args(seed=4, learning_rate=0.1, rewarm=Rewarm("every", 9), resume=run_dir)
    assert read("--resume", str(run_dir)) == expected
    assert read(f"--resume={run_dir}", "--seed", "4", "--learning-rate", "1e-1") == expected
    assert read("--resume", "None") == Args()


@pytest.mark.parametrize(
    "words, named",
    [
        (["--seed", "5"], ["--seed is 4", "5 was asked"]),
        (["--learning_rate", "0.2"], ["--learning-rate is 0.1", "0.2 was asked"]),
        (["--rewarm.every", "10"], ["--rewarm.every is 9", "10 was asked"]),
        (["--rewarm.trigger", "never"], ["--rewarm.trigger is 'every'", "'never' was asked"]),  # a conflict, too
        (["--seed", "0"], ["--seed is 4", "0 was asked"]),  # the script's default is a difference, too
    ],
)
def test_resume_refuses_a_flag_that_differs(capsys, run_dir, words, named):
    message = refused(capsys, "--resume", str(run_dir), *words)
    assert all(part in message for part in named)


def test_resume_refuses_presets_and_directories_without_a_run(capsys, monkeypatch, run_dir, tmp_path):
    monkeypatch.setattr("sys.argv", ["script.py"])
    assert "preset baseline" in refused(capsys, "baseline", "--resume", str(run_dir))
    assert "no such directory" in refused(capsys, "--resume", str(tmp_path / "none"))
    assert "no config.json" in refused(capsys, "--resume", str(tmp_path))
    (run_dir / "config.json").write_text("{")
    message = refused(capsys, "--resume", str(run_dir))
    assert f"cannot resume {run_dir}: {run_dir}/config.json is not valid JSON" in message


@pytest.mark.parametrize(("flag", "action"), [("--resume", "resume"), ("--branch", "branch from")])
def test_a_run_whose_flags_are_not_those_of_the_script_is_named(capsys, monkeypatch, run_dir, flag, action):
    monkeypatch.setattr("sys.argv", ["script.py"])
    config = config_to_dict(Args())
    later = " (flags that the script has gained since can be named in Args.LATER)\n"
    (run_dir / "config.json").write_text(json.dumps({key: config[key] for key in config if key != "span"}))
    message = refused(capsys, flag, str(run_dir))
    assert message.endswith(f": cannot {action} {run_dir}: the configuration has missing keys: span{later}")
    (run_dir / "config.json").write_text(json.dumps({**config, "old": 1}))
    message = refused(capsys, flag, str(run_dir))
    assert message.endswith(f": cannot {action} {run_dir}: the configuration has unknown keys: old\n")


def test_a_run_of_another_script_is_named(capsys, monkeypatch, run_dir):
    monkeypatch.setattr("sys.argv", ["agents/other.py"])
    (run_dir / "config.json").write_text(json.dumps({"seed": 4, "width": 3}))
    message = refused(capsys, "--resume", str(run_dir))
    assert f"cannot resume {run_dir} with other.py: script.py made this run; the configuration has" in message


@given(
    st.builds(
        Args,
        seed=st.integers(),
        learning_rate=st.floats(allow_nan=False),
        normalise=st.booleans(),
        sizes=st.lists(st.integers()).map(tuple),
        span=st.tuples(st.floats(allow_nan=False), st.text()),
        data=st.sampled_from([Path("a/b"), Path("."), Path("/ä b")]),
        resume=st.sampled_from([None, Path("x")]),
        rewarm=st.sampled_from([Rewarm(), Rewarm("cusum"), Rewarm("every", 3)]),
    )
)
def test_configuration_is_the_same_after_json(args):
    assert config_from_dict(Args, json.loads(json.dumps(config_to_dict(args)))) == args


@pytest.mark.parametrize(
    "change, message",
    [
        ({"seeds": [1.5]}, "seeds is 1.5, which is not int"),
        ({"seed": 1.5}, "seed is 1.5, which is not int"),
        ({"seed": True}, "seed is True"),
        ({"normalise": 1}, "normalise is 1"),
        ({"sizes": [1, "2"]}, "sizes is '2'"),
        ({"span": [1.0]}, "span"),
        ({"data": 3}, "data is 3"),
        ({"resume": 3}, "resume is 3"),
        ({"rewarm": 3}, "rewarm is 3"),
        ({"rewarm": {"trigger": "sometimes", "every": None, "moments": True}}, r"rewarm\.trigger is 'sometimes'"),
        ({"rewarm": {"trigger": "never", "moments": True}}, "missing keys in rewarm: every"),
        ({"sede": 3}, "unknown keys: sede"),
    ],
)
def test_configuration_that_does_not_fit_is_refused(change, message):
    with pytest.raises(RunError, match=message):
        config_from_dict(Args, {**config_to_dict(Args()), **change})
    with pytest.raises(RunError, match="missing keys: seed"):
        config_from_dict(Args, {k: v for k, v in config_to_dict(Args()).items() if k != "seed"})


def test_a_configuration_from_before_a_flag_that_decides_no_number_has_its_default():
    config = {key: value for key, value in config_to_dict(Args(seed=3)).items() if key != "seeds"}
    assert config_from_dict(Args, config) == Args(seed=3)


def test_values_that_json_cannot_hold_are_refused():
    with pytest.raises(ValueError, match="data is a set"):
        config_to_dict(replace(Args(), data={1}))
