"""The MLflow run of a report: a flow's own, beside those of its experiments.

`stages.log_report` writes it in a process of its own, as flows do without MLflow. A report is never
lost for want of MLflow: its files are in the project.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prefect import get_run_logger


PATIENCE = 120.0  # seconds; a server that does not answer takes a few


@dataclass
class ReportRun:
    """The run of a report.

    Attributes:
        project: Whose runs these are.
        key: Stands for the report: the same key continues its run.
        name: What the run is called.
        params: What the report is about.
    """

    project: Path
    key: str
    name: str
    params: Mapping[str, str]
    _logged: dict[str, Any] = field(default_factory=dict[str, Any])

    def log(
        self, *, note: str, numbers: Mapping[str, float], step: int, files: Sequence[Path]
    ) -> None:
        """Log the report as it is so far; its last file is the picture of the run's page.

        Args:
            note: Markdown at the top of the page.
            numbers: The best so far.
            step: Experiments so far.
            files: Those of the report.
        """
        paths = [str(path.resolve()) for path in files]
        self._logged = {
            "key": self.key,
            "name": self.name,
            "note": note,
            "params": dict(self.params),
            "numbers": dict(numbers),
            "step": step,
            "files": paths,
            "picture": paths[-1],
        }
        self._send("RUNNING")

    def end(self, status: str) -> None:
        """Say how the report ended, if anything was logged."""
        if self._logged:
            self._send(status)

    def _send(self, status: str) -> None:
        send(self.project, json.dumps({**self._logged, "status": status}))


def send(project: Path, report: str) -> None:
    """Let `stages.log_report` log a report; say it where that fails, and go on."""
    try:
        done = subprocess.run(
            [sys.executable, "-m", "stages.log_report"],
            cwd=project,
            env={**os.environ, "MAR_ROOT": str(project)},
            input=report,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
    except subprocess.TimeoutExpired:
        get_run_logger().warning("MLflow lacks the report: no answer in %d s", PATIENCE)
        return
    if done.returncode:
        said = done.stderr.strip().splitlines() or ["it ended without a word"]
        get_run_logger().warning("MLflow lacks the report: %s", said[-1])


@contextmanager
def tracked(run: ReportRun) -> Iterator[ReportRun]:
    """Note in the run how it ended, whatever the end is."""
    try:
        yield run
    except Exception:
        run.end("FAILED")
        raise
    except BaseException:
        run.end("KILLED")
        raise
    run.end("FINISHED")
