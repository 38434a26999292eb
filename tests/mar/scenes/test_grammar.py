"""Scenes leave out what a model is later asked to put together."""

from mar.scenes.grammar import COLORS, draw_scene, unseen_pairs
from mar.seeds import make_rng


UNSEEN = unseen_pairs()


def test_a_pair_of_each_colour_never_occurs() -> None:
    assert {color for _, color in UNSEEN} == set(COLORS)
    assert len({digit for digit, _ in UNSEEN}) == 6
    drawn = {
        pair
        for index in range(1500)
        for scene in [draw_scene("color_attr", UNSEEN, make_rng("scene", 0, "train", index))]
        for pair in zip(scene.digits, scene.colors, strict=True)
    }
    assert len(drawn) == 54
    assert not drawn & UNSEEN
