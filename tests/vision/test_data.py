"""From what the user has to train, valid and test photos."""

import functools
import os
import unicodedata
import zipfile
from pathlib import Path

import pytest

from opslib.errors import DownloadError, PhotosError
from opslib.vision import data
from opslib.vision.data import open_photos, prepare_photos


def keys(photos):
    return [key for key, _ in photos.items()]


def many(folder, labels=("cat", "dog"), count=20):
    return [f"{folder}{label}/{number:02}.jpg" for label in labels for number in range(count)]


@pytest.mark.parametrize("valid", ["valid", "validation", "val", "Validation", "VAL"])
def test_validation_goes_by_several_names(write_photos, valid):
    root = write_photos(["Train/cat/a.jpg", "Train/dog/b.jpg", f"{valid}/cat/c.jpg", "test/dog/d.jpg"])
    photos = open_photos(root)
    assert keys(photos) == ["train/cat/a.jpg", "train/dog/b.jpg", "valid/cat/c.jpg", "test/dog/d.jpg"]
    assert photos.classes == ("cat", "dog")
    assert [photo.label for photo in photos] == [0, 1, 0, 1]
    assert photos.counts == {"train": 2, "valid": 1, "test": 1}
    assert str(photos).startswith("4 photos of 2 classes (2 train, 1 valid, 1 test) in ")


def test_wrapping_folders_are_stepped_into(write_photos):
    root = write_photos(["wrap/inner/train/cat/a.jpg", "wrap/inner/valid/cat/b.jpg", "wrap/inner/test/cat/c.jpg"])
    assert keys(open_photos(root)) == ["train/cat/a.jpg", "valid/cat/b.jpg", "test/cat/c.jpg"]


def test_folder_without_splits_is_split_by_class_and_stays_where_it_is(write_photos):
    root = write_photos(many(""))
    before = sorted(root.rglob("*"))
    photos = open_photos(root, seed=1)
    assert photos.counts == {"train": 28, "valid": 6, "test": 6}
    assert sorted(root.rglob("*")) == before
    assert all(path.is_relative_to(root) for _, path in photos.items())
    for split in data.SPLITS:
        labels = [photo.label for photo in photos.files[split]]
        assert labels.count(0) == labels.count(1)


def test_split_depends_on_names_and_seed_only(write_photos):
    root = write_photos(many(""))
    first = open_photos(root, seed=1)
    assert keys(open_photos(root, seed=1)) == keys(first)
    assert keys(open_photos(root, seed=2)) != keys(first)
    moved = root.rename(root.with_name("elsewhere"))
    assert keys(open_photos(moved, seed=1)) == keys(first)


def test_photos_of_a_class_are_never_lost_in_the_split(write_photos):
    root = write_photos(["one/a.jpg", "two/a.jpg", "two/b.jpg", "three/a.jpg", "three/b.jpg", "three/c.jpg"])
    photos = open_photos(root)
    assert len(photos) == 6
    assert {photo.label for photo in photos.files["train"]} == {0, 1, 2}


def test_missing_splits_are_taken_from_train_and_the_others_left_alone(write_photos):
    root = write_photos([*many("train/"), "test/cat/x.jpg"])
    photos = open_photos(root)
    assert photos.counts == {"train": 34, "valid": 6, "test": 1}
    assert "test/cat/x.jpg" in keys(photos)


def test_a_class_may_be_named_test(write_photos):
    photos = open_photos(write_photos(many("", ["exam", "test"])))
    assert photos.classes == ("exam", "test")


def test_hidden_and_other_files_are_left_out(write_photos):
    root = write_photos(["cat/a.JPG", "cat/b.Png", "cat/sub/c.jpeg", "cat/.hidden.jpg", "__MACOSX/cat/._a.jpg"])
    (root / "cat" / "notes.txt").write_text("x")
    (root / "cat" / "d.heic").write_bytes(b"x")
    (root / "cat" / ".cache").mkdir()
    (root / "cat" / ".cache" / "e.jpg").write_bytes(b"x")
    (root / "readme.md").write_text("x")
    photos = open_photos(root)
    assert {key.partition("/")[2] for key in keys(photos)} == {"cat/a.JPG", "cat/b.Png", "cat/sub/c.jpeg"}
    assert {path.name for path in photos.ignored} == {"notes.txt", "d.heic"}


def test_linked_photos_are_followed_and_broken_links_are_not_photos(write_photos, tmp_path):
    root = write_photos(["cat/a.jpg", "dog/b.jpg"])
    (root / "cat" / "linked.jpg").symlink_to(root / "dog" / "b.jpg")
    (root / "cat" / "broken.jpg").symlink_to(tmp_path / "nowhere.jpg")
    (root / "cat" / "loop").symlink_to(root)
    photos = open_photos(root)
    assert "linked.jpg" in {path.name for _, path in photos.items()}
    assert [path.name for path in photos.ignored] == ["broken.jpg"]
    assert len(photos) == 3


