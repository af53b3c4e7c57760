import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from failures import UserError
from hyperparameters import HEAD, Hyperparameter, Parser, unquote

COUNT = Hyperparameter("count", 3, "a number")
RATE = Hyperparameter("rate", 0.5, "a rate", above=0)
FLAG = Hyperparameter("flag", False, "yes or no")
NAME = Hyperparameter("name", "red", "a colour", choices=("red", "blue"))
TEXT = Hyperparameter("text", "", "anything")


def quoted(text: str, layers: int) -> str:
    for _ in range(layers):
        text = json.dumps(text)
    return text


@given(st.integers(1 - 10**18, 10**18 - 1), st.integers(0, 3))
def test_whole_numbers_survive_any_quoting(number: int, layers: int) -> None:
    assert COUNT.parse(quoted(str(number), layers)) == number


@given(st.floats(min_value=1e-300, allow_infinity=False), st.integers(0, 3))
def test_real_numbers_survive_any_quoting(number: float, layers: int) -> None:
    assert RATE.parse(quoted(repr(number), layers)) == number


@given(st.booleans(), st.integers(0, 3))
def test_booleans_survive_any_quoting(flag: bool, layers: int) -> None:
    assert FLAG.parse(quoted(str(flag), layers)) is flag
    assert FLAG.parse(quoted(str(flag).lower(), layers)) is flag


@given(st.text(), st.integers(1, 3))
def test_quotes_inside_a_text_stay(text: str, layers: int) -> None:
    assert unquote(quoted(f"a{text}z", layers)) == f"a{text}z"


@given(st.text())
def test_anything_is_a_number_or_a_clear_error(text: str) -> None:
    for hyperparameter in (COUNT, RATE):
        try:
            value = hyperparameter.parse(text)
        except UserError as error:
            assert hyperparameter.name in str(error)
            assert text in str(error)
        else:
            assert isinstance(value, type(hyperparameter.default))
            assert math.isfinite(value)


@pytest.mark.parametrize(
    ("hyperparameter", "text", "expected"),
    [
        (COUNT, "3.5", "a whole number"),
        (COUNT, '"\\"x\\""', "a whole number"),
        (COUNT, '"10', "a whole number"),
        (COUNT, "1_000", "a whole number"),
        (COUNT, "٣", "a whole number"),
        (COUNT, "", "a whole number"),
        (RATE, "nan", "a finite number above 0"),
        (RATE, "inf", "a finite number above 0"),
        (RATE, "1e999", "a finite number above 0"),
        (RATE, "0", "a finite number above 0"),
        (RATE, "-1", "a finite number above 0"),
        (RATE, "0,1", "a finite number above 0"),
        (FLAG, "1", "true or false"),
        (NAME, "green", "one of red, blue"),
        (HEAD[1], "0", "a whole number of at least 1"),
    ],
)
def test_a_wrong_value_names_itself_and_what_was_expected(
    hyperparameter: Hyperparameter, text: str, expected: str
) -> None:
    with pytest.raises(UserError) as error:
        hyperparameter.parse(text)
    assert str(error.value) == f"hyperparameter {hyperparameter.name} = {text}: expected {expected}"


def test_defaults_pass_their_own_checks() -> None:
    options = Parser(None, HEAD).parse([])
    assert (options.lr, options.batch_size, options.epochs) == (0.01, 32, 20)


def test_the_tuners_own_hyperparameter_is_let_through() -> None:
    options = Parser(None, [COUNT]).parse(["--_tuning_objective_metric", "average validation loss", "--count", '"7"'])
    assert options.count == 7


def test_an_unknown_option_suggests_the_right_one() -> None:
    with pytest.raises(UserError, match=r"unknown option --cuont; did you mean --count\?"):
        Parser(None, [COUNT]).parse(["--cuont", "1"])


def test_the_description_is_what_the_log_shows() -> None:
    parser = Parser(None, [COUNT, NAME])
    assert parser.describe(parser.parse(["--count", "7"])) == "count=7 name=red"


def test_text_is_taken_as_it_is() -> None:
    assert TEXT.parse('"average test loss"') == "average test loss"
