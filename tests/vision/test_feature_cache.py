"""The cache gives back what was computed, for exactly the photos, backbone and view that it was computed for."""

import io
import os
import signal
import struct
import subprocess
import sys
import threading
import zipfile
from dataclasses import replace

import numpy
import pytest
import torch
from PIL import Image

from opslib.vision.backbones import build_backbone
from opslib.vision.data import open_photos
from opslib.vision.feature_cache import FeatureCache, Shelf, backbone_digest, digest
from opslib.vision.features import FeatureExtractor

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def backbone():
    return build_backbone("efficientnet_lite0")


def counting(backbone, directory):
    """Return an extractor over a cache, and the list of the batches that it really computes."""
    extractor = FeatureExtractor(backbone, CPU, 1, FeatureCache(directory))
    computed = []

    class Counted:
        batch_size = 1

        @staticmethod
        def compute(pixels):
            computed.append(len(pixels))
            return torch.from_numpy(pixels.reshape(len(pixels), -1)[:, : backbone.features].astype(numpy.float32))

    extractor.__dict__["runtime"] = Counted
    return extractor, computed


def test_second_job_computes_nothing_and_gets_the_same(backbone, sample, tmp_path):
    photos = open_photos(sample).files["train"]
    first, computed = counting(backbone, tmp_path)
    centre, crops = first.centre_views(photos), first.random_views(photos, "0/1")
    assert len(computed) == 2 * len(photos)
    second, again = counting(backbone, tmp_path)
    seen = []
    assert torch.equal(second.centre_views(photos, seen.append).values, centre.values)
    assert torch.equal(second.random_views(photos, "0/1").values, crops.values)
    assert again == []
    assert sum(seen) == len(photos)


def test_what_differs_is_computed(backbone, sample, tmp_path):
    photos = open_photos(sample).files["valid"]
    counting(backbone, tmp_path)[0].centre_views(photos)
    changed = tmp_path / "changed.jpg"
    Image.new("RGB", (300, 300), "teal").save(changed)
    extractor, computed = counting(backbone, tmp_path)
    extractor.centre_views([*photos[1:], replace(photos[0], path=changed)])
    assert len(computed) == 1
    extractor.random_views(photos, "0/1")
    assert len(computed) == 1 + len(photos)


def test_digest_names_weights_and_view(backbone):
    name = backbone_digest(backbone, "float32")
    assert name == backbone_digest(build_backbone("efficientnet_lite0"), "float32")
    others = [backbone_digest(backbone, "bfloat16")]
    others.append(backbone_digest(replace(backbone, transform=replace(backbone.transform, size=224)), "float32"))
    others.append(backbone_digest(build_backbone("efficientnet_lite0", pretrained=False), "float32"))
    assert len({name, *others}) == 4
    assert digest(b"ab", b"c") != digest(b"a", b"bc")


@pytest.mark.parametrize("damage", [b"", b"not a zip file", None])
def test_damaged_file_is_computed_again(backbone, sample, tmp_path, damage):
    photos = open_photos(sample).files["valid"]
    counting(backbone, tmp_path)[0].centre_views(photos)
    (file,) = tmp_path.glob("*/*.npz")
    file.write_bytes(file.read_bytes()[:-2000] if damage is None else damage)
    extractor, computed = counting(backbone, tmp_path)
    extractor.centre_views(photos)
    assert len(computed) == len(photos)
    third, computed = counting(backbone, tmp_path)
    third.centre_views(photos)
    assert computed == []


def test_whatever_lies_in_a_shelf_only_costs_time(tmp_path):
    shape = "{'descr': '|u1', 'fortran_order': False, 'shape': (10000000000000,)}".ljust(117) + "\n"
    with zipfile.ZipFile(tmp_path / "huge.npz", "w") as huge:
        huge.writestr("keys.npy", b"\x93NUMPY\x01\x00" + struct.pack("<H", len(shape)) + shape.encode())
    (tmp_path / "folder.npz").mkdir()
    with (tmp_path / "array.npz").open("wb") as array:
        numpy.save(array, numpy.zeros(3))
    whole = io.BytesIO()
    numpy.savez_compressed(whole, keys=numpy.zeros((1, 32), numpy.uint8), values=numpy.zeros((1, 4), numpy.float32))
    for name, position, value in (("method", 8, 99), ("encrypted", 6, 1)):
        content = bytearray(whole.getvalue())
        content[position] = content[content.index(b"PK\x01\x02") + position + 2] = value
        (tmp_path / f"{name}.npz").write_bytes(content)
    Shelf(tmp_path, 4).load()
    assert [path.name for path in tmp_path.iterdir()] == ["folder.npz"]


def test_cache_that_cannot_be_written_only_costs_time(backbone, sample, tmp_path):
    blocked = tmp_path / "file"
    blocked.write_bytes(b"")
    photos = open_photos(sample).files["valid"]
    extractor, computed = counting(backbone, blocked / "features")
    assert len(extractor.centre_views(photos)) == len(photos) == len(computed)


def test_what_was_not_used_for_longest_goes_first(backbone, tmp_path):
    cache = FeatureCache(tmp_path)
    for count in range(3):
        shelf = cache.shelf(backbone, "float32")
        shelf.put(digest(bytes([count])), numpy.zeros(backbone.features, numpy.float32))
        shelf.save()
    files = sorted(tmp_path.glob("*/*.npz"), key=lambda path: path.stat().st_mtime_ns)
    for age, path in enumerate(reversed(files)):
        os.utime(path, (1_000_000 - age, 1_000_000 - age))
    size = files[0].stat().st_size
    cache.prune(2 * size)
    assert sorted(tmp_path.glob("*/*.npz")) == sorted(files[1:])


def test_threads_share_a_shelf(backbone, tmp_path):
    shelf = FeatureCache(tmp_path).shelf(backbone, "float32")

    def fill(start):
        for number in range(start, start + 200):
            shelf.put(digest(number.to_bytes(4)), numpy.full(backbone.features, number, numpy.float32))
            if number % 50 == 0:
                shelf.save()

    threads = [threading.Thread(target=fill, args=(1000 * position,)) for position in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    shelf.save()
    loaded = FeatureCache(tmp_path).shelf(backbone, "float32")
    for start in range(0, 4000, 1000):
        for number in range(start, start + 200):
            assert loaded.get(digest(number.to_bytes(4)))[0] == number


def test_kill_leaves_whole_files(tmp_path):
    program = """
import sys, numpy
from pathlib import Path
from opslib.vision.feature_cache import Shelf, digest
shelf = Shelf(Path(sys.argv[1]), 1000)
for number in range(10**9):
    shelf.put(digest(number.to_bytes(4)), numpy.full(1000, number, numpy.float32))
    if number % 20 == 19:
        shelf.save()
        print(number, flush=True)
"""
    process = subprocess.Popen([sys.executable, "-c", program, tmp_path], stdout=subprocess.PIPE, text=True)
    with process:
        saved = [int(process.stdout.readline()) for _ in range(30)][-1]
        process.send_signal(signal.SIGKILL)
    from opslib.vision.feature_cache import Shelf

    shelf = Shelf(tmp_path, 1000)
    shelf.load()
    assert all(shelf.get(digest(number.to_bytes(4)))[0] == number for number in range(saved + 1))
