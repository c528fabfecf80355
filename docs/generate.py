"""Write the tables of the documentation that the code decides: presets, flags and logged tags.

    .venv/bin/python docs/generate.py            write them into the pages
    .venv/bin/python docs/generate.py --check    write nothing; exit code 1 if a page is out of date

A page holds a table between two marks, `<!-- presets: ... -->` and `<!-- end of presets -->`, and everything around
them is written by hand. tests/test_generated_pages.py compares the pages with the code.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import re
import sys
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from runs.recording.config import own_fields_first
from runs.recording.flag_help import help_of
from runs.recording.tags import TAGS

ROOT = Path(__file__).resolve().parents[1]
PAGES = ROOT / "docs"
SCRIPTS = (
    "ppo_control", "dqn_minatar", "ppo_minatar", "dqn_atari", "ppo_atari", "rainbow_atari", "grokking", "warm_start",
    "theory",
)  # fmt: skip
SAME = ("exp_name", "directory", "resume", "extend", "branch", "keep_checkpoints_every")
"""flags that say where a run is kept; a preset's exp_name is its own name"""

Table = Mapping[str, Sequence[str]]
"""tags by the condition under which they are logged"""

MOMENT = ("dead_fraction", "dormant_fraction", "effective_rank", "stable_rank", "srank", "feature_norm")
CHANGE = ("delta_c", "delta_a", "flipped_fraction")
MEASURED: Table = {
    "`--probe.meter-every` is not 0": [
        *(f"{name}/<layer>" for name in ("elr", "elr_nominal", "norms/parameter", "norms/gradient", "norms/update"))
    ],
    "`--probe.every` is not 0": [f"plasticity/{name}/<layer>" for name in (*MOMENT, *CHANGE)],
}
REWARMED: Table = {
    "the schedule is restarted": ["rewarm/event"],
    "`--rewarm.trigger` is a detector": ["rewarm/statistic"],
}
CHANGED: Table = {"the task can change": ["shift/task"], "the task changes": ["shift/boundary"]}
INTERVENED: Table = {
    "`--intervene.methods` names a method that does it": [
        "reset/event",
        *(tag for tag in TAGS if tag.startswith("intervene/")),
    ]
}
RESET: Table = {"`--reset.at-steps` resets layers": ["reset/event"]}
RETURNS = ["charts/episodic_return", "charts/average_return", "charts/episodic_length"]
RETURNS += ["eval/episodic_return", "eval/episodic_return_std"]
RATE = ["charts/learning_rate", "charts/SPS"]
PPO = [f"losses/{name}" for name in ("policy_loss", "value_loss", "entropy", "approx_kl", "clipfrac")]
PPO += ["losses/explained_variance"]
DQN = ["losses/td_loss", "losses/q_values"]
ACCURACY = ["train/loss", "train/accuracy", "test/loss", "test/accuracy"]
THEORY = [f"theory/{name}{kind}" for name in ("cosine", "switched_off") for kind in ("", "_closed", "_error")]

LOGGED: Mapping[str, Table] = {
    "ppo_control": {
        "always": [
            *RETURNS, *RATE, *PPO, "losses/squared_td_error", "plasticity/logit_scale",
        ],
        "`--fresh-episodes`": ["charts/iteration_return"], **MEASURED, **REWARMED, **CHANGED,
        "`--shift.drift` moves the physics": ["physics/<layer>"], **INTERVENED,
    },
    "dqn_minatar": {
        "always": [*RETURNS, *RATE, "charts/epsilon", *DQN], **MEASURED, **REWARMED, **CHANGED, **INTERVENED,
    },
    "ppo_minatar": {"always": [*RETURNS, *RATE, *PPO], **MEASURED, **REWARMED, **CHANGED, **INTERVENED},
    "dqn_atari": {
        "always": [*RETURNS, *RATE, "charts/epsilon", *DQN], **MEASURED, **REWARMED, **CHANGED, **RESET,
    },
    "ppo_atari": {"always": [*RETURNS, *RATE, *PPO], **MEASURED, **REWARMED, **CHANGED},
    "rainbow_atari": {"always": [*RETURNS, *RATE, *DQN], **MEASURED, **REWARMED, **CHANGED, **RESET},
    "grokking": {
        "always": [
            *ACCURACY, "test/accuracy_mirrored", "test/accuracy_unmirrored", "charts/learning_rate",
            "plasticity/logit_scale",
        ],
        **MEASURED, "`--probe.every` is not 0, too": ["plasticity/attention_entropy/<layer>"], **REWARMED,
        **INTERVENED,
    },
    "warm_start": {
        "always": ["train/loss", "test/loss", "test/accuracy", "charts/learning_rate", "shift/task"],
        "`--control fresh`, after the last switch": ["test/loss_fresh", "test/accuracy_fresh", "test/gap"],
        **MEASURED, "`--probe.every` is not 0, too": ["norms/gradient_old", "norms/gradient_new"],
        **REWARMED, "the data grow": ["shift/boundary"], **INTERVENED,
    },
    "theory": {"always": ["theory/ratio", *THEORY, "charts/learning_rate"]},
}  # fmt: skip
"""what each script logs; tests compare it with the tags that the scripts name"""

