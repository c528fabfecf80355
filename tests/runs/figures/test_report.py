"""Pages of experiments, verdicts, and the table of claims."""

import dataclasses
import gzip
import json
import math
import shutil
from pathlib import Path

import numpy as np
import pandas
import pytest

from runs.__main__ import main
from runs.figures import report
from runs.figures.claims import RESULTS
from runs.figures.report import Args
from runs.recording import Run, RunError
from runs.sweeps import commands, record
from runs.sweeps import experiment as experiment_module
from runs.sweeps.commands import left_to_do
from runs.sweeps.experiment import Arm, Experiment, Scale, Verdict, plan


def judge(runs):
    ends = {arm: [run.values["end"] for run in runs if run.arm == arm] for arm in ("high", "low")}
    better = min(ends["high"]) > max(ends["low"])
    rows = [[arm, str(len(values)), f"{max(values):.2f}"] for arm, values in ends.items()]
    return Verdict("reproduced" if better else "not reproduced", "high ends above low", ("arm", "n", "best"), rows)


EXPERIMENT = Experiment(
    name="toy",
    source="ours",
    claim="High is better than low.",
    rule="Reproduced if every run of high ends above every run of low.",
    arms=[Arm("high", "grokking", "low", {"total_updates": 30}), Arm("low", "grokking", "low", {"total_updates": 30})],
    scales={
        "smoke": Scale(seeds=(1,), estimate="1 s"),
        "laptop": Scale(seeds=(1, 2), estimate="2 s"),
        "paper": Scale(seeds=(1, 2), estimate="3 s"),
    },
    measures={"end": lambda run: run.scalars["test/accuracy"][-1][1]},
    judge=judge,
    curve="test/accuracy",
)


@pytest.fixture(autouse=True)
def experiment(monkeypatch):
    """`toy` is the only experiment, and pages are written without their slow pictures."""
    monkeypatch.setattr(experiment_module, "load", lambda name: EXPERIMENT)
    monkeypatch.setattr(commands, "load", lambda name: EXPERIMENT)
    monkeypatch.setattr(report, "draw", lambda *_: None)


def finish(job, accuracies):
    """Record a finished run as the script would."""
    config = {**job.flags, "directory": str(job.directory)}
    command = [f"agents/{job.script}.py", job.preset]
    run = Run.create(job.directory, config, argv=command, device="cpu")
    for step, value in enumerate(accuracies):
        run.scalar("test/accuracy", value, 10 * step)
    run.finish(10 * (len(accuracies) - 1))


def finish_all(logs, scale, high=(0.1, 0.9), low=(0.1, 0.2)):
    jobs = plan(EXPERIMENT, scale, logs)
    for job in jobs:
        finish(job, high if job.arm == "high" else low)
    return jobs


DRAW = report.draw


@pytest.mark.parametrize(("high", "outcome"), [((0.1, 0.9), "reproduced"), ((0.1, 0.15), "not reproduced")])
def test_page_has_claim_rule_verdict_numbers_and_circumstances(tmp_path, high, outcome):
    jobs = finish_all(tmp_path / "logs", "laptop", high)
    page = report.write(Args(("toy",), "laptop", tmp_path / "logs", tmp_path / "out"), EXPERIMENT)
    text = page.read_text()
    assert f"**Verdict: {outcome}.** High ends above low." in text
    assert EXPERIMENT.claim in text and EXPERIMENT.rule in text
    assert f"| high | 2 | {high[-1]:.2f} |" in text and "| low | 2 | 0.20 |" in text
    assert "4 runs: 2 arms, seeds 1, 2." in text and "python -m runs run toy --scale laptop" in text
    recorded = json.loads((jobs[0].directory / "provenance.json").read_text())
    assert recorded["git"]["revision"][:7] in text and recorded["versions"]["torch"] in text
    record = json.loads((tmp_path / "out" / "toy-laptop.json").read_text())
    assert record["outcome"] == outcome and record["runs"] == record["planned"] == 4 and record["seeds"] == 2


