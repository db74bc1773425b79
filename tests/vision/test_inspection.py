"""The report on photos, and the contact sheet."""

import shutil

import pytest
from PIL import Image

from opslib.errors import PhotosError
from opslib.vision.data import open_photos
from opslib.vision.inspection import check_photos, contact_sheet


def test_sound_photos(sample):
    report = check_photos(open_photos(sample))
    report.raise_for_problems()
    assert not report.unreadable
    assert len(report.usable) == len(report.photos) == 60
    assert "every photo can be decoded" in str(report)


@pytest.fixture
def troubled(sample, tmp_path):
    root = tmp_path / "photos"
    shutil.copytree(sample, root)
    first, second, *_ = sorted(path.name for path in (root / "train").iterdir())
    whole = root / "train" / first / "train_01.jpg"
    whole.write_bytes(whole.read_bytes()[:-700])
    (root / "train" / first / "page.png").write_text("<html>")
    shutil.copyfile(root / "train" / second / "train_02.jpg", root / "test" / second / "copy <b>.jpg")
    shutil.copyfile(root / "train" / second / "train_02.jpg", root / "train" / second / "again.jpg")
    shutil.rmtree(root / "valid" / second)
    for number in (3, 4, 5, 6):
        (root / "train" / second / f"train_{number:02}.jpg").unlink()
    (root / "train" / first / "movie.mp4").write_bytes(b"x")
    return check_photos(open_photos(root)), first, second


def test_every_trouble_is_named(troubled):
    report, first, second = troubled
    assert set(report.unreadable) == {f"train/{first}/train_01.jpg", f"train/{first}/page.png"}
    (group,) = report.repeated
    assert set(group) == {f"train/{second}/train_02.jpg", f"train/{second}/again.jpg", f"test/{second}/copy <b>.jpg"}
    assert report.missing == {"train": [], "valid": [second], "test": []}
    assert report.few == {second: 3}
    for expected in ("2 left out", "train_01.jpg", "leakage", f"without a valid photo: {second}", "movie.mp4"):
        assert expected in str(report)
    page = report._repr_html_()
    assert "copy &lt;b&gt;.jpg" in page
    assert "<b>.jpg" not in page


def test_usable_photos_leave_the_unreadable_ones_out(troubled):
    report, _, _ = troubled
    again = check_photos(report.usable)
    assert not again.unreadable
    assert len(report.usable) == len(report.photos) - 2
    assert report.usable.classes == report.photos.classes
    report.raise_for_problems()


@pytest.mark.parametrize(
    ("paths", "reason"),
    [
        (["train/a/1.jpg", "valid/a/2.jpg", "test/a/3.jpg"], "only one class"),
        (["train/a/1.jpg", "valid/a/2.jpg", "valid/b/3.jpg", "test/a/4.jpg"], "no readable training photo of b"),
        (["a/1.jpg", "b/1.jpg"], "no readable valid photo"),
    ],
)
def test_photos_that_cannot_be_trained_on(write_photos, paths, reason):
    report = check_photos(open_photos(write_photos(paths)))
    with pytest.raises(PhotosError, match=reason):
        report.raise_for_problems()


def test_photo_that_vanishes_is_unreadable(write_photos):
    photos = open_photos(write_photos([f"{label}/{number}.jpg" for label in "ab" for number in range(8)]))
    photos.files["train"][0].path.unlink()
    assert list(check_photos(photos).unreadable) == [photos.files["train"][0].key]


def test_long_lists_are_cut(write_photos):
    root = write_photos([f"{label}/{number}.jpg" for label in "ab" for number in range(20)])
    for path in root.rglob("*.jpg"):
        path.write_bytes(b"")
    assert "and 32 more" in str(check_photos(open_photos(root)))


def test_contact_sheet_shows_rows_of_classes(sample):
    photos = open_photos(sample)
    photos.files["train"][0].path.with_name("unused").touch()
    sheet = contact_sheet(photos, rows=4, per_row=5, side=60)
    assert sheet.size == (5 * 66 + 6, 4 * 86 + 6)
    assert len(sheet.getcolors(maxcolors=10**6)) > 1000
    assert sheet.tobytes() == contact_sheet(photos, rows=4, per_row=5, side=60).tobytes()


def test_contact_sheet_shows_a_grey_tile_for_a_broken_photo(write_photos):
    root = write_photos(["train/a/1.jpg", "valid/a/1.jpg", "test/a/1.jpg"])
    (root / "train" / "a" / "1.jpg").write_bytes(b"broken")
    sheet = contact_sheet(open_photos(root), side=40)
    assert sheet.getpixel((20, 40)) == (225, 228, 232)
    assert isinstance(sheet, Image.Image)
    with pytest.raises(PhotosError, match="no valid photos"):
        photos = open_photos(root)
        contact_sheet(type(photos)(root, photos.classes, {**photos.files, "valid": ()}), split="valid")
