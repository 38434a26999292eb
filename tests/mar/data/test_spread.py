"""As many as wanted are chosen, at equal distances."""

import pytest

from mar.data.spread import spread


@pytest.mark.parametrize(
    ("count", "wanted", "chosen"),
    [
        (11, 10, [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]),
        (5, 100, [0, 1, 2, 3, 4]),
        (7, 3, [0, 2, 4]),
        (0, 3, []),
    ],
)
def test_indices_are_spread(count: int, wanted: int, chosen: list[int]) -> None:
    assert spread(count, wanted).tolist() == chosen
