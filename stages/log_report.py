"""Log a report over several experiments to MLflow, as a run that is found by its name.

`python -m stages.log_report` reads what the run is to hold from its standard input, as JSON: the
flows of `pipelines` do without MLflow.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import Field

from mar.config import Config
from stages import mlflow_store, tracking
from stages.mlflow_store import MOST_CHARACTERS, NOTE, Store


TAG = "mar.report"


class ReportRun(Config):
    """A run that holds a report, as it is so far."""

    key: str = Field(description="stands for one report: the same key continues its run")
    name: str = Field(description="what the run is called")
    status: Literal["RUNNING", "FINISHED", "FAILED", "KILLED"] = Field(
        description="how far the experiments are"
    )
    note: str = Field(description="Markdown at the top of the run's page")
    params: dict[str, str] = Field(description="what the report is about")
    numbers: dict[str, float] = Field(description="the best so far")
    step: int = Field(ge=0, description="experiments so far")
    files: list[Path] = Field(description="the report's files")
    picture: Path | None = Field(description="the one of them that the run's page shows")


def log(report: ReportRun) -> str:
    """Log a report, and return the address of the page that shows the runs.

    Raises:
        OSError: there is no server or database to talk to, or a file is missing.
        MlflowException: MLflow does not do what is asked.
    """
    store = mlflow_store.connect()
    run = _open(store, report)
    store.log_tags(run, {NOTE: report.note[:MOST_CHARACTERS]})
    known = store.client.get_run(run).data.metrics
    new = {name: value for name, value in report.numbers.items() if known.get(name) != value}
    store.log_numbers(run, new, dict.fromkeys(new, report.step))
    for path in report.files:
        store.client.log_artifact(run, str(path))
    if report.picture is not None:
        store.show(run, report.picture.name)
    if report.status == "RUNNING":
        store.client.update_run(run, status=report.status)
    else:
        store.client.set_terminated(run, report.status)
    return store.page


def _open(store: Store, report: ReportRun) -> str:
    """Return the id of the report's run, which is made if need be."""
    found = store.client.search_runs([store.experiment], f"tags.`{TAG}` = '{report.key}'")
    if found:
        return found[0].info.run_id
    tags = {**tracking.source_tags(), TAG: report.key, "mlflow.source.name": report.name}
    info = store.client.create_run(store.experiment, run_name=report.name, tags=tags).info
    store.log_params(info.run_id, report.params)
    return info.run_id


def main(arguments: Sequence[str] | None = None) -> int:
    """Log the report of the standard input, and print where the runs are shown."""
    argparse.ArgumentParser(prog="python -m stages.log_report", description=__doc__).parse_args(
        arguments
    )
    try:
        page = log(ReportRun.model_validate_json(sys.stdin.read()))
    except Exception as error:
        sys.stderr.write(f"{mlflow_store.reason(error)}\n")
        return 1
    sys.stdout.write(f"{page}\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