def test_page_has_a_figure(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(report, "draw", DRAW)
    finish_all(tmp_path / "logs", "laptop")
    page = report.write(Args(("toy",), "laptop", tmp_path / "logs", tmp_path / "out"), EXPERIMENT)
    assert "![test/accuracy over steps](toy-laptop.png)" in page.read_text()
    assert (tmp_path / "out" / "toy-laptop.png").stat().st_size > 5_000
    assert "</svg>" in (tmp_path / "out" / "toy-laptop.svg").read_text()


def test_of_many_arms_the_means_alone_are_drawn(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    drawn = []
    monkeypatch.setattr(report, "draw", DRAW)
    real = report.style.draw_arm

    def watched(axes, x, runs, *rest, **more):
        drawn.append((len(runs), rest))
        real(axes, x, runs, *rest, **more)

    monkeypatch.setattr(report.style, "draw_arm", watched)
    finish_all(tmp_path / "logs", "laptop")
    args = Args(("toy",), "laptop", tmp_path / "logs", tmp_path / "out")
    assert report.UNCROWDED_TEXT in report.write(args, EXPERIMENT).read_text()
    assert [runs for runs, _ in drawn] == [2, 2] and all(len(rest) == 3 for _, rest in drawn)  # with an interval
    drawn.clear()
    monkeypatch.setattr(report, "FEW_ARMS", 1)
    assert report.CROWDED_TEXT in report.write(args, EXPERIMENT).read_text()
    assert [runs for runs, _ in drawn] == [1, 1] and all(len(rest) == 2 for _, rest in drawn)


def test_rule_is_not_applied_to_part_of_a_plan(tmp_path):
    jobs = plan(EXPERIMENT, "laptop", tmp_path / "logs")
    args = Args(("toy",), "laptop", tmp_path / "logs", tmp_path / "out")
    with pytest.raises(
        RunError, match=r"no run of toy at laptop is finished in .*: python -m runs run toy --scale laptop --logs /"
    ):
        report.write(args, EXPERIMENT)
    for job in jobs[:3]:
        finish(job, (0.1, 0.9))
    with pytest.raises(RunError, match=r"3 of 4 .*\(not toy/laptop/low-s2\).*--partial"):
        report.write(args, EXPERIMENT)
    assert not (tmp_path / "out").exists()
    (tmp_path / "out").mkdir()
    whole = tmp_path / "out" / "toy-laptop.json"  # an earlier verdict
    whole.write_text("reproduced")
    page = report.write(dataclasses.replace(args, partial=True), EXPERIMENT)
    assert page.name == "toy-laptop-partial.md" and "(toy-laptop-partial.png)" in page.read_text()
    assert "**No verdict**: 3 of 4 runs are finished." in page.read_text()
    assert json.loads(page.with_suffix(".json").read_text())["outcome"] is None and whole.read_text() == "reproduced"


def test_all_means_experiments_with_finished_runs(tmp_path, monkeypatch, capsys):
    others = [dataclasses.replace(EXPERIMENT, name=name) for name in ("one", "two")]
    monkeypatch.setattr(report, "chosen", lambda names, scale: [*others, EXPERIMENT])
    args = Args(("all",), "smoke", tmp_path / "logs", tmp_path / "out")
    with pytest.raises(RunError, match=r"no experiment has all its runs at smoke finished in .*logs"):
        report.main(args)
    finish_all(tmp_path / "logs", "smoke")
    report.main(args)
    assert capsys.readouterr().out == f"wrote {tmp_path / 'out' / 'toy-smoke.md'}\n"
    with pytest.raises(RunError, match="no run of one at smoke"):
        report.main(dataclasses.replace(args, experiments=("one", "toy")))
    with pytest.raises(RunError, match="name an experiment"):
        report.main(dataclasses.replace(args, experiments=()))


def test_smoke_runs_are_never_judged(tmp_path):
    finish_all(tmp_path / "logs", "smoke")
    text = report.write(Args(("toy",), "smoke", tmp_path / "logs", tmp_path / "out"), EXPERIMENT).read_text(
        encoding="utf-8"
    )
    assert "**No verdict**: the scale smoke shows that everything runs" in text


def test_killed_run_does_not_count_and_resumed_run_names_both_revisions(tmp_path):
    jobs = plan(EXPERIMENT, "laptop", tmp_path / "logs")
    for job in jobs[1:]:
        finish(job, (0.1, 0.9))
    killed = Run.create(jobs[0].directory, {**jobs[0].flags}, argv=["agents/grokking.py", "low"], device="cpu")
    killed.scalar("test/accuracy", 0.9, 0)
    killed.checkpoint(0, {})
    killed.interrupt(0)
    args = Args(("toy",), "laptop", tmp_path / "logs", tmp_path / "out")
    with pytest.raises(RunError, match=r"3 of 4 .*\(not toy/laptop/high-s1\)"):
        report.write(args, EXPERIMENT)
    again = Run.resume(jobs[0].directory, argv=["agents/grokking.py", "--resume"])
    again.take_state()
    again.scalar("test/accuracy", 0.9, 10)
    again.finish(10)
    provenance = jobs[0].directory / "provenance.json"
    recorded = json.loads(provenance.read_text())
    recorded["resumed"][0]["git"] = {"revision": "abcdef0123", "dirty": True}
    provenance.write_text(json.dumps(recorded))
    assert "abcdef0 with changes" in report.write(args, EXPERIMENT).read_text()


def test_rule_that_cannot_be_applied_is_refused(tmp_path):
    finish_all(tmp_path / "logs", "laptop")

    def broken(runs):
        raise ValueError("high and low share no world and seed")

    with pytest.raises(RunError, match="the rule of toy cannot be applied at laptop: high and low share no world"):
        report.write(
            Args(("toy",), "laptop", tmp_path / "logs", tmp_path / "out"), dataclasses.replace(EXPERIMENT, judge=broken)
        )


def test_run_with_other_flags_is_refused(tmp_path):
    jobs = finish_all(tmp_path / "logs", "laptop")
    config = json.loads((jobs[0].directory / "config.json").read_text())
    (jobs[0].directory / "config.json").write_text(json.dumps({**config, "total_updates": 31}))
    with pytest.raises(RunError, match="holds another run: its total_updates is 31, that of toy/laptop/high-s1 is 30"):
        report.write(Args(("toy",), "laptop", tmp_path / "logs", tmp_path / "out"), EXPERIMENT)


def test_report_on_the_command_line(tmp_path, capsys, monkeypatch):
    finish_all(tmp_path / "logs", "laptop")
    words = ["report", "toy", "--scale", "laptop", "--logs", str(tmp_path / "logs"), "--out", str(tmp_path / "out")]
    assert main(words) == 0
    assert capsys.readouterr().out.strip() == f"wrote {tmp_path / 'out' / 'toy-laptop.md'}"
    with pytest.raises(RunError, match="toy has no scale huge"):
        main([*words, "--scale", "huge"])


def test_without_publish_a_page_is_next_to_the_runs_and_nothing_is_published(tmp_path, capsys, monkeypatch):
    written = []
    monkeypatch.setattr(report, "write_claims", lambda: written.append(True))
    monkeypatch.setattr(report, "RESULTS", tmp_path / "results")
    finish_all(tmp_path / "logs", "laptop")
    words = ["report", "toy", "--scale", "laptop", "--logs", str(tmp_path / "logs")]
    assert main(words) == 0
    assert (tmp_path / "logs" / "toy" / "toy-laptop.json").exists()
    assert not (tmp_path / "results").exists() and not written
    assert main([*words, "--publish"]) == 0
    assert (tmp_path / "results" / "toy-laptop.md").exists() and written == [True]
    capsys.readouterr()
    assert main(["report", "toy", "--scale", "laptop", "--publish", "--from-json"]) == 0  # from the published numbers
    assert f"wrote {tmp_path / 'results' / 'toy-laptop.md'}" in capsys.readouterr().out
    assert main(["report", "--publish"]) == 0 and len(written) == 3
    with pytest.raises(RunError, match="name an experiment, or give --publish"):
        main(["report"])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"publish": True, "out": Path("x")}, "--out x has no effect with --publish"),
        ({"out": RESULTS}, "holds the published pages: give --publish"),
    ],
)
def test_the_published_pages_are_written_on_demand_only(flags, message):
    with pytest.raises(ValueError, match=message):
        Args(("toy",), **flags)


