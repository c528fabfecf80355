"""A DQN run killed with SIGKILL and resumed gives the same scalars, bit for bit, as one that was not interrupted."""

from __future__ import annotations

import random
import shlex
import signal
import time
from pathlib import Path

from runs.recording import load_checkpoint, read_scalars, read_status
from tests.agents import scripts
from tests.agents.scripts import assert_same, finish

SCRIPT = Path(__file__).parents[2] / "agents" / "dqn_minatar.py"
# Everything that has a state is on: projection, schedule, detector, meter, probe, a replay memory that wraps around.
FLAGS = shlex.split(
    "adaptive --env-id MinAtar/Asterix-v1 --seed 7 --total-timesteps 1200 --learning-starts 100 --buffer-size 500 "
    "--exploration-steps 700 --target-network-frequency 150 --checkpoint-every 35 --log-every 25 --eval-every 400 "
    "--eval-episodes 3 --nap.every 3 --schedule.period-steps 400 --rewarm.block 5 --rewarm.burn-in 10 "
    "--rewarm.threshold 2 --rewarm.slack 0.1 --rewarm.refractory 5 --rewarm.moments reset "
    "--probe.every 60 --probe.size 16 --probe.meter-every 17"
)


def start(*flags):
    return scripts.start(SCRIPT, *flags)


def kill_after(process, table, rows, how=signal.SIGKILL):
    """Send the signal once the table on disk has more than `rows` rows; return the output."""
    while process.poll() is None and (not table.exists() or table.read_text().count("\n") <= rows):
        time.sleep(0.005)
    time.sleep(random.Random(rows).random() * 0.1)  # somewhere after the checkpoint that wrote the rows
    assert process.poll() is None, "the run ended before it could be killed"
    process.send_signal(how)
    return process.communicate(timeout=60)[0]


def rows_without_speed(directory):
    lines = (directory / "scalars.csv").read_text().splitlines()
    return [line for line in lines if ",charts/SPS," not in line]


def test_killed_three_times_and_resumed_is_bit_identical(tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    finish(start(*FLAGS, "--directory", whole))
    expected = rows_without_speed(whole)
    scalars = read_scalars(whole)
    assert len(scalars["rewarm/event"]) >= 1 and "plasticity/delta_c/conv_relu" in scalars

    draw = random.Random(2507)
    kill_after(start(*FLAGS, "--directory", killed), killed / "scalars.csv", draw.randrange(len(expected) // 4))
    steps = [load_checkpoint(killed / "checkpoint.pt")["step"]]
    for part in (2, 3):
        rows = draw.randrange((part - 1) * len(expected) // 4, part * len(expected) // 4)
        kill_after(start("--resume", killed), killed / "scalars.csv", rows)
        steps.append(load_checkpoint(killed / "checkpoint.pt")["step"])
    assert 0 <= steps[0] < steps[1] < steps[2] < 1200
    finish(start("--resume", killed))

    assert rows_without_speed(killed) == expected
    assert_same(*(load_checkpoint(d / "checkpoint.pt")["state"] for d in (whole, killed)))


def test_ctrl_c_saves_and_says_how_to_resume(tmp_path):
    directory = tmp_path / "run"
    output = kill_after(start(*FLAGS, "--directory", directory), directory / "scalars.csv", 30, signal.SIGINT)
    status = read_status(directory)
    assert status["status"] == "interrupted"
    assert f"stopped at step {status['step']}" in output and f"--resume {directory}" in output
    assert load_checkpoint(directory / "checkpoint.pt")["step"] == status["step"]
