"""A data folder is listed by class, and every way in which it can be wrong is named."""

import os
import re
from pathlib import Path

import pytest
from PIL import Image

from mar.data.formats import EXTENSIONS, FORMATS
from mar.sources.image_folder import EXPECTED, File, list_folder, nested_folders


def touch(root: Path, *paths: str) -> None:
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).touch()


def refused(root: Path) -> str:
    with pytest.raises(ValueError, match=re.escape(str(root))) as caught:
        list_folder(root)
    message = str(caught.value).replace(str(root), "ROOT")
    assert message.startswith("data.path: ")
    return message.removeprefix("data.path: ")


def test_classes_are_numbered_by_name_and_files_found_at_any_depth(tmp_path: Path) -> None:
    touch(tmp_path, "b/2.PNG", "b/1/x.Jpeg", "B/1.webp", "a/1.tif", "README.md")
    listing = list_folder(tmp_path)
    assert listing.class_names == ["B", "a", "b"]
    assert listing.files == [
        File("B/1.webp", 0, None),
        File("a/1.tif", 1, None),
        File("b/1/x.Jpeg", 2, None),
        File("b/2.PNG", 2, None),
    ]


def test_hidden_and_other_files_are_ignored(tmp_path: Path) -> None:
    touch(tmp_path, "a/1.png", "a/.2.png", "a/.hidden/3.png", "a/4.txt", "a/png", ".b/5.png")
    assert list_folder(tmp_path).files == [File("a/1.png", 0, None)]


def test_what_is_ignored_in_sight_is_listed(tmp_path: Path) -> None:
    touch(tmp_path, "train/a/1.png", "train/a/b/2.heic", "train/3.png", "val/a/4.png", "val/a/x")
    touch(tmp_path, "test/5.txt", ".hidden", "train/a/.6.txt")
    assert list_folder(tmp_path).ignored == ["train/3.png", "train/a/b/2.heic", "val/a/x"]


def test_every_format_that_can_be_read_has_a_name(tmp_path: Path) -> None:
    known = Image.registered_extensions()
    assert {known[extension] for extension in EXTENSIONS} == set(FORMATS)
    touch(tmp_path, *(f"a/1{extension}" for extension in EXTENSIONS))
    assert len(list_folder(tmp_path).files) == len(EXTENSIONS)
    assert {".gif", ".jfif"} < set(EXTENSIONS)


def test_linked_folders_are_followed(tmp_path: Path) -> None:
    touch(tmp_path, "elsewhere/1.png", "root/b/1.png")
    (tmp_path / "root" / "a").symlink_to(tmp_path / "elsewhere")
    assert [file.path for file in list_folder(tmp_path / "root").files] == ["a/1.png", "b/1.png"]


def test_train_and_val_are_the_splits_where_they_exist(tmp_path: Path) -> None:
    touch(tmp_path, "train/a/1.png", "train/b/1.png", "val/a/2.png", "val/b/2.png", "test/x.png")
    listing = list_folder(tmp_path)
    assert listing.class_names == ["a", "b"]
    assert listing.files == [
        File("train/a/1.png", 0, "train"),
        File("train/b/1.png", 1, "train"),
        File("val/a/2.png", 0, "held_out"),
        File("val/b/2.png", 1, "held_out"),
    ]


def test_without_val_the_split_is_left_open(tmp_path: Path) -> None:
    touch(tmp_path, "train/a/1.png")
    assert list_folder(tmp_path).files == [File("train/a/1.png", 0, None)]


def test_the_held_out_split_may_be_called_validation(tmp_path: Path) -> None:
    touch(tmp_path, "train/a/1.png", "validation/a/2.png")
    assert list_folder(tmp_path).files[1] == File("validation/a/2.png", 0, "held_out")
    touch(tmp_path, "val/a/3.png")
    assert refused(tmp_path) == "ROOT holds val and validation, expected one of them"


def test_classes_beside_train_are_not_dropped(tmp_path: Path) -> None:
    touch(tmp_path, "bus/1.png", "car/1.png", "train/steam/1.png", "val/1.png")
    assert refused(tmp_path) == (
        "ROOT holds other folders beside train, whose folders would be the classes: bus, car; "
        "only val (or valid, validation, dev) and test may lie there"
    )


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    touch(tmp_path, "bus/1.png", "train/1.png")
    assert list_folder(tmp_path).class_names == ["bus", "train"]


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    assert refused(tmp_path / "photos") == f"ROOT does not exist, expected {EXPECTED}"


def test_a_file_is_not_a_folder(tmp_path: Path) -> None:
    touch(tmp_path, "photos")
    assert refused(tmp_path / "photos") == f"ROOT is not a folder, expected {EXPECTED}"


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    touch(tmp_path, ".keep")
    assert refused(tmp_path) == f"ROOT is empty, expected {EXPECTED}"


