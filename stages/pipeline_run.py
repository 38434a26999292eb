"""The run of a whole pipeline: what it was given, and the headline numbers of all its stages.

Stages that DVC skips or restores run nothing of ours, so each stage that does run adds what is
known of the others: the numbers of the run that made the same result, found by its lineage, or else
those of a `metrics.json` that came with the repository.
"""

import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mar.files import atomic
from stages import changes, headline, lineage, once, params
from stages.mlflow_store import NOTE, Store, exclusive


TAG = "mar.pipeline"
PARAMS_TAG = "mar.params"  # digest of params.yaml: a run has one set of parameters
LINEAGE_TAG = "mar.lineage"
OUT = Path("out")
MANIFEST = OUT / "prepare" / "manifest.parquet"
# Pictures of stages that their pipeline shows too, and under which name.
PICTURES = {
    "sample": ("grid.png", "samples"),
    "reconstruct": ("reconstructions.png", "reconstructions"),
}


def name(changed: Mapping[str, Any] | None, commit: str) -> str:
    """Return what a run is called: what differs from the committed params, and the experiment."""
    experiment = os.environ.get("DVC_EXP_NAME")
    if changed is None:
        return experiment or time.strftime("pipeline %Y-%m-%d %H:%M:%S")
    if not changed:
        return experiment or (f"as committed ({commit[:7]})" if commit else "as committed")
    text = changes.describe(changed)
    return f"{text} ({experiment})" if experiment else text


def difference() -> dict[str, Any] | None:
    """Return the keys of `params.yaml` that differ from the committed ones, if those are known."""
    before = changes.committed()
    return None if before is None else changes.differing(before, changes.current())


def open_run(store: Store, tags: Mapping[str, str]) -> str:
    """Return the id of the pipeline's run, which the first of its stages makes."""
    shared = {TAG: once.pipeline_key(), PARAMS_TAG: _digest(changes.current())}
    query = " and ".join(f"tags.`{tag}` = '{value}'" for tag, value in shared.items())
    with exclusive():
        found = store.client.search_runs([store.experiment], query, max_results=1)
        if found:
            return found[0].info.run_id
        changed = difference()
        title = name(changed, tags.get("git.commit", ""))
        described = {
            **tags,
            **shared,
            "mlflow.source.name": "dvc.yaml",
            NOTE: _describe(changed, tags),
        }
        info = store.client.create_run(store.experiment, run_name=title, tags=described).info
    store.log_params(info.run_id, changes.current())
    return info.run_id


def finish(store: Store, run: str, stage: str, numbers: Mapping[str, float]) -> None:
    """Add what a finished stage made, and what is known of the stages that need not run."""
    own = headline.select(stage, numbers)
    found = dict(own)
    _show(store, run, stage, OUT / stage)
    _log_dataset(store, run)
    stages = lineage.declarations()
    identities = lineage.digests(stages, params.read()) if stages else {}
    recorded = lineage.locked()
    for name in stages:
        if name == stage:
            continue
        if name in identities and (maker := find_run(store, name, identities[name])):
            found |= headline.select(name, maker.data.metrics)
            _show_from(store, run, name, maker.info.run_id)
        elif lineage.is_current(name, stages, recorded):
            found |= headline.select(name, numbers_of(OUT / name))
            _show(store, run, name, OUT / name)
    _log_numbers(store, run, found, own)


def own_lineage(stage: str) -> str | None:
    """Return the lineage of a stage as the files are now."""
    stages = lineage.declarations()
    return lineage.digests(stages, params.read()).get(stage) if stages else None


def find_run(store: Store, stage: str, identity: str) -> Any:
    """Return the last finished run of a stage that has a lineage, if there is one."""
    query = (
        f"tags.`{LINEAGE_TAG}` = '{identity}' and tags.`mar.stage` = '{stage}' "
        "and attributes.status = 'FINISHED'"
    )
    found = store.client.search_runs(
        [store.experiment], query, max_results=1, order_by=["attributes.end_time DESC"]
    )
    return found[0] if found else None


