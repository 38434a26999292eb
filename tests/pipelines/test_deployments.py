"""Deployments are those of the documentation, and say in Prefect's form what they do."""

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from prefect import Flow
from prefect.flows import load_flow_from_entrypoint
from prefect.settings import PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE
from ruamel.yaml import YAML


ROOT = Path(__file__).parents[2]
DEPLOYMENTS: list[dict[str, Any]] = YAML(typ="safe").load(ROOT / "prefect.yaml")["deployments"]
PAGES = [ROOT / "README.md", ROOT / "docs" / "prefect.md", ROOT / "docs" / "ablation.md"]


@pytest.fixture(params=DEPLOYMENTS, ids=lambda deployment: deployment["name"])
def deployment(request: pytest.FixtureRequest) -> dict[str, Any]:
    return request.param


def flow_of(deployment: dict[str, Any]) -> Flow[..., Any]:
    path, _, name = deployment["entrypoint"].partition(":")
    return load_flow_from_entrypoint(f"{ROOT / path}:{name}")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_deployment_that_a_page_runs_exists(page: Path) -> None:
    run = re.findall(r"deployment run '([\w/-]+)'", page.read_text())
    assert run
    assert set(run) <= {f"{flow_of(one).name}/{one['name']}" for one in DEPLOYMENTS}


def test_the_pool_of_the_documented_worker_is_that_of_the_deployments(
    deployment: dict[str, Any],
) -> None:
    for page in PAGES[:2]:
        pools = re.findall(r"prefect worker start --pool (\w+)", page.read_text())
        assert set(pools) == {deployment["work_pool"]["name"]}


def test_every_parameter_is_typed_and_described(deployment: dict[str, Any]) -> None:
    flow = flow_of(deployment)
    assert len(deployment["description"]) > 40
    assert flow.description
    for name, schema in flow.parameters.properties.items():
        assert schema.get("type"), name  # else the form offers "none" beside the value
        assert schema.get("description"), name
        assert "default" in schema, name
    assert not flow.parameters.required


def test_two_runs_of_a_deployment_wait_for_each_other(deployment: dict[str, Any]) -> None:
    assert deployment["concurrency_limit"] == {"limit": 1, "collision_strategy": "ENQUEUE"}


def test_a_run_sends_nothing_home(deployment: dict[str, Any]) -> None:
    environment = deployment["work_pool"]["job_variables"]["env"]
    switches = dict(
        re.findall(r"^export (\w+) \?= (true|false|1)$", (ROOT / "Makefile").read_text(), re.M)
    )
    own = {name for name in environment if name.startswith("MAR_")}  # where and how it runs
    assert environment.keys() - own <= switches.keys()
    assert all(environment[name] == switches[name] for name in environment.keys() - own)
    assert environment.keys() > own


def test_prefect_commands_find_the_local_server_which_remembers_who_holds_a_place() -> None:
    settings = tomllib.loads((ROOT / "prefect.toml").read_text())
    assert settings["api"]["url"] == "http://127.0.0.1:4200/api"
    assert settings["server"]["analytics_enabled"] is False
    storage = settings["server"]["concurrency"]["lease_storage"]
    assert storage != PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE.default()  # in memory
