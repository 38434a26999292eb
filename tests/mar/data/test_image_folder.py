"""A data folder is listed by class, and every way in which it can be wrong is named."""

import re
from pathlib import Path

import pytest
from PIL import Image

from mar.data.image_folder import EXPECTED, EXTENSIONS, File, list_folder, verify
from mar.data.images import FORMATS


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
        "only val (or validation) and test may lie there"
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


def test_a_name_that_is_not_text_is_refused(tmp_path: Path) -> None:
    touch(tmp_path, "a/1.png")
    (tmp_path / "a" / "\udcff.png").touch()
    assert refused(tmp_path) == r"a file's name in ROOT/a is not UTF-8: '\udcff.png'"


def test_verify_names_what_was_added_and_removed(tmp_path: Path) -> None:
    touch(tmp_path, "a/1.png", "a/2.png", "a/3.png")
    verify(tmp_path, {"a/1.png", "a/2.png", "a/3.png"})
    with pytest.raises(ValueError, match="prepare") as caught:
        verify(tmp_path, {"a/0.png", "a/2.png"})
    assert str(caught.value) == (
        f"the images in {tmp_path} are not those that prepare saw: "
        "2 added (a/1.png), 1 removed (a/0.png); "
        "`dvc repro --force --single-item prepare` reads the folder again"
    )