def test_page_describes_the_runs():
    worlds = {"easy": {"env_id": "MinAtar/Breakout-v1"}, "hard": {"env_id": "MinAtar/Freeway-v1"}}
    scale = Scale(seeds=(1,), estimate="1 s", flags={"total_updates": 30, "nap.enabled": False}, worlds=worlds)
    experiment = dataclasses.replace(EXPERIMENT, scales={"laptop": scale})
    assert report.work(experiment, "laptop", plan(experiment, "laptop", Path("logs"))) == (
        "Each run is `agents/grokking.py` with `--total-updates 30 --nap.no-enabled`, and the flags of its arm "
        "(`python -m runs run toy --scale laptop --dry-run`); easy is `--env-id MinAtar/Breakout-v1`, hard is "
        "`--env-id MinAtar/Freeway-v1`."
    )
    easy = [job for job in plan(experiment, "laptop", Path("logs")) if job.world == "easy"]
    assert "Freeway" not in report.work(experiment, "laptop", easy)  # on a page of part of the runs


def test_all_leaves_out_unfinished_experiments(tmp_path, monkeypatch, capsys):
    early = dataclasses.replace(EXPERIMENT, name="early")
    monkeypatch.setattr(report, "chosen", lambda names, scale: [early, EXPERIMENT])
    finish(plan(early, "laptop", tmp_path / "logs")[0], (0.1, 0.9))
    finish_all(tmp_path / "logs", "laptop")
    report.main(Args(("all",), "laptop", tmp_path / "logs", tmp_path / "out"))
    left, wrote = capsys.readouterr().out.splitlines()
    assert left.startswith("left out: 1 of 4 runs of early at laptop") and wrote.endswith("toy-laptop.md")
    assert sorted(path.name for path in (tmp_path / "out").glob("*.md")) == ["toy-laptop.md"]


