"""Published statistics take the place of images, and what is damaged or unfit is named."""

import pickle
import shutil
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mar.config import PathText, Sha256
from mar.evaluation import inception
from mar.evaluation.extractors import Extractor, ReferenceSection, StatisticsFile
from mar.evaluation.published import has_images, read_published
from mar.evaluation.reference import ReferenceInfo, measure


CPU = torch.device("cpu")
FILE = StatisticsFile("", None, 3, 2)
MEAN, COVARIANCE = np.arange(3.0), np.diag([1.0, 2.0, 3.0])
WHOLE = {
    "mu": MEAN,
    "sigma": COVARIANCE,
    "mu_s": np.ones(2),
    "sigma_s": np.eye(2),
    "arr_0": np.arange(5, dtype=np.uint8)[:, None, None, None] * np.ones((1, 4, 4, 3), np.uint8),
}


class Section(ReferenceSection):
    """A section of a network with 3 features and 2 spatial ones."""

    takes_statistics = True
    statistics: PathText | None
    statistics_sha256: Sha256 | None = None

    @property
    def statistics_file(self) -> StatisticsFile | None:
        if self.statistics is None:
            return None
        return StatisticsFile(self.statistics, self.statistics_sha256, 3, 2)

    def load(self, folder: Path, *, base: Path = Path()) -> Extractor:
        return Extractor("colours", Colours(), inception.SCORES)


class Colours(nn.Module):
    """Features, logits and spatial features of some kind."""

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        colours = images.float().mean(dim=(2, 3))
        return colours, -colours, images.float()[:, 0, 0, :2]


class Pictures:
    """Images of random pixels."""

    image_size = 4

    def __init__(self, count: int = 150) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def stack(self, indices: list[int]) -> Tensor:
        rng = torch.Generator().manual_seed(0)
        return torch.randint(256, (self.count, 3, 4, 4), generator=rng)[indices].to(torch.uint8)


def save(path: Path, **arrays: np.ndarray) -> Path:
    np.savez(path, allow_pickle=True, **arrays)
    return path


def test_a_file_of_the_adm_suite_replaces_the_images(tmp_path: Path) -> None:
    save(tmp_path / "adm.npz", **WHOLE)
    config = Section(split=None, num_features=3, statistics="adm.npz")
    extractor = config.load(Path())
    found = measure(config, extractor, Pictures(), device=CPU, workers=0, base=tmp_path)
    assert found is not None
    assert torch.equal(found.statistics.mean, torch.from_numpy(MEAN))
    assert torch.equal(found.statistics.covariance, torch.from_numpy(COVARIANCE))
    assert found.spatial is not None
    assert torch.equal(found.spatial.covariance, torch.eye(2).double())
    assert found.features[:, 0].tolist() == [0, 1, 3]  # evenly spread
    assert has_images(tmp_path / "adm.npz")
    info = ReferenceInfo.describe(extractor, found, 4, None)
    assert info.id.startswith("adm.npz-unknown_count-4px-colours-")


def test_missing_statistics_and_another_digest_are_named(tmp_path: Path) -> None:
    config = Section(split=None, num_features=3, statistics="adm.npz", statistics_sha256="0" * 64)
    arguments: dict[str, Any] = {"device": CPU, "workers": 0, "base": tmp_path}
    with pytest.raises(ValueError, match=r"^reference\.statistics: \S+adm\.npz is missing"):
        measure(config, config.load(Path()), Pictures(), **arguments)
    save(tmp_path / "adm.npz", **WHOLE)
    with pytest.raises(
        ValueError, match=r"^reference\.statistics_sha256: \S+adm\.npz has [0-9a-f]"
    ):
        measure(config, config.load(Path()), Pictures(), **arguments)


def test_statistics_may_come_without_images_and_without_spatial_ones(tmp_path: Path) -> None:
    path = save(tmp_path / "s.npz", mu=MEAN, sigma=COVARIANCE)
    published = read_published(path, FILE, image_size=4)
    assert len(published.keep(10)) == 0
    assert published.stack([]).shape == (0, 3, 4, 4)
    assert published.spatial is None
    assert not has_images(path)


def test_statistics_of_torch_fidelitys_cache_are_read(tmp_path: Path) -> None:
    path = tmp_path / "name-inception-v3-compat-stat-fid-2048.pt"
    torch.save({"mu": MEAN.astype(np.float32), "sigma": COVARIANCE}, path)
    for place in (path, Path(shutil.copy(path, path.with_suffix(".PT")))):
        found = read_published(place, FILE, image_size=4).statistics
        assert torch.equal(found.covariance, torch.from_numpy(COVARIANCE))
    torch.save({"mu": MEAN}, path)
    with pytest.raises(ValueError, match=r"reference\.statistics: .*\.pt lacks sigma; it has mu"):
        read_published(path, FILE, image_size=4)


