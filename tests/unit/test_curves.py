"""Curves in a terminal: what is drawn is where it should be."""

from sluice.commands.curves import BLANK, Curves, chart


def frame(curves: Curves) -> list[str]:
    """The characters within the frame, 10 by 4."""
    return [line[10:] for line in chart(curves, 10, 4).plain.splitlines()[:4]]


def test_a_rising_curve_goes_from_below_left_to_above_right() -> None:
    drawn = frame({"up": [0.0, 1.0, 2.0]})
    first, last = drawn[3][0], drawn[0][9]
    assert ord(first) - BLANK & 0x40 and ord(last) - BLANK & 0x08, "the lowest dot at left, the highest at right"
    assert drawn[0][0] == drawn[3][9] == " "
    columns = [[row for row in range(4) if drawn[row][column] != " "] for column in range(10)]
    assert all(columns), "joined by lines"


def test_range_epochs_names_and_last_values() -> None:
    text = chart({"a": [0.25, 0.5], "b": [None, 0.75, None]}, 30, 5).plain
    assert "0.75 ┤" in text and "0.25 ┤" in text and "epoch 3" in text
    assert "a 0.5" in text and "b 0.75" in text


def test_what_has_nothing_to_show() -> None:
    assert chart({}).plain == chart({"a": [], "b": [None]}).plain == "nothing to draw yet"
    flat = frame({"a": [3.0]})
    assert sum(character != " " for line in flat for character in line) == 1