def test_own_experiment_is_named_by_its_path_and_its_note_is_on_the_page(tmp_path):
    own = dataclasses.replace(EXPERIMENT, file="my experiments/own.py", note="Worded after the runs.")
    args = Args(("my experiments/own.py",), "laptop", tmp_path / "logs", tmp_path / "out", partial=True)
    with pytest.raises(RunError, match=r"python -m runs run 'my experiments/own.py' --scale laptop --logs "):
        report.write(args, own)
    finish(plan(own, "laptop", tmp_path / "logs")[0], (0.1, 0.9))
    text = report.write(args, own).read_text()
    assert "*Worded after the runs.*" in text and "--scale laptop --partial`" in text
    assert "`python -m runs run 'my experiments/own.py' --scale laptop`" in text


def files_of(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_published_numbers_give_the_same_page_without_the_runs(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(report, "draw", DRAW)
    jobs = finish_all(tmp_path / "logs", "laptop")
    out = tmp_path / "out"
    report.write(Args(("toy",), "laptop", tmp_path / "logs", out), EXPERIMENT)
    first = files_of(out)
    assert set(first) == {f"toy-laptop.{kind}" for kind in ("md", "json", "csv.gz", "png", "svg")}
    values = json.loads(first["toy-laptop.json"])["values"]
    assert [(one["arm"], one["world"], one["seed"], one["end"]) for one in values] == [
        (job.arm, "", job.seed, 0.9 if job.arm == "high" else 0.2) for job in jobs
    ]
    shutil.rmtree(tmp_path / "logs")
    report.write(Args(("toy",), "laptop", out=out, from_json=True), EXPERIMENT)
    again = files_of(out)
    assert {name for name in first if first[name] != again[name]} <= {"toy-laptop.svg"}  # it has ids of its own
    table = pandas.read_csv(out / "toy-laptop.csv.gz")
    assert list(table.columns) == ["arm", "world", "seed", "step", "value"]
    assert table[(table.arm == "high") & (table.seed == 2)].value.tolist() == [0.1, 0.9]


def test_a_changed_number_changes_the_verdict(tmp_path):
    finish_all(tmp_path / "logs", "laptop")
    out = tmp_path / "out"
    report.write(Args(("toy",), "laptop", tmp_path / "logs", out), EXPERIMENT)
    path = out / "toy-laptop.json"
    path.write_text(path.read_text().replace('"seed": 2, "end": 0.9', '"seed": 2, "end": 0.15'))
    text = report.write(Args(("toy",), "laptop", out=out, from_json=True), EXPERIMENT).read_text()
    assert "**Verdict: not reproduced.**" in text


def test_runs_of_two_machines_are_joined_and_each_leaves_out_those_of_the_other(tmp_path):
    everywhere, here, there = (tmp_path / name for name in ("everywhere", "here", "there"))
    finish_all(everywhere, "laptop")
    for folder, arm in ((here, "high"), (there, "low")):
        for job in plan(EXPERIMENT, "laptop", folder):
            if job.arm == arm:
                finish(job, (0.1, 0.9) if arm == "high" else (0.1, 0.2))
        report.write(Args(("toy",), "laptop", folder, folder, partial=True), EXPERIMENT)
    theirs = there / "toy-laptop-partial.json"
    joined = Args(("toy",), "laptop", here, tmp_path / "joined", join=(theirs,))
    whole = Args(("toy",), "laptop", everywhere, tmp_path / "whole")
    report.write(joined, EXPERIMENT), report.write(whole, EXPERIMENT)
    assert files_of(tmp_path / "joined") == files_of(tmp_path / "whole")

    jobs = plan(EXPERIMENT, "laptop", here)
    left = left_to_do(jobs, [theirs], "laptop")
    assert [job.id for job in left] == ["toy/laptop/high-s1", "toy/laptop/high-s2"]
    with pytest.raises(RunError, match="nothing is left to run"):
        left_to_do(left, [here / "toy-laptop-partial.json"], "laptop")
    with pytest.raises(RunError, match=r"toy-laptop-partial\.json is of toy, of which no run is planned here"):
        left_to_do([dataclasses.replace(job, experiment="other") for job in jobs], [theirs], "laptop")


def damaged(folder, kind, change):
    path = folder / f"toy-laptop.{kind}"
    path.write_bytes(change(path.read_bytes()))


def rewritten(**entries):
    return lambda data: json.dumps({**json.loads(data), **entries}).encode()


def table(change):
    return lambda data: gzip.compress(change(gzip.decompress(data).decode()).encode())


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        ("json", lambda b: b[:-9], "is not valid JSON"),
        ("json", lambda b: b.replace(b'"scale": "laptop"', b'"scale": "paper"'), "is of toy at paper, not of toy at"),
        ("json", lambda b: b.replace(b'"values"', b'"value"'), "holds no numbers of single runs"),
        ("json", lambda b: b.replace(b'"end": 0.9', b'"start": 0.9'), "now measures other numbers"),
        ("json", lambda b: b.replace(b'"seed": 2', b'"seed": 7'), "seed 7, which is not in the plan"),
        ("json", lambda b: b.replace(b'"high": "', b'"high": "0'), "high, seed 1, .* has other flags there"),
        ("json", lambda b: b.replace(b'"torch"', b'"lamp"'), "is damaged: no entry 'torch'"),
        ("json", lambda b: b.replace(b'"seed": 2', b'"seed": 1'), "is damaged: it holds high, seed 1, twice"),
        ("json", lambda b: b.replace(b'"arm": "high", ', b""), "is damaged: no entry 'arm'"),
        ("json", lambda b: b.replace(b'"seed": 1,', b'"seed": true,'), "is damaged: a run must have the strings arm"),
        ("json", rewritten(first=3), "is damaged: first and last must be strings, got 3 and '"),
        ("json", rewritten(last=None), "is damaged: first and last must be strings, got '.*' and None"),
        *[
            ("json", rewritten(**{name: value}), f"is damaged: {name} must be a list of strings")
            for name in ("revisions", "torch", "hardware")
            for value in ("text", [3])
        ],
        *[
            ("json", rewritten(flags=value), "is damaged: flags must be an object of strings")
            for value in (None, ["high"], {"high": 3})
        ],
        *[
            ("json", rewritten(values=value), "is damaged: values must be a list of objects")
            for value in ("text", {"high": 3}, [], ["row"], [3], [None])
        ],
        *[
            ("json", lambda b, new=new: b.replace(b'"end": 0.9', b'"end": ' + new), "'end' must be a number, null, or")
            for new in (b"true", b'"0.9"', b"NaN", b"1e999", b"[[0.9]]", b"[0.9, false]")
        ],
        ("json", lambda b: b.replace(b'"end": 0.9', b'"end": 1' + b"0" * 400), "is damaged: int too large"),
        ("json", lambda b: b.replace(b'"end": 0.9', b'"end": [0.9]'), "rule of toy cannot be applied at laptop: "),
        ("csv.gz", lambda b: b[:-9], r"toy-laptop\.csv\.gz is damaged: "),
        ("csv.gz", lambda b: b[:10] + bytes([b[10] | 6]) + b[11:], r"toy-laptop\.csv\.gz is damaged: Error -3"),
        ("csv.gz", lambda b: gzip.compress(b"arm,world,seed,step,value\n"), "has no curve of high, seed 1"),
        (
            "csv.gz",
            table(lambda text: text[text.index("\n") + 1 :]),
            "is damaged: its first line must be arm,world,seed,step,value, got 'high,,1,0,0.1'",
        ),
        ("csv.gz", table(lambda text: ""), "is damaged: its first line must be arm,world,seed,step,"),
        ("csv.gz", table(lambda text: text.replace("high,,2,0,", "high,,2,20,")), "the steps of high, seed 2, are not"),
        ("csv.gz", table(lambda text: text.replace("high,,2,0,", "high,,2,-1,")), "the steps of high, seed 2, are not"),
        ("csv.gz", table(lambda text: text + "x" * 200_000), "is damaged: field larger than"),
    ],
)
def test_damaged_or_other_records_are_refused(tmp_path, kind, change, message):
    finish_all(tmp_path / "logs", "laptop")
    args = Args(("toy",), "laptop", tmp_path / "logs", tmp_path / "out")
    report.write(args, EXPERIMENT)
    damaged(tmp_path / "out", kind, change)
    kept = files_of(tmp_path / "out")
    with pytest.raises(RunError, match=message) as refused:
        report.write(Args(("toy",), "laptop", out=tmp_path / "out", from_json=True), EXPERIMENT)
    assert "\n" not in str(refused.value)
    assert files_of(tmp_path / "out") == kept


