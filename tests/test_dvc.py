"""`dvc.yaml` says the truth: what each stage imports, reads and writes, in an order to walk.

Three modules are loaded by name and not counted: `stages.check` and `stages.preflight` (they can
refuse a run, never change its result) and `stages.previews` (pictures for people; nothing is
computed from them).
"""

import ast
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML


ROOT = Path(__file__).parents[1]
STAGES: dict[str, Any] = YAML(typ="safe").load((ROOT / "dvc.yaml").read_text())["stages"]
NAMES = list(STAGES)
BY_NAME = {"stages.check", "stages.preflight", "stages.previews"}


def modules(tree: ast.AST) -> set[str]:
    """Return the dotted names that a file imports, `from a import b` as `a.b` as well as `a`."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
    return found


def imported(path: Path, seen: set[Path] | None = None) -> set[str]:
    """Return the files of this project that importing a file executes, itself included."""
    seen = set() if seen is None else seen
    if path in seen:
        return set()
    seen.add(path)
    files = {str(path)}
    for module in modules(ast.parse((ROOT / path).read_text())):
        candidate = Path(*module.split(".")).with_suffix(".py")
        if (ROOT / candidate).is_file():
            files |= imported(candidate, seen)
    return files


def outputs(stage: str) -> set[str]:
    listed = [
        entry for kind in ("outs", "metrics", "plots") for entry in STAGES[stage].get(kind, [])
    ]
    return {next(iter(entry)) if isinstance(entry, dict) else entry for entry in listed}


@pytest.mark.parametrize("name", NAMES)
def test_code_dependencies_are_exactly_what_is_imported(name: str) -> None:
    declared = {dep for dep in STAGES[name]["deps"] if dep.endswith(".py")}
    assert declared == imported(Path("stages", f"{name}.py"))


@pytest.mark.parametrize("name", NAMES)
def test_stage_module_and_folder_have_one_name(name: str) -> None:
    assert STAGES[name]["cmd"] == f"exec python -m stages.{name}"
    assert all(path.startswith(f"out/{name}/") for path in outputs(name))
    docstring = ast.get_docstring(ast.parse((ROOT / "stages" / f"{name}.py").read_text())) or ""
    assert STAGES[name]["desc"] == docstring.splitlines()[0]


def test_stages_are_listed_in_a_topological_order() -> None:
    made: set[str] = set()
    for name in NAMES:
        data = {dep for dep in STAGES[name]["deps"] if not dep.endswith(".py")}
        assert data <= made, f"{name} needs {data - made}"
        made |= outputs(name)


@pytest.mark.parametrize("name", NAMES)
def test_declared_sections_are_exactly_those_read(name: str) -> None:
    tree = ast.parse((ROOT / "stages" / f"{name}.py").read_text())
    read = {
        node.args[0].value
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr == "params"
        and isinstance(node.args[0], ast.Constant)
    }
    assert read == set(STAGES[name]["params"])


@pytest.mark.parametrize("name", NAMES)
def test_paths_in_a_stage_are_declared(name: str) -> None:
    text = (ROOT / "stages" / f"{name}.py").read_text()
    paths = {
        node.value
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Constant)
        and isinstance(node.value, str)
        and node.value.startswith("out/")
    }
    declared = {*STAGES[name]["deps"], *outputs(name)}
    known = declared | {str(Path(path).parent) for path in declared}
    assert paths <= known
    assert {dep for dep in declared if dep.startswith("out/")} - outputs(name) <= {
        *paths,
        *(f"{path}.json" for path in paths),
        *(dep for dep in declared for path in paths if dep.startswith(f"{path}/")),
    }


def test_modules_loaded_by_name_are_those_three() -> None:
    found: set[str] = set()
    for path in sorted(ROOT.glob("stages/*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
                found.add(ast.literal_eval(node.args[0]))
    assert found == BY_NAME


def test_every_section_is_read_by_a_stage() -> None:
    sections = set(YAML(typ="safe").load((ROOT / "params.yaml").read_text()))
    assert sections == {section for stage in STAGES.values() for section in stage["params"]}


def test_metrics_never_enter_the_cache() -> None:
    for name, stage in STAGES.items():
        assert stage["metrics"] == [{f"out/{name}/metrics.json": {"cache": False}}]
