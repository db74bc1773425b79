"""Archives, honest and hostile."""

import io
import stat
import tarfile
import zipfile

import pytest

from opslib.errors import PhotosError
from opslib.vision.archives import extract_archive


def make_zip(path, members):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as writer:
        for name, content in members:
            writer.writestr(name, content)
    return path


def make_tar(path, members, mode="w:gz"):
    with tarfile.open(path, mode) as writer:
        for member, content in members:
            info = tarfile.TarInfo(member) if isinstance(member, str) else member
            info.size = len(content)
            writer.addfile(info, io.BytesIO(content))
    return path


def special(name, kind, target=""):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def left_behind(tmp_path):
    return sorted(path.name for path in tmp_path.iterdir() if not path.name.startswith("a."))


@pytest.mark.parametrize("make", [make_zip, make_tar], ids=["zip", "tar"])
def test_files_are_extracted_and_hidden_ones_left_out(tmp_path, make):
    members = [("dogs/a.jpg", b"a"), ("dogs/ü/b.jpg", b"bb"), ("__MACOSX/dogs/._a.jpg", b"x"), ("dogs/.DS_Store", b"x")]
    extract_archive(make(tmp_path / "a.bin", members), tmp_path / "out" / "dogs")
    found = [path for path in (tmp_path / "out" / "dogs").rglob("*") if path.is_file()]
    files = {path.relative_to(tmp_path / "out" / "dogs").as_posix(): path.read_bytes() for path in found}
    assert files == {"dogs/a.jpg": b"a", "dogs/ü/b.jpg": b"bb"}
    assert stat.S_IMODE((tmp_path / "out" / "dogs").stat().st_mode) == 0o755


@pytest.mark.parametrize("name", ["../evil.jpg", "/tmp/evil.jpg", "a/../../evil.jpg", "a\\..\\evil.jpg"])
@pytest.mark.parametrize("make", [make_zip, make_tar], ids=["zip", "tar"])
def test_paths_that_leave_the_folder_are_refused(tmp_path, make, name):
    archive = make(tmp_path / "a.bin", [("good.jpg", b"x"), (name, b"x")])
    with pytest.raises(PhotosError, match="leaves its folder"):
        extract_archive(archive, tmp_path / "out")
    assert left_behind(tmp_path) == []


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE])
def test_links_and_devices_in_tars_are_refused(tmp_path, kind):
    archive = make_tar(tmp_path / "a.tar", [(special("x.jpg", kind, "/etc/passwd"), b"")])
    with pytest.raises(PhotosError, match="link or a special file"):
        extract_archive(archive, tmp_path / "out")


def test_links_in_zips_are_refused(tmp_path):
    link = zipfile.ZipInfo("x.jpg")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with pytest.raises(PhotosError, match="link"):
        extract_archive(make_zip(tmp_path / "a.zip", [(link, b"/etc/passwd")]), tmp_path / "out")


@pytest.mark.parametrize("make", [make_zip, make_tar], ids=["zip", "tar"])
def test_bombs_stop_at_the_limit_whatever_their_headers_say(tmp_path, make):
    archive = make(tmp_path / "a.bin", [(f"{number}.jpg", bytes(1_000_000)) for number in range(4)])
    assert archive.stat().st_size < 20_000
    with pytest.raises(PhotosError, match="more than may be extracted"):
        extract_archive(archive, tmp_path / "out", max_bytes=3_500_000)
    assert left_behind(tmp_path) == []


def test_encrypted_zip_is_refused(tmp_path):
    archive = make_zip(tmp_path / "a.zip", [("a.jpg", b"x" * 50)])
    data = bytearray(archive.read_bytes())
    data[6] |= 1  # the flag in the local header
    data[data.index(b"PK\x01\x02") + 8] |= 1  # and in the directory
    archive.write_bytes(data)
    with pytest.raises(PhotosError, match="password"):
        extract_archive(archive, tmp_path / "out")


@pytest.mark.parametrize("make", [make_zip, make_tar], ids=["zip", "tar"])
def test_damaged_archives_are_refused_and_leave_nothing(tmp_path, make):
    archive = make(tmp_path / "a.bin", [(f"{number}.jpg", bytes(range(256)) * 100) for number in range(9)])
    data = bytearray(archive.read_bytes())
    data[len(data) // 3 : len(data) // 3 + 40] = bytes(40)
    archive.write_bytes(data)
    with pytest.raises(PhotosError, match="cannot be extracted"):
        extract_archive(archive, tmp_path / "out")
    assert left_behind(tmp_path) == []


def test_truncated_tar_without_compression_is_refused(tmp_path):
    archive = make_tar(tmp_path / "a.tar", [(f"{number}.jpg", bytes(2000)) for number in range(3)], "w")
    data = bytearray(archive.read_bytes())
    data[2560:2660] = b"x" * 100  # the name in the second header
    archive.write_bytes(data)
    with pytest.raises(PhotosError, match="damaged after the last file"):
        extract_archive(archive, tmp_path / "out")


def test_one_name_twice_is_refused(tmp_path):
    archive = make_tar(tmp_path / "a.tar", [("a.jpg", b"1"), ("a.jpg", b"2")])
    with pytest.raises(PhotosError, match="cannot be extracted"):
        extract_archive(archive, tmp_path / "out")


def test_other_files_are_no_archives(tmp_path):
    (tmp_path / "a.bin").write_bytes(b"<html>not found</html>")
    with pytest.raises(PhotosError, match="neither a zip nor a tar"):
        extract_archive(tmp_path / "a.bin", tmp_path / "out")