@pytest.mark.parametrize(
    ("kind", "change", "what"),
    [
        ("json", lambda b: b.replace(b'"end": 0.9', b'"end": 0.8'), "other numbers"),
        ("csv.gz", table(lambda text: text.replace("high,,1,10,0.9", "high,,1,10,0.8")), "another curve"),
        ("csv.gz", table(lambda text: text.replace("high,,1,10,0.9", "high,,1,11,0.9")), "another curve"),
        ("csv.gz", table(lambda text: text.replace("high,,1,10,0.9\n", "")), "another curve"),
    ],
)
def test_a_record_that_disagrees_with_the_runs_is_refused(tmp_path, kind, change, what):
    finish_all(tmp_path / "logs", "laptop")
    args = Args(("toy",), "laptop", tmp_path / "logs", tmp_path / "out")
    report.write(args, EXPERIMENT)
    damaged(tmp_path / "out", kind, change)
    with pytest.raises(RunError, match=rf"toy-laptop\.json has {what} for high, seed 1, than the runs here"):
        report.write(dataclasses.replace(args, join=(tmp_path / "out" / "toy-laptop.json",)), EXPERIMENT)


def test_curves_as_runs_record_them_are_read_and_joined(tmp_path):
    """Two episodes may end at one step, and a value may be nan."""
    for job in plan(EXPERIMENT, "laptop", tmp_path / "logs"):
        run = Run.create(job.directory, dict(job.flags), argv=["agents/grokking.py", job.preset], device="cpu")
        for step, value in ((0, math.nan), (10, 0.1), (10, 0.2)):
            run.scalar("test/accuracy", value, step)
        run.finish(10)
    args = Args(("toy",), "laptop", tmp_path / "logs", tmp_path / "out")
    report.write(args, EXPERIMENT)
    first = files_of(tmp_path / "out")
    report.write(dataclasses.replace(args, join=(tmp_path / "out" / "toy-laptop.json",)), EXPERIMENT)
    report.write(Args(("toy",), "laptop", out=tmp_path / "out", from_json=True), EXPERIMENT)
    assert files_of(tmp_path / "out") == first


