"""The digits are scikit-learn's, pixel by pixel."""

import io
from hashlib import sha256
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

from mar.sources.digits import DigitsData
from mar.sources.source import Collection, Surroundings


def collect_digits(held_out_fraction: float = 0.2, seed: int = 0) -> Collection:
    config = DigitsData(
        source="digits", image_size=16, held_out_fraction=held_out_fraction, seed=seed
    )
    return config.collect(Surroundings(Path(), workers=0, max_pixels=1))


def test_digits_keep_their_pixels_and_labels() -> None:
    collection = collect_digits()
    images, labels = load_digits(return_X_y=True)
    assert len(collection.rows) == 1797
    assert collection.class_names == list("0123456789")
    for index in (0, 1, 1000, 1796):
        row = collection.rows[index]
        assert row.path == f"digits/{index:04d}"
        assert row.label == labels[index]
        assert row.image is not None
        assert row.size == len(row.image)
        assert row.sha256 == sha256(row.image).digest()
        decoded = np.array(Image.open(io.BytesIO(row.image)), dtype=np.float64)
        assert np.abs(decoded.reshape(64) - images[index] * 255 / 16).max() <= 0.5


def test_digits_hold_out_a_fifth_of_each_class() -> None:
    collection = collect_digits(0.2)
    for label in range(10):
        splits = [row.split for row in collection.rows if row.label == label]
        assert abs(splits.count("held_out") / len(splits) - 0.2) < 0.01
    assert collection.count("train") + collection.count("held_out") == 1797
