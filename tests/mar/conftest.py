"""A network that is away; nothing else is shared by these tests alone."""

from pathlib import Path
from urllib.error import URLError

import pytest
import torch


@pytest.fixture
def without_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let torch.hub find no earlier download, and fail to download."""

    def fail(*_: object, **__: object) -> None:
        raise URLError("no network")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", fail)
