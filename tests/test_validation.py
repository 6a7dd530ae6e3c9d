"""Values of the wrong kind are refused by name, whatever they are, and values of the right kind come back as they are."""

import math

import numpy as np
import pytest

from textdiff.validation import check_choice, check_flag, check_integer, check_number, check_strings, check_text

WRONG_LISTS = ["yes", b"yes", {"yes": 1}, {"yes"}, iter(["yes"]), None, 3, ["yes", ""], ["yes", None], [["yes"]]]


@pytest.mark.parametrize("value", WRONG_LISTS, ids=lambda value: type(value).__name__)
def test_what_is_no_list_of_strings_is_refused(value):
    with pytest.raises(ValueError, match=r"^must"):
        check_strings("must", value)


def test_lists_and_tuples_of_strings_come_back():
    assert check_strings("must", ["a", "b"]) == check_strings("must", ("a", "b")) == ("a", "b")
    assert check_strings("must", []) == ()


@pytest.mark.parametrize("value", [True, 1.0, 1.5, "1", None, math.nan, [1]], ids=repr)
def test_what_is_no_integer_is_refused(value):
    with pytest.raises(ValueError, match=r"^seed must be a whole number; got"):
        check_integer("seed", value)


@pytest.mark.parametrize("value", [True, "1", None, math.nan, math.inf, -math.inf, 1j, np.float32("nan")], ids=repr)
def test_what_is_no_finite_number_is_refused(value):
    with pytest.raises(ValueError, match=r"^rate must be a number; got"):
        check_number("rate", value)


def test_limits_are_named():
    with pytest.raises(ValueError, match=r"batch_size must be a whole number of at least 1; got 0"):
        check_integer("batch_size", 0, least=1)
    with pytest.raises(ValueError, match=r"max_time must be a number above 0; got 0"):
        check_number("max_time", 0, above=0)
    with pytest.raises(ValueError, match=r"top_p must be a number above 0, at most 1; got 1.5"):
        check_number("top_p", 1.5, above=0, most=1)
    with pytest.raises(ValueError, match=r"min_p must be a number from 0 to 1; got -1"):
        check_number("min_p", -1, least=0, most=1)
    assert check_integer("n", np.int64(3), least=1, most=3) == 3
    assert check_number("x", np.float32(0.5), above=0, most=1) == 0.5


def test_text_choices_and_flags():
    assert check_text("text", "a") == "a"
    for value in (None, b"a", 3, ["a"]):
        with pytest.raises(ValueError, match="text must be a string; got"):
            check_text("text", value)
    assert check_choice("select", "likely", ("likely", "mbr")) == "likely"
    with pytest.raises(ValueError, match="select must be one of likely, mbr; got None"):
        check_choice("select", None, ("likely", "mbr"))
    for value in (0, 1, "no", None):
        with pytest.raises(ValueError, match="packed must be True or False; got"):
            check_flag("packed", value)
    assert check_flag("packed", False) is False


def test_a_long_value_is_cut_in_the_error():
    with pytest.raises(ValueError) as caught:
        check_integer("seed", "x" * 10_000)
    assert len(str(caught.value)) < 160