def test_a_split_is_measured_with_its_spatial_features() -> None:
    config = Section(split="held_out", num_features=7, statistics=None)
    extractor, pictures = config.load(Path()), Pictures()
    found = measure(config, extractor, pictures, device=CPU, workers=0)
    assert found is not None
    assert found.source == "held-out split"
    layout = pictures.stack(list(range(150)))[:, 0, 0, :2].double()
    assert found.spatial is not None
    assert torch.allclose(found.spatial.covariance, layout.T.cov())
    info = ReferenceInfo.describe(extractor, found, 4, None)
    assert info.id.startswith("held_out_split-150-4px-colours-")


@pytest.mark.parametrize("count", [0, 1])
def test_a_split_without_a_covariance_is_named(count: int) -> None:
    config = Section(split="held_out", num_features=7, statistics=None)
    message = rf"reference\.split: the held-out split has {count} images, and a covariance needs 2"
    with pytest.raises(ValueError, match=message):
        measure(config, config.load(Path()), Pictures(count), device=CPU, workers=0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sigma": None}, r"lacks sigma; it has mu, mu_s, sigma_s, arr_0"),
        ({"sigma_s": None}, r"lacks sigma_s; it has"),
        ({"mu_s": None}, r"lacks mu_s; it has"),
        ({"mu": np.ones(2)}, r"has mu \(2,\), expected \(3,\)"),
        ({"sigma": np.eye(4)}, r"has sigma \(4, 4\), expected \(3, 3\)"),
        ({"sigma_s": np.eye(3)}, r"has sigma_s \(3, 3\), expected \(2, 2\)"),
        ({"mu": np.array([0, np.nan, 0])}, r"mu has nan or infinity"),
        ({"sigma_s": np.full((2, 2), np.inf)}, r"sigma_s has nan or infinity"),
        ({"sigma": np.triu(np.ones((3, 3)))}, r"sigma is not symmetric"),
        ({"sigma": -COVARIANCE}, r"sigma has a negative variance"),
        ({"mu": np.array(["a", "b", "c"])}, r"mu holds <U1, expected an array of numbers"),
        ({"arr_0": np.zeros((2, 8, 8, 3), np.uint8)}, r"has arr_0 \(8, 8, 3\), expected \(4"),
        ({"arr_0": np.zeros((2, 4, 4, 3))}, r"has arr_0 of float64, expected uint8"),
        ({"arr_0": np.zeros((1, 4, 4, 3), np.uint8)}, r"has arr_0 of 1 image, expected none"),
    ],
)  # fmt: skip
def test_what_is_no_statistics_is_named_by_file_and_key(
    changes: dict[str, np.ndarray | None], message: str, tmp_path: Path
) -> None:
    arrays = {name: it for name, it in {**WHOLE, **changes}.items() if it is not None}
    path = save(tmp_path / "s.npz", **arrays)
    with pytest.raises(ValueError, match=r"reference\.statistics: \S+s\.npz:? " + message):
        read_published(path, FILE, image_size=4)


def test_damaged_archives_are_named(tmp_path: Path) -> None:
    path = save(tmp_path / "s.npz", **WHOLE)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=r"reference\.statistics: .*s\.npz is no \.npz with mu"):
        read_published(path, FILE, image_size=4)
    assert not has_images(path)
    with zipfile.ZipFile(save(path, **WHOLE)) as archive:
        place = archive.getinfo("sigma.npy").header_offset + 200
    content = bytearray(path.read_bytes())
    content[place] ^= 255
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"s\.npz: sigma cannot be read: Bad CRC-32"):
        read_published(path, FILE, image_size=4)
    path.write_text("hello")
    with pytest.raises(ValueError, match=r"reference\.statistics: .* is no \.npz"):
        read_published(path, FILE, image_size=4)


class Trap:
    """Unpickling this makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.path,)


def test_code_in_a_file_of_statistics_is_refused_and_not_run(tmp_path: Path) -> None:
    trap = Trap(tmp_path / "sprung")
    path = save(tmp_path / "s.npz", **{**WHOLE, "mu": np.array([trap, trap, trap])})
    with pytest.raises(ValueError, match=r"s\.npz: mu cannot be read: Object arrays cannot"):
        read_published(path, FILE, image_size=4)
    path = tmp_path / "s.pt"
    for content in ({"mu": trap, "sigma": COVARIANCE}, {"mu": np.array([trap], dtype=object)}):
        torch.save(content, path)
        with pytest.raises(ValueError, match=r"s\.pt is no file of statistics by torch-fidelity"):
            read_published(path, FILE, image_size=4)
    assert not (tmp_path / "sprung").exists()
    pickle.loads(pickle.dumps(trap))
    assert (tmp_path / "sprung").exists()  # the trap works