def numbers_of(folder: Path) -> dict[str, Any]:
    """Return what a stage measured, nested numbers as `group/name`."""
    path = folder / "metrics.json"
    if not path.is_file():
        return {}
    flat = changes.flatten(json.loads(path.read_text(encoding="utf-8")))
    return {key.replace(".", "/"): value for key, value in flat.items()}


def _describe(changed: Mapping[str, Any] | None, tags: Mapping[str, str]) -> str:
    """Return what a person reads at the top of the run's page, as Markdown."""
    commit = tags.get("git.commit", "")[:7]
    if changed is None:
        text = "A run of the pipeline of `dvc.yaml`"
    else:
        keys = "; ".join(f"`{changes.assignment(key, it)}`" for key, it in changed.items())
        text = f"{keys}; all else" if keys else "All keys"
        text += f" as committed in `{commit}`" if commit else " as committed"
    if tags.get("git.dirty") == "true":
        text += ", by code that is not committed"
    if experiment := os.environ.get("DVC_EXP_NAME"):
        text += f". DVC experiment `{experiment}`: `dvc exp apply {experiment}` brings it back"
    return f"{text}."


def _log_numbers(
    store: Store, run: str, numbers: Mapping[str, float], own: Mapping[str, float]
) -> None:
    """Log numbers that the run does not hold yet: a second point would make a curve of a number.

    MLflow's page of a comparison begins with the number that came first. So scores come first;
    speeds and times wait for them, and so does everything where the stage that has finished has
    `own` numbers of no other kind: what is generated is scored next.
    """
    known = store.client.get_run(run).data.metrics
    scores = {key: value for key, value in numbers.items() if headline.is_score(key)}
    new = {key: it for key, it in {**scores, **numbers}.items() if known.get(key) != it}
    if not scores and not any(map(headline.is_score, known)):
        if all(map(headline.is_time, own)):
            return
        new = {key: value for key, value in new.items() if not headline.is_time(key)}
    store.log_numbers(run, new)


def _log_dataset(store: Store, run: str) -> None:
    """Log the images by the digest of their list."""
    if not MANIFEST.is_file() or store.client.get_run(run).inputs.dataset_inputs:
        return
    from mlflow.entities import Dataset, DatasetInput, InputTag

    data = params.read().get("data", {})
    source = str(data.get("path") or data.get("source", "data"))
    dataset = Dataset(
        name=Path(source).name[:500] or "data",
        digest=atomic.digest(MANIFEST)[:36],
        source_type="local",
        source=json.dumps({"uri": source}),
        profile=json.dumps({k: v for k, v in numbers_of(MANIFEST.parent).items() if k != "run_id"}),
    )
    store.client.log_inputs(
        run, [DatasetInput(dataset, [InputTag("mlflow.data.context", "train")])]
    )


def _show(store: Store, run: str, stage: str, folder: Path) -> None:
    """Show a stage's picture on the pipeline's page."""
    file, title = PICTURES.get(stage, ("", ""))
    if not file or not (folder / file).is_file():
        return
    store.log_image(run, folder / file, title, step=0)
    if title == "samples":
        store.show(run, f"{title}.png")


def _show_from(store: Store, run: str, stage: str, other: str) -> None:
    """Show the picture that the run of a stage holds, unless there is one already."""
    file, title = PICTURES.get(stage, ("", ""))
    if not file or f"{title}.png" in {item.path for item in store.client.list_artifacts(run)}:
        return
    if file in {item.path for item in store.client.list_artifacts(other)}:
        folder = Path(tempfile.mkdtemp())
        try:
            store.client.download_artifacts(other, file, str(folder))
            _show(store, run, stage, folder)
        finally:
            shutil.rmtree(folder)


def _digest(values: Mapping[str, object]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode()).hexdigest()[:16]
