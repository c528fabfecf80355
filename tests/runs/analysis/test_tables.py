"""Numbers, intervals and Markdown as the analyses print them."""

import math

from runs.analysis.tables import markdown, mean_over_seeds, shown, with_half_width


def test_numbers_have_three_digits_and_nan_is_a_dash():
    numbers = (math.nan, 0.12345, 12.345, 999.4, 999.6, -1234.5, 0.0)
    assert [shown(number) for number in numbers] == ["–", "0.123", "12.3", "999", "1,000", "-1,234", "0"]


def test_intervals_follow_their_mean():
    assert with_half_width(0.6123, 0.1234) == "0.612 ± 0.12"
    assert with_half_width(0.6123, math.nan) == "0.612"
    assert mean_over_seeds([1.0, 1.0]) == "1 ± 0" and mean_over_seeds([2.0]) == "2"


def test_markdown_table():
    assert markdown(("arm", "n"), [["nap", 3], ["plain", 2]]) == (
        "| arm | n |\n| --- | --- |\n| nap | 3 |\n| plain | 2 |\n"
    )
