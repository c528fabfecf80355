"""The table of what methods cost: every method has a row, and those that act at a change are timed while they act."""

import runpy

import pytest

from elr.interventions.flags import BASELINES, InterveneArgs
from runs.benchmarks import interventions
from runs.benchmarks.interventions import Args, main, make_update


def test_every_method_has_a_row_and_those_that_act_at_a_change_are_timed(capsys):
    main(Args(updates=2, repeats=2))
    rows = [line.split(" | ") for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    table = {row[0].strip("| "): row[1:] for row in rows[2:]}
    assert list(table) == ["plain", *BASELINES]
    assert table["plain"][1] == "1.00 [1.00, 1.00]"
    for name, args in BASELINES.items():
        assert (table[name][2].strip("| ") != "–") == (args.acts_at in ("change", "trigger")), name


def test_the_events_change_weights():
    script = runpy.run_path(str(interventions.SCRIPT))
    for name, args in BASELINES.items():
        update, event = make_update(script, args)
        update()
        acts = args.acts_at in ("change", "trigger") and name != "local-time"
        assert event() == acts, name
    update, event = make_update(script, InterveneArgs())
    assert not event()


@pytest.mark.parametrize("flags", [{"updates": 1}, {"repeats": 0}, {"methods": ("rdo",)}, {"threads": 0}])
def test_what_cannot_be_measured_is_refused(flags):
    with pytest.raises(ValueError, match="--"):
        Args(**flags)
    assert interventions.Args().repeats == 5