def test_images_without_class_folders_are_refused(tmp_path: Path) -> None:
    touch(tmp_path, "b.png", "a.png")
    expected = "ROOT must hold one folder of images per class, but holds only files (a.png)"
    assert refused(tmp_path) == expected


def test_a_class_without_images_is_refused(tmp_path: Path) -> None:
    touch(tmp_path, "a/1.png", "b/notes.txt")
    assert refused(tmp_path) == "the class folder ROOT/b holds no images"


def test_different_classes_in_train_and_val_are_named(tmp_path: Path) -> None:
    touch(tmp_path, "train/a/1.png", "train/b/1.png", "val/b/1.png", "val/c/1.png")
    expected = "ROOT/train and ROOT/val must hold the same classes: "
    assert refused(tmp_path) == f"{expected}only ROOT/train has a; only ROOT/val has c"
    touch(tmp_path, *(f"train/{index}/1.png" for index in range(6)), "train/c/1.png")
    assert refused(tmp_path) == f"{expected}only ROOT/train has 0, 1, 2, 3, 4 and 2 more"


@pytest.mark.parametrize(
    ("train", "val", "pair"),
    [
        ("Cat", "cat", "'Cat' and 'cat'"),
        ("cat ", "cat", "'cat ' and 'cat'"),
        ("red_fox", "red fox", "'red_fox' and 'red fox'"),
        ("red\xa0fox", "red fox", "'red\\xa0fox' and 'red fox'"),
        ("red\u200bfox", "redfox", "'red\\u200bfox' and 'redfox'"),
        ("\ufb01sh", "fish", "'\ufb01sh' and 'fish'"),
        ("007", "7", "'007' and '7'"),
    ],
)
def test_another_spelling_of_a_class_is_said(
    tmp_path: Path, train: str, val: str, pair: str
) -> None:
    touch(tmp_path, f"train/{train}/1.png", "train/dog/1.png", f"val/{val}/1.png", "val/dog/1.png")
    assert refused(tmp_path).endswith(f"; 1 may be the same in another spelling, as {pair}")


# Names


@pytest.mark.parametrize("path", ["a/\udce9.png", "caf\udce9/1.png", "a/b\udce9/1.png"])
def test_a_name_that_is_not_text_is_refused_with_its_path(tmp_path: Path, path: str) -> None:
    touch(tmp_path, "a/1.png", path)
    shown = path.replace("\udce9", "\\xe9").removesuffix("/1.png")
    assert refused(tmp_path) == f"a name is not UTF-8: ROOT/{shown}; rename it"


def test_names_of_ignored_files_need_not_be_text(tmp_path: Path) -> None:
    touch(tmp_path, "a/1.png", "a/\udce9.txt")
    assert len(list_folder(tmp_path).ignored) == 1


def test_names_whose_accents_are_stored_in_two_ways_are_the_same(tmp_path: Path) -> None:
    composed, decomposed = "caf\u00e9", "cafe\u0301"
    touch(tmp_path, f"train/{composed}/1.png", f"val/{decomposed}/2.png")
    listing = list_folder(tmp_path)
    assert listing.class_names == [composed]
    assert [file.path for file in listing.files] == [
        f"train/{composed}/1.png",
        f"val/{decomposed}/2.png",
    ]
    touch(tmp_path, f"train/{decomposed}/3.png")
    assert refused(tmp_path).startswith(f"ROOT/train holds two folders called {composed}, whose ")


def test_whole_numbers_are_sorted_as_numbers(tmp_path: Path) -> None:
    touch(tmp_path, *(f"{name}/1.png" for name in ("0", "1", "10", "100", "11", "2")))
    assert list_folder(tmp_path).class_names == ["0", "1", "2", "10", "11", "100"]
    touch(tmp_path, "007/1.png", "02/1.png", "-10/1.png", "-9/1.png")
    assert list_folder(tmp_path).class_names[:7] == ["-10", "-9", "0", "1", "02", "2", "007"]


def test_names_that_are_not_all_whole_numbers_are_sorted_as_text(tmp_path: Path) -> None:
    touch(tmp_path, *(f"{name}/1.png" for name in ("n02", "n10", "n1", "2", "10")))
    assert list_folder(tmp_path).class_names == ["10", "2", "n02", "n1", "n10"]


# Splits as people spell them


@pytest.mark.parametrize(
    ("train", "val", "test"),
    [("Train", "Val", "Test"), ("TRAIN", "VALIDATION", "TEST"), ("training", "dev", "testing")],
)
def test_splits_may_be_spelt_in_any_case(tmp_path: Path, train: str, val: str, test: str) -> None:
    touch(tmp_path, f"{train}/a/1.png", f"{val}/a/2.png", f"{test}/a/3.png", f"{test}/b/4.png")
    listing = list_folder(tmp_path)
    assert listing.files == [
        File(f"{train}/a/1.png", 0, "train"),
        File(f"{val}/a/2.png", 0, "held_out"),
    ]
    assert listing.left_alone == test


