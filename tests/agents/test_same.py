"""Blocks that scripts repeat are the same, word for word."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
import torch

from agents import dqn_minatar, ppo_minatar

AGENTS = Path(__file__).parents[2] / "agents"
MARK = re.compile(r"^# same as agents/(\w+\.py)::(\w+)$")


def blocks(source: str) -> dict[str, tuple[int, str]]:
    """Every top-level definition or assignment: its first line, its text with decorators."""
    lines, found = source.splitlines(), {}
    for node in ast.parse(source).body:
        name = getattr(node, "name", None)
        if isinstance(node, (ast.Assign, ast.AnnAssign)):
            target = node.target if isinstance(node, ast.AnnAssign) else node.targets[0]
            name = getattr(target, "id", None)
        if name:
            first = min([node.lineno, *(d.lineno for d in getattr(node, "decorator_list", []))])
            found[name] = first, "\n".join(lines[first - 1 : node.end_lineno])
    return found


def marked() -> list[tuple[str, int, str, str]]:
    return [
        (path.name, number, *match.groups())
        for path in sorted(AGENTS.glob("*.py"))
        for number, line in enumerate(path.read_text().splitlines(), start=1)
        if (match := MARK.match(line))
    ]


def test_there_are_marks():
    assert {name for *_, name in marked()} >= {"Rollout", "act", "value", "gae", "ppo_loss"}


@pytest.mark.parametrize(("copy", "number", "original", "name"), marked())
def test_a_marked_block_is_its_original(copy, number, original, name):
    here, there = (blocks((AGENTS / file).read_text()) for file in (copy, original))
    assert copy != original and here[name][0] == number + 1, "the mark does not stand above the block it names"
    assert here[name][1] == there[name][1]


def test_blocks_that_are_alike_carry_the_mark():
    """Ten lines or more that two scripts share stand under a mark, or move to a module of their own."""
    seen: dict[str, str] = {}
    claimed = {(copy, name) for copy, _, _, name in marked()}
    for path in sorted(AGENTS.glob("*.py"), key=lambda p: ("minatar" not in p.name, p.name)):
        for name, (_, text) in blocks(path.read_text()).items():
            if text.count("\n") >= 9 and text in seen:
                assert (path.name, name) in claimed, f"{path.name}::{name} repeats {seen[text]}"
            seen.setdefault(text, f"{path.name}::{name}")


@pytest.mark.parametrize("preset", ["adaptive", "chain-cusum"])
@pytest.mark.parametrize(("script", "smoothing"), [(dqn_minatar, 0.05), (ppo_minatar, 0.1)])
def test_the_detector_is_the_one_simulated_in_elr_changepoint(script, smoothing, preset):
    args = script.PRESETS[preset].args
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=args.learning_rate)
    schedule = args.schedule.build(args.learning_rate, args.updates)
    cusum = args.rewarm.build(optimizer, schedule, args.updates).trigger.cusum
    assert (cusum.slack, cusum.threshold, cusum.burn_in, cusum.refractory) == (1.5, 8.0, 20, 40)
    assert (cusum.smoothing, cusum.clip, cusum.log, cusum.min_relative_deviation) == (smoothing, 3.0, True, 0.05)
