"""The report of a sweep is a run that is found by its name, and goes on where it was."""

import io
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from stages import log_report, mlflow_store
from stages.log_report import TAG


@pytest.fixture
def values(project: Path) -> dict[str, Any]:
    """Return what a run is to hold; the present folder is a project."""
    table, picture = project / "sweep-a.csv", project / "sweep-a.png"
    table.write_text("guidance,fid\n1.0,3.0\n")
    Image.new("RGB", (30, 20)).save(picture)
    return {
        "key": f"sweep-a-{project.parent.name}",
        "name": "sweep a",
        "status": "RUNNING",
        "note": "2 points.",
        "params": {"sample.guidance_scale": "1.0, 2.0"},
        "numbers": {"fid": 3.0},
        "step": 2,
        "files": [str(table), str(picture)],
        "picture": str(picture),
    }


def send(values: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr("sys.stdin", io.StringIO(json.dumps(values)))
    return log_report.main([])


def test_a_report_is_one_run_with_its_files_and_the_best_number(
    values: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert send(values, monkeypatch) == 0
    client = (store := mlflow_store.connect()).client
    query = f"attributes.run_name = 'sweep a' and tags.`{TAG}` = '{values['key']}'"
    (run,) = client.search_runs([store.experiment], query)
    assert run.info.status == "RUNNING"

    Path("sweep-a.csv").write_text("guidance,fid\n1.0,3.0\n2.0,2.5\n")
    later = {"numbers": {"fid": 2.5}, "step": 5, "status": "FINISHED", "note": "5 points."}
    for _ in range(2):  # one that is begun again adds nothing
        assert send({**values, **later}, monkeypatch) == 0
    (run,) = client.search_runs([store.experiment], query)
    assert run.info.status == "FINISHED"
    assert run.data.params == values["params"]
    history = client.get_metric_history(run.info.run_id, "fid")
    assert [(point.step, point.value) for point in history] == [(2, 3.0), (5, 2.5)]
    files = [item.path for item in client.list_artifacts(run.info.run_id)]
    assert files == ["sweep-a.csv", "sweep-a.png"]
    table = client.download_artifacts(run.info.run_id, "sweep-a.csv", str(Path.cwd() / "work"))
    assert "2.0,2.5" in Path(table).read_text()
    note = run.data.tags["mlflow.note.content"]
    assert note.startswith("5 points.")
    assert note.count("![sweep-a](get-artifact?path=sweep-a.png") == 1
    assert store.page in capsys.readouterr().out


def test_what_is_no_report_or_is_not_there_is_said_in_a_line(
    values: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert send({**values, "status": "DONE"}, monkeypatch) == 1
    assert "status" in capsys.readouterr().err
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    assert send(values, monkeypatch) == 1
    assert capsys.readouterr().err == "no answer from http://127.0.0.1:9\n"
