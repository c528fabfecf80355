"""Branching: a new run from another run's state, with some flags changed. Which flags can change, and what follows.

Every flag of every script is either honoured, by the rules below, or refused with the reason. Parts of the state:

    network, optimiser, replay memory, priorities, counters, random streams, latest returns     always carried over
    environment          carried over; a shift that is new begins at its first task, around the episodes that run
    rewarming            carried over; as at the beginning of a run if a flag of --schedule or --rewarm changed
    projection           norms are carried over; what is newly held is held at its norm at the branch point
    methods              carried over; a new one begins with the weights at the branch point
    meter, probe         counts are carried over; with another cadence the probe has no previous measurement
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from runs.recording import Pieces, RunError, config_to_dict, read_json
from runs.recording.commandline import TOTALS, branch_source
from runs.recording.config import flat
from runs.recording.directory import CONFIG, PROVENANCE, SavedState, kept_path, read_state
from runs.training.checks import flag as flag_of
from runs.training.precision import in_float32

# Flags that are read whenever they are needed: a changed one holds from the first step of the branch on.
READ = (
    "device threads exp_name directory track wandb_project_name wandb_entity "
    "keep_checkpoints_every checkpoint_every log_every "
    "eval_every eval_episodes eval_epsilon evaluations_per_decade record_video "
    "learning_rate gamma gae_lambda value_lambda norm_adv clip_coef clip_vloss ent_coef vf_coef max_grad_norm "
    "batch_size n_step target_network_frequency double_q start_e end_e exploration_steps gradient capture "
    "replay_device loss_dtype "
    "augment "
    "prioritized_replay_beta prioritized_replay_uniform data_folder cache rewarm.peak_factor rewarm.moments "
    "switch.* reset.layers"
)
OPTIMISER = "adam_eps adam_beta2 weight_decay scale_decay"
HONOURED: Mapping[str, str] = {
    **dict.fromkeys(READ.split(), "read when it is needed"),
    **dict.fromkeys(OPTIMISER.split(), "a constant of the optimiser; its moments are carried over"),
    **dict.fromkeys(TOTALS, "the end of the run"),
    **dict.fromkeys(("schedule.*", "rewarm.*"), "schedule and trigger begin at the branch point"),
    "nap.*": "norms are carried over; those newly held are the norms at the branch point",
    "intervene.*": "methods are carried over; a new one begins with the weights at the branch point",
    "probe.*": "later measurements",
    "shift.every_steps": "later changes", "shift.at_steps": "later changes", "shift.rate": "later changes",
    "shift.*": "a shift where there was none begins at its first task; another cannot replace one that is there",
    "reset.at_steps": "later resets",
}  # fmt: skip
"""flags that a branch can change, and what that means; group.* stands for the flags of a group not named themselves"""

_WORLD = "env_id max_episode_steps num_envs protocol env_threads"
_NETWORK = (
    "network width activation bf16 n_atoms v_min v_max noisy_sigma blocks heads head_size hidden embedding_std norm.* "
    "model strides hidden_norm"
)
_COUNTS = (
    "num_steps num_minibatches update_epochs replay_ratio learning_starts priming_updates fresh_episodes phase_updates "
    "phase_epochs"
)
_MEMORY = "buffer_size clip_rewards prioritized_replay_alpha"
_DATA = "p operation train_fraction dataset batches train_images fractions"
_THEORY = "alpha sigma lowest highest rates inputs fan_in"
REFUSED: Mapping[str, str] = {
    "seed": "its random streams are carried over",
    "seeds": "its random streams are carried over",
    "resume": "it continues a run, and --branch starts one",
    "extend": "it continues a run, and --branch starts one",
    "branch": "it names the parent",
    **dict.fromkeys(_WORLD.split(), "the saved environments are others"),
    **dict.fromkeys(_NETWORK.split(), "the weights are of another network"),
    **dict.fromkeys(_COUNTS.split(), "it decides how steps and updates are counted"),
    **dict.fromkeys(_MEMORY.split(), "the replay memory was filled with it"),
    **dict.fromkeys(_DATA.split(), "the parent trained on other data"),
    **dict.fromkeys(_THEORY.split(), "the run is one simulation"),
    "reward_scale": "values were learned in its unit",
    "match_elr": "it matches a whole run",
    "control": "the control may train already",
    "assignment": "the rates of the layers are part of the state",
}
"""flags that a branch cannot change, and why"""

IN_PHASES: Mapping[str, str] = {
    "batch_size": "the order of the images is part of the state",
    **dict.fromkeys(("schedule.*", "rewarm.*"), "decays end with the phases of --fractions"),
}  # fmt: skip
"""further flags that cannot change in a script with --fractions"""


def rule(flag: str, config: Mapping[str, Any]) -> tuple[bool, str]:
    """Whether a branch can change a flag (`nap.every`) of a script with this configuration; and what follows, or why
    not.

    Raises:
        KeyError: there is no rule.
    """
    further = IN_PHASES if "fractions" in config else {}
    for name in (flag, f"{flag.partition('.')[0]}.*"):
        for honoured, table in ((False, further), (True, HONOURED), (False, REFUSED)):
            if name in table:
                return honoured, table[name]
    raise KeyError(flag)


OWN = ("branch", "resume", "extend", "directory")
"""flags in which a run always differs from its parent"""


class Branch:
    """The parent of a run, and what the run changes.

    Args:
        args: the flags of the new run; `branch` names the parent.
    Raises:
        RunError: a flag cannot change.
    """

    def __init__(self, args: Any) -> None:
        self._args = args
        self.directory, self._step = branch_source(args.branch)
        now = config_to_dict(args)
        self.before, self.now = flat(read_json(self.directory / CONFIG)), flat(now)
        later = getattr(type(args), "LATER", ())
        self.changed = {
            flag: [self.before.get(flag), value]
            for flag, value in self.now.items()
            if flag not in OWN and (flag in self.before or flag not in later) and self.before.get(flag) != value
        }
        if args.directory is not None and args.directory.resolve() == self.directory.resolve():
            raise RunError(f"--directory {args.directory} is that of the run to branch from; give another, or none")
        for flag, (was, value) in self.changed.items():
            try:
                honoured, why = rule(flag, now)
            except KeyError:
                raise RunError(
                    f"{flag_of(flag)} cannot change in a branch: no rule says what that would mean; add one to "
                    "HONOURED or REFUSED in runs/training/branching.py"
                ) from None
            if not honoured:
                raise RunError(f"{flag_of(flag)} cannot change in a branch, from {was!r} to {value!r}: {why}")
        self._check_shift()
        if self.restarts and self._whole_run():
            raise RunError(
                "--schedule.period-steps 0, the whole run, has no meaning in a branch that restarts the schedule: give "
                "its agent steps from the branch point on"
            )
        if self.changes(*TOTALS) and self._whole_run():
            raise RunError(
                "--total-timesteps cannot change in a branch with --schedule.period-steps 0, the whole run: give the "
                "agent steps of a schedule that begins at the branch point"
            )

    def changes(self, *flags: str) -> bool:
        """One of these flags, or groups, has changed."""
        return any(one == flag or one.startswith(f"{flag}.") for one in self.changed for flag in flags)

    @property
    def restarts(self) -> bool:
        """Schedule and trigger begin at the branch point."""
        return any(
            flag.startswith(("schedule.", "rewarm.")) and flag not in ("rewarm.peak_factor", "rewarm.moments")
            for flag in self.changed
        )

    def _whole_run(self) -> bool:
        """The schedule spans the whole run."""
        return self.now.get("schedule.kind") != "constant" and self.now.get("schedule.period_steps") == 0

    def _check_shift(self) -> None:
        if not (changed := [flag for flag in self.changed if flag.startswith("shift.")]):
            return
        before, now = self.before["shift.kind"], self.now["shift.kind"]
        timetable = {"shift.every_steps", "shift.at_steps", "shift.rate"}
        if before != "none" and (fixed := [flag for flag in changed if flag not in timetable]):
            was, value = self.changed[fixed[0]]
            why = f"--shift.kind {before} has run already, and only its times (every-steps, at-steps, rate) can change"
            raise RunError(f"{flag_of(fixed[0])} cannot change in a branch, from {was!r} to {value!r}: {why}")
        on_screen = "protocol" in self.now or str(self.now.get("env_id")).startswith("MinAtar/")
        if before == "none" and (now in ("games", "modes", "difficulties") or (now == "sticky" and on_screen)):
            raise RunError(f"--shift.kind {now} cannot begin in a branch: it needs environments that are built for it")
        if self.now.get("shift.drift"):
            raise RunError("--shift.drift cannot begin or change in a branch: it is a function of the run's steps")

    def read(self, parts: Mapping[str, Any]) -> SavedState:
        """Read the parent's state; nothing is written yet.

        Raises:
            RunError: there is none, it is damaged, or a flag does not fit its step.
        """
        saved = read_state(self.directory, self._step)
        self.step = saved.step
        self._check_steps()
        require_pieces(saved.state, saved.pieces, f"cannot branch from {self.directory} at step {saved.step}")
        require_nothing_missed(saved, self._args, self.before, "cannot branch from the end")
        if missing := sorted(set(parts) - saved.state.keys()):
            raise RunError(
                f"cannot branch from {self.directory}: its state has no {missing[0]}; another script made it"
            )
        return saved

    def _check_steps(self) -> None:
        for total in TOTALS:
            if self.now.get(total, self.step + 1) <= self.step:
                raise RunError(
                    f"nothing is left to do: {flag_of(total)} is {self.now[total]}, and the branch starts at "
                    f"{self.step}"
                )
        for flag in ("shift.at_steps", "reset.at_steps"):
            if flag in self.changed:
                was, value = self.changed[flag]
                if missed := [at for at in value if at <= self.step and at not in (was or ())]:
                    raise RunError(f"{flag_of(flag)} {missed[0]} never comes: the branch starts at step {self.step}")
        at = self.now.get("rewarm.at_update")
        if self.restarts and self.now["rewarm.trigger"] == "at" and at <= self.step:
            raise RunError(f"--rewarm.at-update {at} never comes: the branch starts at update {self.step}")

    def record(self) -> dict[str, Any]:
        """What provenance.json says of the parent."""
        git = read_json(self.directory / PROVENANCE).get("git") if (self.directory / PROVENANCE).exists() else None
        revision = git.get("revision") if isinstance(git, dict) else None
        changed = {flag_of(flag): change for flag, change in self.changed.items()}
        return {"directory": str(self.directory.resolve()), "step": self.step, "revision": revision, "changed": changed}

    def described(self, unit: str) -> str:
        """One line for the terminal."""
        changed = ", ".join(f"{flag_of(flag)} {was} -> {now}" for flag, (was, now) in self.changed.items())
        return f"branch of {self.directory} at {unit} {self.step:,}; {changed or 'no flag changed'}"

    # Parts of the state.

    def load(self, name: str, part: Any, state: Any, *, updates: int) -> None:
        """Put the parent's state into a part, by the rules of the changed flags.

        Args:
            name: of the part; a part that is a dataclass of parts, such as a learner, is loaded field by field.
            state: the parent's.
            updates: taken at the branch point.
        """
        if dataclasses.is_dataclass(part):
            owner = getattr(part, "network", None)
            self._network = owner if owner is not None else getattr(self, "_network", None)
            for field in dataclasses.fields(part):
                self.load(field.name, getattr(part, field.name), state[field.name], updates=updates)
            return
        if name in ("network", "q_network"):
            self._network = part
        loader = getattr(self, f"_load_{name}", None)
        if loader is None:
            part.load_state_dict(state)
        else:
            loader(part, state, updates)

    def _load_optimizer(self, part: Any, state: Any, updates: int) -> None:
        constants = [{k: v for k, v in group.items() if k not in ("params", "lr")} for group in part.param_groups]
        part.load_state_dict(state)
        if self.changes(*OPTIMISER.split()):
            for group, own in zip(part.param_groups, constants, strict=True):
                group.update(own)

    def _load_rewarming(self, part: Any, state: Any, updates: int) -> None:
        if self.restarts:
            part.set_rates_again()  # the optimiser's state has brought the parent's
        else:
            part.load_state_dict(state)

    def _load_recent(self, part: Any, state: Any, updates: int) -> None:
        if bool(state) == part.on:  # else the trigger has changed, and the first TD errors are yet to come
            part.load_state_dict(state)

    def _load_projection(self, part: Any, state: Any, updates: int) -> None:
        if not self.changes("nap"):
            part.load_state_dict(state)
            return
        if not self.now["nap.enabled"]:
            return
        with in_float32(self._network) if hasattr(self._network, "bf16") else contextlib.nullcontext():
            part.remember_norms_(gains=True)
        if not state:
            return
        own = part.state_dict()
        policies = "nap.gains" in self.changed
        part.load_state_dict(
            {
                "norms": {name: state["norms"].get(name, norm) for name, norm in own["norms"].items()},
                "gain_norms": own["gain_norms"] if policies else state["gain_norms"],
                "updates": state["updates"],
            }
        )

    def _load_methods(self, part: Any, state: Any, updates: int) -> None:
        part.load_state_dict(state) if not self.changes("intervene") else part.branch(state, updates)

    def _load_meter(self, part: Any, state: Any, updates: int) -> None:
        if part.state_dict():  # it measures
            part.load_state_dict(state or {"updates": updates})

    def _load_probe(self, part: Any, state: Any, updates: int) -> None:
        known = "inputs_digest"  # those of another first task may be others
        others = self.changes("shift.kind") and state.get(known) != part.state_dict().get(known)
        if not (others or self.changes("probe.every", "probe.size")):
            part.load_state_dict(state)

    def _load_env(self, part: Any, state: Any, updates: int) -> None:
        if not self.changes("shift"):
            part.load_state_dict(state)
        elif self.before["shift.kind"] == "none":
            _innermost(part, lambda shift, inner: shift.begin_around(inner, self.step), state)
        else:
            _innermost(part, lambda shift, inner: shift.continue_otherwise(inner), state)


def _innermost(env: Any, load: Any, state: Any) -> None:
    """Load into the shift of an environment, which stacks of frames may surround."""
    if hasattr(type(env), "begin_around"):  # a wrapper of gymnasium has the attributes of what it wraps
        load(env, state)
        return
    env.load_state_dict(state, inner=lambda inner, its_state: load(inner, its_state))


def task_of(env: Any) -> int | None:
    """The present task of an environment; None if nothing changes it."""
    while env is not None and not hasattr(type(env), "begin_around"):
        env = getattr(env, "env", None)
    return None if env is None else int(env.task)


def piece_names(state: Mapping[str, Any]) -> list[str]:
    """The pieces that a state names."""
    parts = [part for part in state.values() if isinstance(part, Mapping) and "pieces" in part]
    return [piece[0] for part in parts for piece in part["pieces"]]


def require_pieces(state: Mapping[str, Any], pieces: Pieces, what: str) -> None:
    """Refuse a state whose pieces are gone (RunError)."""
    if any(not (pieces.directory / f"{name}.pt").exists() for name in piece_names(state)):
        raise RunError(
            f"{what}: its replay memory is not there. It is deleted when a run finishes, and replaced while it trains; "
            "checkpoints kept by --keep-checkpoints-every hold theirs"
        )


def require_nothing_missed(saved: SavedState, args: Any, before: Mapping[str, Any], what: str) -> None:
    """Refuse (RunError) to continue from a run's last step if there the run skipped its reaction to a change of the
    task or to a trigger."""
    total = next((before[name] for name in TOTALS if name in before), None)
    if total is None or saved.step < total:
        return
    iteration = getattr(args, "iteration_steps", getattr(args, "num_envs", 1))
    if before.get("shift.kind", "none") != "none" and _last_change(saved.state.get("env")) > saved.step - iteration:
        raise RunError(
            f"{what} at step {saved.step}: the task changed in the last step or iteration, to which a run that ends "
            "does not react; use an earlier kept checkpoint"
        )
    heard = before.get("switch.when") == "trigger" or before.get("intervene.when") == "trigger"
    rewarming = saved.state.get("rewarming", {})
    updates = getattr(args, "update_epochs", 1) * getattr(args, "num_minibatches", 1)
    if heard and rewarming["events"] and rewarming["events"][-1] > rewarming["updates"] - updates:
        raise RunError(
            f"{what} at step {saved.step}: the trigger fired in the last iteration, to which a run that ends does not "
            "react; use an earlier kept checkpoint"
        )


def _last_change(state: Any) -> int:
    """Step of the last change of the task in a saved environment; -1 without one."""
    if not isinstance(state, Mapping):
        return -1
    own = int(state["changed_at"]) if state.get("changes") and "changed_at" in state else -1
    return max(own, _last_change(state.get("env")))


def require_same_past(args: Any, before: Mapping[str, Any]) -> None:
    """Refuse a longer run (RunError) whose past would have been another, had it been so long from the start."""
    now = flat(config_to_dict(args))
    if now.get("schedule.kind", "constant") != "constant" and now.get("schedule.period_steps") == 0:
        raise RunError(
            f"--extend {args.extend} would change the past: --schedule.period-steps 0 spreads --schedule.kind "
            f"{now['schedule.kind']} over the whole run"
        )
    beta = now.get("prioritized_replay_beta", 1.0)
    if beta < 1 and now["prioritized_replay_alpha"] > 0 and now["prioritized_replay_uniform"] < 1:
        raise RunError(
            f"--extend {args.extend} would change the past: --prioritized-replay-beta {beta} grows to 1 over the whole "
            "run"
        )


def read_to_extend(args: Any) -> SavedState:
    """The last state of the run that --extend makes longer; nothing is written yet.

    Raises:
        RunError: it is not there, or the longer run would have another past.
    """
    directory: Path = args.resume
    before = flat(read_json(directory / CONFIG))
    require_same_past(args, before)
    saved = read_state(directory)
    kept = Pieces(kept_path(directory, saved.step).with_suffix(""))
    if piece_names(saved.state) and not kept.directory.is_dir():
        kept = Pieces(directory / "pieces")
    require_pieces(saved.state, kept, f"cannot extend {directory}")
    require_nothing_missed(saved, args, before, "cannot extend the run")
    for name in TOTALS:
        if name in before and args.extend <= saved.step:
            raise RunError(f"--extend {args.extend}: the run has {saved.step} already")
    return dataclasses.replace(saved, pieces=kept)