def test_from_json_says_what_was_recorded_and_what_it_is_now(tmp_path, capsys):
    finish_all(tmp_path / "logs", "laptop")
    report.write(Args(("toy",), "laptop", tmp_path / "logs", tmp_path), EXPERIMENT)
    again, path = Args(("toy",), "laptop", out=tmp_path, from_json=True), tmp_path / "toy-laptop.json"
    report.write(again, EXPERIMENT)
    assert capsys.readouterr().out == ""  # nothing differs
    damaged(tmp_path, "json", rewritten(outcome="undecided", reason="few\nruns"))
    report.write(again, dataclasses.replace(EXPERIMENT, claim="High wins.", rule="Ends."))
    assert capsys.readouterr().out == (
        f'{path} changes: outcome was "undecided", now "reproduced"; '
        'reason was "few\\nruns", now "high ends above low"; '
        'claim was "High is better than low.", now "High wins."; '
        f'rule was "{EXPERIMENT.rule}", now "Ends."\n'
    )
    damaged(tmp_path, "json", rewritten(outcome=None, reason=None, claim=EXPERIMENT.claim, rule=EXPERIMENT.rule))
    report.write(again, EXPERIMENT)
    assert 'outcome was null, now "reproduced"; reason was null, now' in capsys.readouterr().out


