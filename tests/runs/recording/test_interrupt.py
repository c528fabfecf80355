"""Signals, exit codes, and the name of the layer that is not finite."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

from runs.recording import (
    NonFiniteError,
    RunError,
    StopOnSignal,
    describe_nonfinite,
    exit_with_one_line,
    weights_and_gradients,
)

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_requests_a_stop_and_handlers_are_restored(number):
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with StopOnSignal() as stop:
        assert not stop.requested
        os.kill(os.getpid(), number)
        assert stop.requested
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_second_sigint_interrupts_at_once_and_second_sigterm_does_not():
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), StopOnSignal() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.requested
        os.kill(os.getpid(), signal.SIGINT)
        raise AssertionError("not reached")
    assert signal.getsignal(signal.SIGINT) == before


def test_signals_are_not_handled_outside_the_main_thread():
    seen = []

    def work():
        with StopOnSignal() as stop:
            seen.append((stop.requested, signal.getsignal(signal.SIGTERM)))

    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [(False, before)]


@pytest.mark.parametrize(
    "error, code", [(RunError("no\nspace"), 2), (NonFiniteError("nan"), 2), (KeyboardInterrupt(), 130)]
)
def test_expected_errors_are_one_line(capsys, error, code):
    def function():
        raise error

    with pytest.raises(SystemExit) as caught:
        exit_with_one_line(function)
    message = capsys.readouterr().err
    assert caught.value.code == code and message.count("\n") == 1
    if code == 2:
        assert message.endswith(f": {' '.join(str(error).split())}\n")


def test_bug_keeps_its_traceback_and_success_returns():
    with pytest.raises(ZeroDivisionError):
        exit_with_one_line(lambda: 1 / 0)
    exit_with_one_line(lambda: None)


def test_closed_output_is_one_line():
    code = (
        "from runs.recording import exit_with_one_line\n"
        "exit_with_one_line(lambda: [print('x' * 1000, flush=True) for _ in range(10_000)])"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT
    ) as process:
        process.stdout.read(10)
        process.stdout.close()
        assert process.stderr.read().endswith(": the output was closed\n")
        assert process.wait() == 1


def test_first_tensor_that_is_not_finite_is_named():
    network = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Linear(3, 1))
    network(torch.ones(1, 2)).sum().backward()
    assert describe_nonfinite(weights_and_gradients(network)) == "all 8 tensors examined are finite"
    network[1].weight.grad[0, 1:] = float("nan")
    text = "the gradient of 1.weight holds 2 nan and 0 inf among 3 entries"
    assert describe_nonfinite(weights_and_gradients(network)) == text
    with torch.no_grad():
        network[1].bias[0] = float("inf")  # a weight was there before the gradient: it is the cause
    text = "the weight 1.bias holds 0 nan and 1 inf among 1 entries"
    assert describe_nonfinite(weights_and_gradients(network)) == text
