from pathlib import Path

import pytest

import failures


@pytest.fixture
def output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SM_OUTPUT_DIR", str(tmp_path / "output"))
    return tmp_path / "output"


def leave(error: BaseException | None) -> object:
    def main() -> None:
        if error is not None:
            raise error

    with pytest.raises(SystemExit) as left:
        failures.run(main, failures.TRAINING)
    return left.value.code


def test_nothing_wrong(output: Path) -> None:
    assert leave(None) == 0
    assert not output.exists()


def test_a_users_mistake_is_one_line(output: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert leave(failures.UserError("lr = é:\n  expected\ta number")) == 1
    assert capsys.readouterr() == ("", "error: lr = é: expected a number\n")
    assert (output / "failure").read_text(encoding="utf-8") == "error: lr = é: expected a number\n"


def test_a_bug_keeps_its_traceback(output: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert leave(KeyError("lr")) == 1
    error = capsys.readouterr().err
    assert error.startswith("Traceback")
    reason = (output / "failure").read_text()
    assert reason.startswith("KeyError: 'lr'\n")  # first, for SageMaker shows no more than the beginning
    assert "in main" in error
    assert "in main" in reason


def test_names_that_are_no_text_are_reported_all_the_same(output: Path) -> None:
    assert leave(failures.UserError("no photo in b\udcff")) == 1
    assert "b\\udcff" in (output / "failure").read_text()


def test_by_hand_outside_a_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("SM_OUTPUT_DIR", str(tmp_path / "file"))
    assert leave(failures.UserError("lr = 0")) == 1
    assert capsys.readouterr().err.startswith("error: lr = 0\n(the reason could not be written to ")