GROUPS: Mapping[str, str] = {
    "charts/": "Returns, speed and rates",
    "eval/": "Evaluation",
    "losses/": "Losses",
    "train/": "Training set",
    "test/": "Test set",
    "elr": "Effective learning rates",
    "norms/": "Norms",
    "plasticity/": "Features and plasticity",
    "rewarm/": "Re-warming",
    "shift/": "Changes of the task",
    "physics/": "Physics",
    "reset/": "Interventions",
    "intervene/": "Other methods",
    "theory/": "Theory",
}
"""headings of the table of all tags, by the beginning of a tag"""


# ----------------------------------------------------------------------------------------------------- from the code


def module_of(script: str) -> Any:
    """The script as a module."""
    if str(ROOT) not in sys.path:
        sys.path.insert(0, str(ROOT))
    return importlib.import_module(f"agents.{script}")


def flag_of(path: str, value: Any = True) -> str:
    """The flag of a field, `nap.every` for one in a group, as the command line spells it for this value."""
    *groups, name = path.replace("_", "-").split(".")
    return "--" + ".".join([*groups, f"no-{name}" if value is False else name])


def flatten(args: Any, prefix: str = "") -> Iterator[tuple[str, Any, type, type]]:
    """Every flag of a dataclass: dotted name, value, type, and the class that has it."""
    hints = typing.get_type_hints(type(args))
    for field in dataclasses.fields(args) if prefix else own_fields_first(type(args)):
        value = getattr(args, field.name)
        if dataclasses.is_dataclass(value):
            yield from flatten(value, f"{prefix}{field.name}.")
        else:
            yield f"{prefix}{field.name}", value, hints[field.name], type(args)


def number(value: float) -> str:
    """The shortest of the usual ways to write it that gives it back."""
    return next(text for text in (f"{value:g}", repr(value)) if float(text) == value)


def words(value: Any) -> list[str]:
    """A value as words of a command line."""
    if isinstance(value, (tuple, list)):
        return [text for one in value for text in words(one)]
    if isinstance(value, bool):
        return []
    return [number(value) if isinstance(value, float) else str(value)]


def differences(args: Any, default: Any) -> dict[str, list[str]]:
    """Flags that make `args` of `default`, with their words."""
    pairs = zip(flatten(args), flatten(default), strict=True)
    return {
        flag_of(path, value): words(value)
        for (path, value, _, _), (_, usual, _, _) in pairs
        if value != usual and path not in SAME
    }


Flags = dict[str, list[str]]
"""words by flag"""


def families(script: str) -> tuple[dict[str, Flags], dict[str, Flags]]:
    """What a script's presets stand for: flags that a family shares, by `chain-*`, and the others, by preset.

    A family has one first word in common and at least three members.
    """
    module = module_of(script)
    own = {name: differences(preset.args, module.Args()) for name, preset in module.PRESETS.items()}
    kin: dict[str, list[str]] = {}
    for name in own:
        kin.setdefault(name.partition("-")[0], []).append(name)
    shared: dict[str, Flags] = {}
    for names in kin.values():
        first = own[names[0]]
        common = {flag: given for flag, given in first.items() if all(own[name].get(flag) == given for name in names)}
        if len(names) >= 3 and common:
            shared[family_name(names)] = common
            for name in names:
                own[name] = {flag: given for flag, given in own[name].items() if flag not in common}
    return shared, own


def family_name(names: Sequence[str]) -> str:
    """`chain-*`: the words with which all names begin; one name may consist of them."""
    same = 1
    while len({tuple(name.split("-")[: same + 1]) for name in names}) == 1:
        same += 1
    start = "-".join(names[0].split("-")[:same])
    return f"{start}*" if start in names else f"{start}-*"


# ------------------------------------------------------------------------------------------------------------ tables


def cell(text: str) -> str:
    """A text as a cell of a table: flags as code, and no character that Markdown or HTML would take for its own."""
    parts = re.split(r"(`[^`]+`|(?<![\w-])--[a-z][\w.-]*\w)", text)
    escaped = [re.sub(r"([*_|\[\]])", r"\\\1", part).replace("<", "&lt;").replace(">", "&gt;") for part in parts]
    return "".join(code(part.strip("`")) if i % 2 else escaped[i] for i, part in enumerate(parts))


def code(text: str) -> str:
    """Code in a cell."""
    return f"`{text}`".replace("|", "\\|")


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(row)} |" for row in lines)


def as_cell(flags: Mapping[str, Sequence[str]]) -> str:
    """Flags as a cell, each in one piece."""
    return " ".join(code(" ".join((flag, *given))) for flag, given in flags.items()) or "–"