def test_a_test_split_is_not_trained_on(tmp_path: Path) -> None:
    touch(tmp_path, "Train/cat/1.png", "Train/dog/1.png", "Test/cat/2.png", "Test/dog/2.png")
    listing = list_folder(tmp_path)
    assert listing.class_names == ["cat", "dog"]
    assert [file.path for file in listing.files] == ["Train/cat/1.png", "Train/dog/1.png"]


@pytest.mark.parametrize(
    "names",
    [
        ("train_set", "test_set"),
        ("Train2017", "val2017"),
        ("train-images", "validation images"),
        ("1_train", "2_test"),
        ("trainset", "testset"),
        ("val", "test"),
        ("test",),
        ("seg_train", "seg_test"),
        ("Holdout", "evaluation"),
    ],
)
def test_folders_that_look_like_splits_are_no_classes(
    tmp_path: Path, names: tuple[str, ...]
) -> None:
    touch(tmp_path, *(f"{name}/cat/1.png" for name in names))
    assert refused(tmp_path).startswith(
        f"ROOT holds class folders that look like splits: {', '.join(sorted(names))}; data.path "
    )


@pytest.mark.parametrize("around", ["ImageNet", "cats"])
def test_splits_within_a_class_folder_are_refused(tmp_path: Path, around: str) -> None:
    touch(tmp_path, f"{around}/Train/1.png", f"{around}/Test/1.png", f"{around}/2.png")
    assert refused(tmp_path).startswith(f"ROOT/{around} holds folders that look like splits: ")


@pytest.mark.parametrize(
    "name", ["test strips", "seg_train", "valley", "trains", "developer", "evaluations"]
)
def test_words_that_begin_like_splits_are_classes(tmp_path: Path, name: str) -> None:
    touch(tmp_path, f"{name}/1.png")
    assert list_folder(tmp_path).class_names == [name]


def test_classes_that_share_one_word_of_a_split_are_classes(tmp_path: Path) -> None:
    names = ["train_cat_1", "train_cat_2", "toy train", "test tube"]
    touch(tmp_path, *(f"{name}/1.png" for name in names))
    assert list_folder(tmp_path).class_names == sorted(names)


def test_two_folders_of_one_split_are_refused(tmp_path: Path) -> None:
    touch(tmp_path, "Train/a/1.png", "train/a/1.png")
    assert refused(tmp_path) == "ROOT holds Train and train, expected one of them"


# What lies about


@pytest.mark.parametrize(
    "path",
    [
        "__MACOSX/cat/._a.png",
        "lost+found/",
        "@eaDir/1.png",
        "$RECYCLE.BIN/1.png",
        "FOUND.001/",
        "@database/",
        "System Volume Information/x",
        "#recycle/1.png",
        ".ipynb_checkpoints/1.png",
        ".Trashes/1.png",
        "Thumbs.db",
        "desktop.ini",
        ".DS_Store",
    ],
)
@pytest.mark.parametrize("place", ["", "train/", "train/a/"])
def test_junk_of_operating_systems_is_skipped_and_known(
    tmp_path: Path, path: str, place: str
) -> None:
    touch(tmp_path, "train/a/1.png", "val/a/2.png")
    junk = tmp_path / place / path
    junk.mkdir(parents=True) if path.endswith("/") else touch(tmp_path, place + path)
    listing = list_folder(tmp_path)
    assert len(listing.files) == 2
    assert listing.ignored == []
    assert set(listing.skipped.junk) == {place + path.split("/")[0]}


def test_a_link_to_a_folder_around_it_is_skipped(tmp_path: Path) -> None:
    touch(tmp_path, "a/b/1.png")
    (tmp_path / "a" / "b" / "loop").symlink_to(tmp_path / "a")
    (tmp_path / "a" / "up").symlink_to(tmp_path)
    listing = list_folder(tmp_path)
    assert [file.path for file in listing.files] == ["a/b/1.png"]
    assert sorted(listing.skipped.loops) == ["a/b/loop", "a/up"]


def test_special_files_are_no_folders_and_not_waited_for(tmp_path: Path) -> None:
    touch(tmp_path, "a/1.png")
    os.mkfifo(tmp_path / "a" / "pipe")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "a" / "self").symlink_to("self")
    (tmp_path / "gone").symlink_to("nowhere")
    assert list_folder(tmp_path).ignored == ["a/pipe", "a/self", "gone", "pipe"]


def test_images_in_folders_within_classes_are_counted(tmp_path: Path) -> None:
    touch(tmp_path, "train/a/x/1.png", "train/a/x/2.png", "train/a/y/z/3.png", "train/b/4.png")
    assert nested_folders(list_folder(tmp_path)) == {"a": {"x": 2, "y": 1}}
    touch(tmp_path, "val/a/5.png", "val/b/x/6.png")
    assert nested_folders(list_folder(tmp_path)) == {"a": {"x": 2, "y": 1}, "b": {"x": 1}}
