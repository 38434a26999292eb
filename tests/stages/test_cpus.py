"""A container's share of the CPUs counts, in both versions of control groups."""

import os
from pathlib import Path

import pytest

from stages.cpus import count_cpus, cpu_quota


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def groups(tmp_path: Path, text: str) -> Path:
    write(tmp_path / "cgroup", text)
    return tmp_path / "cgroup"


@pytest.mark.parametrize(
    ("limit", "quota"), [("200000 100000", 2.0), ("50000 100000", 0.5), ("max 100000", None)]
)
def test_a_limit_of_version_2_is_read(tmp_path: Path, limit: str, quota: float | None) -> None:
    write(tmp_path / "mount/a/b/cpu.max", limit)
    assert cpu_quota(groups(tmp_path, "0::/a/b\n"), tmp_path / "mount") == quota


def test_the_least_limit_of_all_groups_around_counts(tmp_path: Path) -> None:
    write(tmp_path / "mount/a/b/cpu.max", "800000 100000")
    write(tmp_path / "mount/a/cpu.max", "300000 100000")
    write(tmp_path / "mount/cpu.max", "max 100000")
    assert cpu_quota(groups(tmp_path, "0::/a/b\n"), tmp_path / "mount") == 3


def test_in_a_container_the_limit_lies_at_the_mount_point(tmp_path: Path) -> None:
    write(tmp_path / "mount/cpu.max", "150000 100000")
    file = groups(tmp_path, "0::/docker/0123456789\n")
    assert cpu_quota(file, tmp_path / "mount") == 1.5


@pytest.mark.parametrize("folder", ["cpu", "cpu,cpuacct"])
@pytest.mark.parametrize(("limit", "quota"), [("400000", 4.0), ("-1", None)])
def test_a_limit_of_version_1_is_read(
    tmp_path: Path, folder: str, limit: str, quota: float | None
) -> None:
    write(tmp_path / "mount" / folder / "a" / "cpu.cfs_quota_us", limit)
    write(tmp_path / "mount" / folder / "a" / "cpu.cfs_period_us", "100000")
    file = groups(tmp_path, "5:memory:/other\n4:cpu,cpuacct:/a\n0::/\n")
    assert cpu_quota(file, tmp_path / "mount") == quota


def test_without_control_groups_there_is_no_limit(tmp_path: Path) -> None:
    assert cpu_quota(tmp_path / "none", tmp_path) is None
    assert cpu_quota(groups(tmp_path, "0::/\n"), tmp_path) is None


def test_there_is_at_least_one_cpu_and_no_more_than_the_machine_has() -> None:
    assert 1 <= count_cpus() <= (os.cpu_count() or 1)
