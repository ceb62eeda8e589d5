"""What libraries print is held back; what matters is shown."""

import os

import pytest

from partitioner.quiet import console, held
from sluice.wire.errors import PermanentError


def test_what_is_held_back_is_shown_after_a_defect_only(capfd: pytest.CaptureFixture[str]) -> None:
    for error, shown in ((PermanentError("no"), ""), (ZeroDivisionError(), "a last word\n")):
        with pytest.raises(type(error)), held():
            os.write(1, b"a last word\n")
            print("from Python")
            raise error
        assert capfd.readouterr() == ("", shown)
    print("afterwards")
    assert capfd.readouterr().out == "afterwards\n"


def test_progress_is_not_held_back(capfd: pytest.CaptureFixture[str]) -> None:
    with console() as progress, held():
        progress.print("half way")
        progress.file.flush()
        os.write(2, b"noise\n")
    assert capfd.readouterr() == ("", "half way\n")
