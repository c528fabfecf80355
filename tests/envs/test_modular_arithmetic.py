"""envs.modular_arithmetic: answers, the split, and which test pairs have their mirror in the training set."""

from __future__ import annotations

import math

import numpy as np
import pytest

from envs.modular_arithmetic import OPERATIONS, modular_pairs


def answers(*parts):
    """{(x, y): answer} over several sets of pairs, which must not overlap."""
    pairs = [(*xy, answer) for part in parts for xy, answer in zip(part.xy.tolist(), part.answer.tolist(), strict=True)]
    found = {(x, y): answer for x, y, answer in pairs}
    assert len(found) == len(pairs)
    return found


@pytest.mark.parametrize("operation", ["add", "subtract", "multiply"])
@pytest.mark.parametrize("p", [7, 12])
def test_every_pair_has_its_answer_in_one_of_the_two_sets(operation, p):
    train, test = modular_pairs(p, operation, 0.3, np.random.default_rng(0))
    expected = {"add": lambda x, y: x + y, "subtract": lambda x, y: x - y, "multiply": lambda x, y: x * y}[operation]
    assert answers(train, test) == {(x, y): expected(x, y) % p for x in range(p) for y in range(p)}
    assert len(train.xy) == round(0.3 * p * p)


@pytest.mark.parametrize("p", [7, 12])
def test_division_undoes_multiplication_and_takes_only_what_has_an_inverse(p):
    train, test = modular_pairs(p, "divide", 0.3, np.random.default_rng(0))
    found = answers(train, test)
    assert set(found) == {(x, y) for x in range(p) for y in range(p) if math.gcd(y, p) == 1}
    assert all(answer * y % p == x and 0 <= answer < p for (x, y), answer in found.items())
    assert len(train.xy) == round(0.3 * len(found))


def test_mirrored_pairs_are_those_whose_mirror_is_trained_on():
    train, test = modular_pairs(13, "add", 0.4, np.random.default_rng(3))
    trained = set(map(tuple, train.xy.tolist()))
    expected = [(y, x) in trained and x != y for x, y in test.xy.tolist()]
    assert test.mirrored.tolist() == expected
    assert 0 < sum(expected) < len(expected)


def test_the_generator_draws_the_split():
    first, again, other = (modular_pairs(13, "add", 0.4, np.random.default_rng(seed))[0].xy for seed in (3, 3, 4))
    assert first.tolist() == again.tolist() != other.tolist()


@pytest.mark.parametrize(
    ("p", "operation", "fraction", "message"),
    [
        (2, "add", 0.01, "0.01 of 4 pairs leaves no training or no test pair"),
        (2, "add", 0.99, "leaves no training"),
        (1, "add", 0.5, "p at least 2"),
        (7, "power", 0.5, f"operation must be one of {OPERATIONS}"),
    ],
)
def test_a_split_without_a_side_and_an_unknown_operation_are_refused(p, operation, fraction, message):
    with pytest.raises(ValueError) as error:
        modular_pairs(p, operation, fraction, np.random.default_rng(0))
    assert message in str(error.value)
