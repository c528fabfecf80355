"""The tables of claims in README.md and docs/claims.md."""

import json
import re

import pytest

from runs.figures import claims
from runs.recording import RunError
from runs.sweeps.experiment import load, names


def record(folder, name, **changes):
    folder.mkdir(exist_ok=True)
    one = {
        "experiment": "fig3", "scale": "laptop", "claim": "High is better.", "source": "ours", "seeds": 2,
        "outcome": "reproduced", "reason": "high ends above low", **changes,
    }  # fmt: skip
    (folder / f"{name}.json").write_text(json.dumps(one))


def test_tables_are_rewritten_from_the_verdicts(tmp_path):
    record(tmp_path / "out", "fig3-laptop")
    record(tmp_path / "out", "fig4-smoke", outcome=None, reason=None)  # a page without a verdict is left out
    readme, every = tmp_path / "README.md", tmp_path / "claims.md"
    readme.write_text(f"before\n{claims.BEGIN}\nold\n{claims.END}\nafter\n")
    for _ in range(2):
        claims.write_claims(readme, tmp_path / "out", every)
        link = f"[reproduced](runs/results/fig3-laptop.md){claims.EARLIER}"  # its claim is not the experiment's
        row = f"| High is better. | ours | laptop | 2 seeds | {link} |"
        table = f"| claim | source | scale | n | verdict |\n|---|---|---|---|---|\n{row}"
        assert readme.read_text() == f"before\n{claims.BEGIN}\n{table}\n{claims.END}\nafter\n"
    rows = every.read_text().splitlines()
    (row,) = [row for row in rows if row.startswith("| `fig3` |")]
    assert "[reproduced](../runs/results/fig3-laptop.md), laptop; judged by an earlier rule" in row
    assert row.endswith(" | High ends above low |")
    (row,) = [row for row in rows if row.startswith("| `fig4` |")]
    assert "| – | not run | laptop: " in row and "paper: " in row and "GPU-hours" in row
    readme.write_text("nothing")
    with pytest.raises(RunError, match="no place for the table of claims"):
        claims.write_claims(readme, tmp_path / "out", every)


def test_every_experiment_has_a_row_and_the_figures_come_in_order():
    rows = [row for row in claims.everything().splitlines() if row.startswith("| `")]
    assert {row.split("`")[1] for row in rows} == set(names())
    ordered = [row.split("`")[1] for row in rows if "Lyle" in load(row.split("`")[1]).source]
    figures = [int(re.findall(r"Figs?\. (\d+)|$", load(name).source)[0] or 99) for name in ordered]
    assert figures == sorted(figures) and {2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 13} <= set(figures)


def test_the_tables_are_made_of_the_results():
    readme = claims.README.read_text(encoding="utf-8")
    assert readme.split(claims.BEGIN)[1].split(claims.END)[0].strip() == claims.claims()
    assert claims.EVERYTHING.read_text(encoding="utf-8") == claims.everything()
    for path in claims.RESULTS.glob("*.json"):
        page = path.with_suffix(".md").read_text()
        one = json.loads(path.read_text())
        assert f"# {one['experiment']}, {one['scale']}\n" in page and one["claim"] in page
        assert f"**Verdict: {one['outcome']}.**" in page or one["outcome"] is None


def test_a_verdict_of_another_claim_or_rule_is_marked():
    experiment = load("fig3")
    now = {"experiment": "fig3", "claim": experiment.claim, "rule": experiment.rule}
    assert not claims.superseded(now)
    assert claims.superseded({**now, "rule": "Another."}) and claims.superseded({**now, "claim": "Another."})
    assert claims.superseded({**now, "experiment": "fig99"})
