"""`dvc.yaml` says the truth: what each stage imports, reads and writes, in an order to walk.

Some modules are loaded by name and not counted: `stages.runner` (starts, locks and tracks a stage),
`stages.check`, `stages.memory`, `stages.preflight` and `mar.released.reader` (they can refuse a
run, or a file that others made, and never change a result) and `stages.previews` (pictures for
people; nothing is computed from them).
"""

import ast
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML


ROOT = Path(__file__).parents[1]
STAGES: dict[str, Any] = YAML(typ="safe").load((ROOT / "dvc.yaml").read_text())["stages"]
NAMES = list(STAGES)
BY_NAME = {
    "mar.released.reader",
    "stages.check",
    "stages.memory",
    "stages.preflight",
    "stages.previews",
    "stages.runner",
}


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


def code(stage: str) -> list[str]:
    """Return the modules and rooms that a stage declares."""
    return [dep for dep in STAGES[stage]["deps"] if not dep.startswith("out/")]


def modules_of(dependency: str) -> set[str]:
    """Return the modules of a room, or the one module; `__init__.py` only documents."""
    if dependency.endswith(".py"):
        return {dependency}
    files = (ROOT / dependency).rglob("*.py")
    return {str(file.relative_to(ROOT)) for file in files if file.name != "__init__.py"}


@pytest.mark.parametrize("name", NAMES)
def test_every_import_is_declared_as_a_module_or_by_its_room(name: str) -> None:
    declared = {module for dependency in code(name) for module in modules_of(dependency)}
    assert imported(Path("stages", f"{name}.py")) - declared == set()


@pytest.mark.parametrize("name", NAMES)
def test_a_declared_module_is_imported_and_a_declared_room_mostly(name: str) -> None:
    used = imported(Path("stages", f"{name}.py"))
    for dependency in code(name):
        modules = modules_of(dependency)
        assert len(modules & used) >= len(modules) / 2, dependency


@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_declared_twice(name: str) -> None:
    dependencies = code(name)
    assert len(set(dependencies)) == len(dependencies)
    rooms = tuple(f"{path}/" for path in dependencies if not path.endswith(".py"))
    assert not [path for path in dependencies if path.startswith(rooms)]


def test_dvc_yaml_reads_as_a_description() -> None:
    assert len((ROOT / "dvc.yaml").read_text().splitlines()) < 200


@pytest.mark.parametrize("name", NAMES)
def test_stage_module_and_folder_have_one_name(name: str) -> None:
    assert STAGES[name]["cmd"] == f"exec python -m stages.{name}"
    assert all(path.startswith(f"out/{name}/") for path in outputs(name))
    docstring = ast.get_docstring(ast.parse((ROOT / "stages" / f"{name}.py").read_text())) or ""
    assert STAGES[name]["desc"] == docstring.splitlines()[0]


def test_stages_are_listed_in_a_topological_order() -> None:
    made: set[str] = set()
    for name in NAMES:
        data = set(STAGES[name]["deps"]) - set(code(name))
        assert data <= made, f"{name} needs {data - made}"
        made |= outputs(name)


@pytest.mark.parametrize("name", NAMES)
def test_declared_sections_and_keys_are_exactly_those_read(name: str) -> None:
    read: set[str] = set()
    for node in ast.walk(ast.parse((ROOT / "stages" / f"{name}.py").read_text())):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            if node.func.attr == "params" and isinstance(node.args[0], ast.Constant):
                read.add(ast.literal_eval(node.args[0]))
            if node.func.attr == "keys" and node.args:  # of a stage; that of a dict takes nothing
                config = getattr(import_module(f"stages.{name}"), ast.unparse(node.args[1]))
                section = ast.literal_eval(node.args[0])
                read |= {f"{section}.{key}" for key in config.model_fields}
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


def test_modules_loaded_by_name_are_known() -> None:
    found: set[str] = set()
    for path in sorted(ROOT.glob("stages/*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
                found.add(ast.literal_eval(node.args[0]))
    assert found == BY_NAME


def test_every_section_is_read_by_a_stage() -> None:
    sections = set(YAML(typ="safe").load((ROOT / "params.yaml").read_text()))
    read = {key.partition(".")[0] for stage in STAGES.values() for key in stage["params"]}
    assert sections == read


def test_metrics_never_enter_the_cache() -> None:
    for name, stage in STAGES.items():
        assert stage["metrics"] == [{f"out/{name}/metrics.json": {"cache": False}}]
