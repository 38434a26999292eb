"""Images that show nothing are counted."""

import torch

from mar.sampling.blank import BlankCounts, count_all_blank, count_blank


def test_images_of_one_colour_and_of_extreme_values_are_counted(rng: torch.Generator) -> None:
    images = torch.randint(1, 255, (6, 3, 20, 10), generator=rng, dtype=torch.uint8)
    images[0] = 0  # both
    images[1] = torch.tensor([10, 20, 30], dtype=torch.uint8)[:, None, None]  # of one colour
    images[2] = 255 * torch.randint(2, (3, 20, 10), generator=rng, dtype=torch.uint8)
    images[3] = 255
    images[3].view(-1)[:6] = 7  # 6 of 600 values: exactly 99 % are extreme, not more
    images[4] = 255
    images[4].view(-1)[:5] = 7
    assert count_blank(images) == BlankCounts(num_images=6, num_constant=2, num_saturated=3)
    assert count_all_blank(images.split(4)) == count_blank(images)
    warning = count_blank(images).warning()
    assert warning is not None
    assert warning.startswith("of 6 images, 2 are of one colour and 3 have hardly")
    assert count_blank(images[5:]).warning() is None
    assert count_all_blank([]) == BlankCounts()