def test_part_of_a_plan_is_read_back_without_a_word(tmp_path, capsys):
    finish(plan(EXPERIMENT, "laptop", tmp_path / "logs")[0], (0.1, 0.9))
    out = tmp_path / "out"
    report.write(Args(("toy",), "laptop", tmp_path / "logs", out, partial=True), EXPERIMENT)
    first = files_of(out)
    report.write(Args(("toy",), "laptop", out=out, partial=True, from_json=True), EXPERIMENT)
    assert files_of(out) == first and capsys.readouterr().out == ""


def test_an_error_leaves_the_files_as_they_were(tmp_path, monkeypatch):
    finish_all(tmp_path / "logs", "laptop")
    args = Args(("toy",), "laptop", tmp_path / "logs", tmp_path / "out")
    unwritable = dataclasses.replace(EXPERIMENT, measures={"end": lambda run: np.float32(0.5)})  # not by json
    with pytest.raises(TypeError):
        report.write(args, unwritable)
    assert not (tmp_path / "out").exists()

    def fails(experiment, jobs, runs, stem):
        stem.with_name(f"{stem.name}.png").write_bytes(b"half")
        raise OSError("no space")

    monkeypatch.setattr(report, "draw", fails)
    with pytest.raises(RunError, match=r"cannot draw the figure of .*toy-laptop\.md: no space"):
        report.write(args, EXPERIMENT)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("flags", [{"from_json": True, "logs": Path("x")}, {"from_json": True}, {"join": (Path("x"),)}])
def test_flags_that_contradict_each_other_are_refused(flags):
    with pytest.raises(ValueError, match=r"--from-json|--join"):
        Args(("toy",) if "logs" in flags else (), **flags)


def test_infinity_and_several_numbers_are_read_back(tmp_path):
    measures = {"end": lambda run: math.inf, "two": lambda run: (0.1 + 0.2, math.inf)}
    experiment = dataclasses.replace(EXPERIMENT, measures=measures, judged=())
    finish_all(tmp_path / "logs", "laptop")
    report.write(Args(("toy",), "laptop", tmp_path / "logs", tmp_path), experiment)
    assert '"end": null, "two": [0.30000000000000004, null]' in (tmp_path / "toy-laptop.json").read_text()
    again = record.read(tmp_path / "toy-laptop.json", experiment, "laptop", plan(experiment, "laptop", Path()))
    assert again.runs[record.Key("low", "", 2)].values == {"end": math.inf, "two": (0.1 + 0.2, math.inf)}


def test_a_number_that_is_nan_or_cannot_be_measured_is_refused(tmp_path):
    finish_all(tmp_path / "logs", "laptop")
    args = Args(("toy",), "laptop", tmp_path / "logs", tmp_path / "out")
    for of, message in (
        (lambda run: math.nan, "toy: end is undefined for high, seed 1"),
        (lambda run: 1 / 0, "toy: end cannot be measured: division by zero"),
    ):
        changed = dataclasses.replace(EXPERIMENT, measures={"end": of})
        with pytest.raises(RunError, match=message):
            report.write(args, changed)
        unjudged = dataclasses.replace(changed, judged=("paper",))  # too short for a measure, and not judged
        page = report.write(args, unjudged)
        assert "**No verdict**" in page.read_text()
        assert json.loads(page.with_suffix(".json").read_text())["values"][0] == {"arm": "high", "world": "", "seed": 1}
        report.write(Args(("toy",), "laptop", out=tmp_path / "out", from_json=True), unjudged)