def test_one_class_in_two_spellings_of_unicode(write_photos):
    root = write_photos(
        [f"train/{unicodedata.normalize('NFD', 'café')}/ü.jpg", f"test/{unicodedata.normalize('NFC', 'café')}/狗.jpg"]
    )
    photos = open_photos(root)
    assert photos.classes == ("café",)
    assert keys(photos)[0] == "train/café/ü.jpg"


def test_two_photos_with_one_key_are_refused(write_photos):
    root = write_photos(["train/cat/a.jpg", "valid/cat/b.jpg", "validation/cat/b.jpg", "val/cat/c.jpg"])
    with pytest.raises(PhotosError, match=r"valid/cat/b.jpg and .*validation/cat/b.jpg are both the valid photo cat/b"):
        open_photos(root)


@pytest.mark.parametrize("path", [b"cat\xff/a.jpg", b"cat/a\xff.jpg"])
def test_names_that_are_no_text_are_refused(write_photos, path):
    root = write_photos(["train/cat/b.jpg", f"train/{os.fsdecode(path)}"])
    with pytest.raises(PhotosError, match="is not UTF-8"):
        open_photos(root)


@pytest.mark.parametrize("paths", [[], ["photo.jpg"], ["test/cat/a.jpg", "valid/cat/b.jpg"]])
def test_folders_without_training_photos_are_refused(write_photos, tmp_path, paths):
    (tmp_path / "photos").mkdir()
    with pytest.raises(PhotosError, match="no training photos"):
        open_photos(write_photos(paths))


def test_folder_is_used_where_it_lies(write_photos, tmp_path):
    root = write_photos(many(""))
    assert prepare_photos(root, tmp_path / "unused").root == root
    assert not (tmp_path / "unused").exists()


def test_archive_is_extracted_once(write_photos, tmp_path, monkeypatch):
    root = write_photos(many("wrapped/"))
    archive = tmp_path / "dogs.zip"
    with zipfile.ZipFile(archive, "w") as writer:
        for path in root.rglob("*.jpg"):
            writer.write(path, path.relative_to(root))
    photos = prepare_photos(archive, tmp_path / "work")
    assert len(photos) == 40
    assert photos.root.is_relative_to(tmp_path / "work")
    monkeypatch.setattr(data, "extract_archive", None)
    assert prepare_photos(str(archive), tmp_path / "work") == photos


def test_archive_with_another_checksum_is_refused_and_kept(tmp_path):
    archive = tmp_path / "dogs.zip"
    archive.write_bytes(b"PK")
    with pytest.raises(DownloadError, match="checksum"):
        prepare_photos(archive, tmp_path / "work", sha256="0" * 64)
    assert archive.exists()


def test_url_is_downloaded_and_extracted(write_photos, tmp_path, monkeypatch):
    root = write_photos(many(""))

    def download(url, path, *, sha256):
        assert (url, sha256) == ("https://example.com/a/dog%20Images.zip?x=1", "ab")
        path.parent.mkdir(parents=True)
        with zipfile.ZipFile(path, "w") as writer:
            for photo in root.rglob("*.jpg"):
                writer.write(photo, photo.relative_to(root))
        return path

    monkeypatch.setattr(data, "download", download)
    photos = prepare_photos("https://example.com/a/dog%20Images.zip?x=1", tmp_path / "work", sha256="ab")
    assert len(photos) == 40


def test_prefix_is_fetched_by_the_function_that_is_given(write_photos, tmp_path):
    root = write_photos(["train/cat/a.jpg", "valid/cat/b.jpg", "test/cat/c.jpg"])
    asked = []

    def fetch(uri, folder: Path):
        asked.append(uri)
        root.rename(folder / "fetched")

    photos = prepare_photos("s3://bucket/photos/", tmp_path / "work", fetch_s3=fetch)
    assert asked == ["s3://bucket/photos/"]
    assert len(photos) == 3


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("s3://bucket/photos", "needs a downloader"),
        ("http://example.com/a.zip", "not fetched over http"),
        ("ftp://example.com/a.zip", "not fetched over ftp"),
        ("nowhere", "no folder or file"),
        ("", "no folder or file"),
    ],
)
def test_other_sources_are_refused(tmp_path, source, reason):
    with pytest.raises(PhotosError, match=reason):
        prepare_photos(source, tmp_path)


def test_sample_is_drawn_once(tmp_path, monkeypatch):
    few = functools.partial(data.draw_sample, breeds=3, per_breed={"train": 2, "valid": 1, "test": 1})
    monkeypatch.setattr(data, "draw_sample", few)
    photos = prepare_photos("sample", tmp_path / "work")
    assert photos.counts == {"train": 6, "valid": 3, "test": 3}
    monkeypatch.setattr(data, "draw_sample", None)
    assert prepare_photos("sample", tmp_path / "work") == photos
