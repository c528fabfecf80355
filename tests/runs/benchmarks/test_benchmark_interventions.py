"""The table of what methods cost: every method has a row, and what it does is what the scripts do."""

import runpy

import pytest

from elr.interventions.flags import BASELINES
from runs.benchmarks import interventions
from runs.benchmarks.interventions import AGENTS, NAMES, UPDATES, Args, main, measure


def test_every_method_has_a_row_and_those_that_act_at_a_change_are_timed(capsys):
    main(Args(updates=2, repeats=2))
    rows = [line.strip("| ").split(" | ") for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    table = {row[0]: row[1:] for row in rows[2:]}
    assert tuple(table) == NAMES == ("plain", *BASELINES, "crelu")
    for name, cells in table.items():
        acts = name in BASELINES and BASELINES[name].acts_at in ("change", "trigger")
        for network in (0, 3):
            assert float(cells[network]) > 0
            assert (cells[network + 2] != "–") == acts, name


def test_a_ratio_is_that_of_the_method_to_plain_within_a_pair(monkeypatch):
    """A clock that the updates move: 2 ms plain and 5 ms with the method, and twice that in every second block."""
    clock, blocks = [0.0], [0]

    def make(name):
        def update():
            blocks[0] += 1
            clock[0] += {"plain": 0.002, "redo": 0.005, "fire": 0.002}[name] * (1 + (blocks[0] - 61) // 4 % 2)

        def act():
            clock[0] += 0.25
            return True

        return update, act

    monkeypatch.setattr(interventions.time, "perf_counter", lambda: clock[0])
    found = measure(make, Args(methods=("redo", "fire"), updates=2, repeats=4))
    assert found["redo"][1] == "2.50 [2.50, 2.50]" and found["redo"][2] == "–"
    assert found["fire"][1:] == ["1.00 [1.00, 1.00]", "250.0"]


@pytest.mark.parametrize("network", UPDATES)
def test_the_events_change_weights(network):
    name, make = UPDATES[network]
    script = runpy.run_path(str(AGENTS / f"{name}.py"))
    for method in NAMES:
        update, event = make(script, method)
        update()
        args = BASELINES.get(method)
        assert event() == (args is not None and args.acts_at in ("change", "trigger") and method != "local-time")


@pytest.mark.parametrize("flags", [{"updates": 1}, {"repeats": 1}, {"methods": ("rdo",)}, {"threads": 0}])
def test_what_cannot_be_measured_is_refused(flags):
    with pytest.raises(ValueError, match="--"):
        Args(**flags)
    assert Args().repeats == 5