def test_curves_are_thinned_to_means_of_windows_or_to_points_of_a_logarithmic_axis():
    steps = np.arange(1, 1001) * 10
    x, y = record.thinned((steps, steps / 10), log_steps=False)
    assert len(x) == record.POINTS and x[0] == 50 and x[-1] == 10_000
    assert y[0] == 3.0 and y[-1] == 998.0  # means of five points
    x, y = record.thinned((steps - 10, steps / 10), log_steps=False)  # from step 0 on
    assert x[0] == 50 and y[0] == 3.5  # the first window has a sixth point, at 0
    x, y = record.thinned((steps, steps / 10), log_steps=True)
    assert len(x) <= record.POINTS and x[0] == 10 and x[-1] == 10_000 and np.array_equal(y, x / 10)
    assert set(x.tolist()) >= {10, 20, 30, 40, 50}  # early points are all there
    x, y = record.thinned((steps[:7], np.full(7, 1 / 3)), log_steps=False)
    assert np.array_equal(x, steps[:7]) and (y == 0.333333).all()


def test_joined_records_have_the_circumstances_of_both():
    here = record.Circumstances(("b", "c"), "2026-02-01", "2026-02-03", ("2.9",), ("mine",))
    there = record.Circumstances(("a", "b"), "2026-01-30", "2026-02-02", ("2.10",), ("yours",))
    both = record.Circumstances(("a", "b", "c"), "2026-01-30", "2026-02-03", ("2.10", "2.9"), ("mine", "yours"))
    assert here.joined(there) == there.joined(here) == both


@pytest.mark.parametrize("log_steps", [False, True])
def test_a_figure_has_the_axis_of_its_experiment(tmp_path, monkeypatch, log_steps):
    pytest.importorskip("matplotlib")
    figures = []
    monkeypatch.setattr(report, "draw", DRAW)
    monkeypatch.setattr(report.style, "save", lambda figure, _: figures.append(figure))
    finish_all(tmp_path / "logs", "laptop")
    report.write(
        Args(("toy",), "laptop", tmp_path / "logs", tmp_path / "out"),
        dataclasses.replace(EXPERIMENT, log_steps=log_steps),
    )
    (axes,) = figures[0].axes
    assert axes.get_xscale() == ("log" if log_steps else "linear")
    assert not log_steps or axes.get_xlim()[0] == 10  # the first step after 0


def test_published_numbers_give_the_published_pages(tmp_path, monkeypatch, capsys):
    """Where numbers are published, page and verdict are those that the rule gives now."""
    monkeypatch.undo()  # the experiments of the repository
    monkeypatch.setattr(report, "draw", lambda *_: None)
    with_numbers = [path for path in RESULTS.glob("*.json") if "values" in json.loads(path.read_text())]
    assert with_numbers
    for path in with_numbers:
        one, partial = json.loads(path.read_text()), path.stem.endswith("-partial")
        for kind in ("json", "csv.gz"):
            shutil.copy(path.with_name(f"{path.stem}.{kind}"), tmp_path)
        args = Args((one["experiment"],), one["scale"], out=tmp_path, from_json=True, partial=partial)
        page = report.write(args, experiment_module.load(one["experiment"]))
        assert page.read_text() == path.with_suffix(".md").read_text(), path.stem
        assert page.with_name(path.name).read_bytes() == path.read_bytes(), path.stem
        # Python 3.13 writes another header, and other builds of zlib compress otherwise.
        again, kept = (gzip.decompress((at / f"{path.stem}.csv.gz").read_bytes()) for at in (page.parent, path.parent))
        assert again == kept, path.stem
        assert capsys.readouterr().out == "", path.stem  # verdict, claim and rule are those recorded


def test_a_measure_that_asks_for_what_no_run_has_is_refused_at_every_scale(tmp_path):
    finish_all(tmp_path / "logs", "smoke")
    changed = dataclasses.replace(EXPERIMENT, measures={"end": lambda run: run.config["shift.every"]})
    with pytest.raises(RunError, match=r"toy: end cannot be measured: there is no .shift\.every."):
        report.write(Args(("toy",), "smoke", tmp_path / "logs", tmp_path / "out"), changed)
