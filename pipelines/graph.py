"""The stages of a project and their order, read from DVC's graph."""

import re
import subprocess
import sys
from collections.abc import Iterable
from graphlib import TopologicalSorter
from pathlib import Path

from stages.params import suggest


def read(project: Path) -> dict[str, list[str]]:
    """Return each stage of a project, with the stages whose outputs it reads.

    Raises:
        ValueError: DVC cannot read the project; the message is DVC's.
    """
    command = [sys.executable, "-m", "dvc", "dag", "--dot"]
    dvc = subprocess.run(command, cwd=project, capture_output=True, text=True, check=False)
    if dvc.returncode != 0:
        raise ValueError(dvc.stderr.strip())
    graph: dict[str, list[str]] = {}
    for line in dvc.stdout.splitlines():
        match re.findall(r'"([^"]+)"', line):  # `"stage";` or `"upstream" -> "stage";`
            case [stage]:
                graph.setdefault(stage, [])
            case [upstream, stage]:
                graph.setdefault(stage, []).append(upstream)
            case _:
                continue
    return graph


def order(graph: dict[str, list[str]], targets: Iterable[str] = ()) -> list[str]:
    """Order the targets and all that they depend on so that inputs come first; every stage if none.

    Raises:
        ValueError: A target is not a stage.
    """
    wanted = set(graph)
    if targets := list(targets):
        wanted = set().union(*(_with_upstream(graph, target) for target in targets))
    return [stage for stage in TopologicalSorter(graph).static_order() if stage in wanted]


def _with_upstream(graph: dict[str, list[str]], target: str) -> set[str]:
    if target not in graph:
        hint = suggest(target, graph) or f", but one of {', '.join(graph)}"
        raise ValueError(f"dvc.yaml: {target!r} is not a stage{hint}")
    return {target}.union(*(_with_upstream(graph, stage) for stage in graph[target]))
