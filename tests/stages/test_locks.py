"""Where a file system has no locks, a stage says so in a line and goes on without one."""

import errno
import fcntl
from pathlib import Path

import pytest

from stages.locks import locked


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_said(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(file: int, operation: int) -> None:
        raise OSError(number, "no locks")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with locked(tmp_path / "work" / "lock", patience=1.0, waiting_for="sample"):
        pass
    (said,) = capsys.readouterr().err.splitlines()
    assert said.startswith(f"{tmp_path / 'work'} is on a file system without locks (")


def test_another_refusal_of_a_lock_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(file: int, operation: int) -> None:
        raise OSError(errno.EIO, "broken disk")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(OSError, match="broken disk"), locked(tmp_path / "lock"):
        pass
