"""Errors of the user end a command in one line and with a fixed exit code."""

import copy
import signal

import pytest

from gfl.common.errors import ERROR_FILE, Interrupted, UserError, error_context, run


def fail_with(error):
    def fail():
        raise error

    return fail


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (UserError("no file a"), 2),
        (Interrupted(signal.SIGTERM), 143),
        (KeyboardInterrupt(), 130),
    ],
    ids=lambda value: type(value).__name__,
)
def test_an_error_is_one_line_and_an_exit_code(error, code, capsys, monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(SystemExit) as left:
        run(fail_with(error))
    assert left.value.code == code
    assert capsys.readouterr().err.count("\n") == 1


def test_a_message_that_cannot_be_printed_is_escaped(capsys):
    with pytest.raises(SystemExit):
        run(fail_with(UserError("a\ud800b\x1b[31m\nc")))
    assert capsys.readouterr().err == "error: a?b?[31m?c\n"


def test_the_message_also_goes_to_the_error_file(tmp_path, monkeypatch):
    monkeypatch.setenv(ERROR_FILE, str(tmp_path / "error.txt"))
    with pytest.raises(SystemExit):
        run(fail_with(UserError("no file a")))
    assert (tmp_path / "error.txt").read_text() == "no file a\n"


def test_other_errors_keep_their_traceback_and_results_are_returned():
    with pytest.raises(ZeroDivisionError):
        run(lambda: 1 / 0)
    assert run(lambda value: value, 7) == 7


def test_an_interruption_can_be_sent_to_other_processes():
    error = copy.copy(Interrupted(signal.SIGTERM))  # as pickle does it
    assert (error.signum, str(error)) == (signal.SIGTERM, "interrupted by SIGTERM")


def test_a_context_names_its_subject_and_keeps_the_code():
    with pytest.raises(UserError) as error, error_context("file a"):
        raise UserError("is damaged", code="damaged")
    assert (str(error.value), error.value.code) == ("file a: is damaged", "damaged")
