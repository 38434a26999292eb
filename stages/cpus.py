"""How many CPUs this process may use."""

import math
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path


def count_cpus() -> int:
    """Return the CPUs that are ours: those we may run on, and no more than our share of time."""
    if sys.platform != "linux":
        return os.cpu_count() or 1
    allowed = len(os.sched_getaffinity(0))
    share = cpu_quota(Path("/proc/self/cgroup"), Path("/sys/fs/cgroup"))
    return allowed if share is None else max(1, min(allowed, math.ceil(share)))


def cpu_quota(groups: Path, mount: Path) -> float | None:
    """Return how many CPUs' worth of time a control group grants (`docker --cpus`), or None.

    The least of what the groups grant that lie around the process. In a container the path of its
    group is often that outside of it, while its files are those at the mount point.

    Args:
        groups: The file of the kernel that names the groups of the process.
        mount: Where the groups are mounted (version 2; version 1 has a folder `cpu` there).
    """
    try:
        lines = groups.read_text().splitlines()
    except OSError:
        return None
    quotas: list[float] = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            quotas += _quotas(mount, path, _version_2)
        elif "cpu" in controllers.split(","):
            for name in ("cpu", controllers):
                quotas += _quotas(mount / name, path, _version_1)
    return min(quotas, default=None)


def _quotas(mount: Path, path: str, read: Callable[[Path], float | None]) -> Iterator[float]:
    """Yield what each group around a process grants, that of the mount point included."""
    relative = Path(path.strip("/"))
    for group in {mount, *(mount / part for part in (relative, *relative.parents))}:
        try:
            quota = read(group)
        except (OSError, ValueError):
            continue
        if quota is not None:
            yield quota


def _version_2(group: Path) -> float | None:
    quota, period = (group / "cpu.max").read_text().split()
    return None if quota == "max" else int(quota) / int(period)


def _version_1(group: Path) -> float | None:
    quota = int((group / "cpu.cfs_quota_us").read_text())
    return quota / int((group / "cpu.cfs_period_us").read_text()) if quota > 0 else None