def preset_table(script: str) -> str:
    """Presets of a script, and the flags that each stands for."""
    shared, own = families(script)
    described = module_of(script).PRESETS
    rows = [[code(name), cell(described[name].description), as_cell(flags)] for name, flags in own.items()]
    alike: dict[str, list[str]] = {}
    for name, flags in shared.items():
        alike.setdefault(as_cell(flags), []).append(code(name))
    common = [f"All {' and '.join(names)} share: {flags}" for flags, names in alike.items()]
    heads = ["preset", "what it is", "its flags, besides what its family shares" if common else "its flags"]
    return "\n\n".join(['<div class="presets" markdown>', *common, table(heads, rows), "</div>"])


def choices(kind: Any) -> str:
    """The values that a flag takes, as a cell; nothing where its default shows them."""
    options = typing.get_args(kind) if typing.get_origin(kind) is typing.Literal else ()
    if typing.get_origin(kind) is tuple and typing.get_origin(first := typing.get_args(kind)[0]) is typing.Literal:
        return f"Any of {', '.join(map(code, typing.get_args(first)))}."
    return f"One of {', '.join(map(code, map(str, options)))}." if options else ""


def flag_tables(script: str) -> str:
    """Every flag of a script, its default and its meaning, a table for each group."""
    args = module_of(script).Args()
    groups: dict[str, list[list[str]]] = {}
    titles = {"": "Of the script"}
    for field in dataclasses.fields(args):
        if dataclasses.is_dataclass(group := getattr(args, field.name)):
            about = inspect.cleandoc(type(group).__doc__ or "").split("\n\n")[0]
            titles[field.name] = f"`--{field.name}.*`: {cell(' '.join(about.split()))}"
    for path, value, kind, cls in flatten(args):
        group, _, name = path.rpartition(".")
        usual = "off" if value is False else "on" if value is True else " ".join(words(value)) or "(none)"
        shown = "–" if value is None else code(usual)
        meaning = " ".join(part for part in (cell(help_of(cls, name)), choices(kind)) if part)
        meaning = re.sub(r"(?<=[a-z0-9)]) (One of|Any of) `", r". \1 `", meaning)
        groups.setdefault(group, []).append([code(flag_of(path, True)), shown, meaning])
    heads = ["flag", "default", "meaning"]
    return "\n\n".join(f"{titles[name]}\n\n{table(heads, rows)}" for name, rows in groups.items())


def logged_table(script: str) -> str:
    """What a script logs, and when."""
    rows = []
    for when, tags in LOGGED[script].items():
        for tag in tags:
            rows.append([code(tag), cell(TAGS[tag].meaning), cell(TAGS[tag].unit), when.removesuffix(", too")])
    return table(["tag", "meaning", "unit", "logged when"], rows)


def all_tags() -> str:
    """Every tag, by group."""
    left, parts = dict(TAGS), []
    for start, title in GROUPS.items():
        rows = [[code(tag), cell(one.meaning), cell(one.unit)] for tag, one in TAGS.items() if tag.startswith(start)]
        left = {tag: one for tag, one in left.items() if not tag.startswith(start)}
        parts.append(f"### {title}\n\n{table(['tag', 'meaning', 'unit'], rows)}")
    if left:
        raise ValueError(f"no heading of GROUPS fits {', '.join(left)}")
    return "\n\n".join(parts)


# ------------------------------------------------------------------------------------------------------------- pages


def marks(name: str) -> tuple[str, str]:
    """What stands before and behind a generated part."""
    return f"<!-- {name}: written by docs/generate.py -->", f"<!-- end of {name} -->"


def parts_of(page: Path) -> dict[str, str]:
    """The generated parts of a page, by name."""
    if page == PAGES / "metrics.md":
        return {"tags": all_tags()}
    script = page.stem
    return {"presets": preset_table(script), "flags": flag_tables(script), "logged": logged_table(script)}


def with_parts(text: str, parts: Mapping[str, str], page: Path) -> str:
    """A page with its generated parts as they should be.

    Raises:
        ValueError: a pair of marks is not there.
    """
    for name, content in parts.items():
        begin, end = marks(name)
        if text.count(begin) != 1 or text.count(end) != 1:
            raise ValueError(f"{page} has no place for {name}: put {begin} and {end} where it belongs")
        before, rest = text.split(begin)
        text = f"{before}{begin}\n\n{content}\n\n{end}{rest.split(end)[1]}"
    return text


def pages() -> list[Path]:
    """The pages that have generated parts."""
    return [*(PAGES / "agents" / f"{script}.md" for script in SCRIPTS), PAGES / "metrics.md"]


def main(arguments: Sequence[str]) -> int:
    """Write the pages, or check them; the exit code."""
    stale = []
    for page in pages():
        text = page.read_text(encoding="utf-8")
        if (new := with_parts(text, parts_of(page), page)) != text:
            stale.append(str(page.relative_to(ROOT)))
            if "--check" not in arguments:
                page.write_text(new, encoding="utf-8")
    print("\n".join(stale) if stale else "all pages are up to date")
    return int(bool(stale) and "--check" in arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
