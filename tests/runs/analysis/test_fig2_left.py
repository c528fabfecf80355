"""Figure 2 (left): settings, means, table and errors."""

from pathlib import Path

import pytest

from runs.analysis import fig2_left
from runs.analysis.fig2_left import Setting
from runs.recording import Run, RunError


def recorded(
    directory: Path, accuracies, *, projected=True, rate=1e-2, decay=1.0, norm=False, tag="test/accuracy", seed=1,
    p=117, every=100,
):  # fmt: skip
    config = {
        "p": p,
        "operation": "add",
        "train_fraction": 0.2,
        "batch_size": 512,
        "seed": seed,
        "nap": {"enabled": projected, "every": every},
        "learning_rate": rate,
        "weight_decay": decay,
        "norm": {"before_mlp": norm},
    }
    with Run.create(directory, config, argv=["x.py"]) as run:
        for step, value in accuracies:
            run.scalar(tag, value, step)
    return directory


def test_value_at_and_mean_by_hand():
    curve = [(10, 0.1), (100, 0.5), (1000, 0.9)]
    assert [fig2_left.value_at(curve, u) for u in (9, 10, 99, 100, 1000, 1001)] == [None, 0.1, 0.1, 0.5, 0.9, None]
    assert fig2_left.mean_curve([[(1, 0.0), (2, 0.4)], [(2, 0.8), (3, 1.0)]]) == [(2, pytest.approx(0.6))]


def test_published_numbers_are_read():
    reference = fig2_left.read_reference()
    assert dict(reference[Setting(True, 0.01, 0.01)])[5000] == 0.99
    assert dict(reference[Setting(False, 0.001, 0.01)]) == {1_000_000: 0.146}
    assert sum(map(len, reference.values())) == 31


def test_table_has_our_and_published_numbers_and_n(tmp_path):
    runs = fig2_left.read_runs(
        [
            recorded(tmp_path / "a", [(1000, 0.5), (5000, 0.7)]),
            recorded(tmp_path / "b", [(1000, 0.7), (5000, 0.9)], seed=2),
            recorded(tmp_path / "c", [(1000, 0.125)], projected=False, rate=1e-3, decay=0.01),
        ]
    )
    lines = fig2_left.table(runs, fig2_left.read_reference(), (1000, 5000)).splitlines()
    assert lines[2] == "| renormalised | 0.01 | 1 | 2 | 0.600 (0.926) | 0.800 (0.944) |"
    assert lines[3] == "| unconstrained | 0.001 | 0.01 | 1 | 0.125 | – |"


def test_fig2_left_picture_is_written(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    out = tmp_path / "fig.png"
    fig2_left.main(fig2_left.Args((recorded(tmp_path / "a", [(10, 0.5), (100, 0.7)]),), out=out))
    assert out.stat().st_size > 10_000 and f"wrote {out}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"rate": 0.5}, "not a setting of fig2-left"),
        ({"norm": True}, "norm layers"),
        ({"p": 23}, "not .117"),
        ({"every": 1}, "projected every 1 updates"),
        ({"tag": "train/accuracy"}, "no test/accuracy"),
    ],
)
def test_runs_of_other_settings_are_refused(tmp_path, changed, message):
    with pytest.raises(RunError, match=message):
        fig2_left.read_runs([recorded(tmp_path / "a", [(1, 0.5)], **changed)])


def test_run_of_another_script_is_refused(tmp_path):
    with Run.create(tmp_path / "a", {"seed": 1}, argv=["x.py"]) as run:
        run.scalar("test/accuracy", 0.5, 1)
    with pytest.raises(RunError, match=r"not a run of agents/grokking\.py"):
        fig2_left.read_runs([tmp_path / "a"])


def test_no_runs_and_repeated_seeds_are_refused(tmp_path):
    with pytest.raises(RunError, match="no runs to draw"):
        fig2_left.read_runs([])
    one = recorded(tmp_path / "a", [(1, 0.5)])
    with pytest.raises(RunError, match="another run of seed 1"):
        fig2_left.read_runs([one, one])


def test_presets_are_the_settings_of_the_figure():
    from agents.grokking import PRESETS

    for name, preset in PRESETS.items():
        if name.startswith("fig2-left"):
            a = preset.args
            assert (a.p, a.operation, a.train_fraction, a.batch_size) == fig2_left.TASK and a.nap.every in (1, 100)
