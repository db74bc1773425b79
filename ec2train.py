"""Train a photo classifier on one machine: one file, nothing to install but torch, torchvision and Pillow.

    python ec2train.py --data dogImages                          # the reference's settings, TrainedModels/model.pth
    python ec2train.py --data dogImages --epochs 40 --batch_size 32 --learning_rate 0.0005
    torchrun --nproc_per_node gpu ec2train.py --data dogImages   # every GPU computes its share of the features
    python ec2train.py --data photos --backbone efficientnet_lite0 --weights FILE    # needs timm, but no internet

The folder holds train/, valid/ and test/ with a folder for each class; splits that are missing are taken from train/.
The frozen backbone sees every photo once, then a small head is trained; `inference.py` loads the model's folder.
Features and a checkpoint lie beside the model: the same command goes on after an interruption (or kill -9), to the same
weights. Functions that say "as in opslib" are copies; a test holds them equal to their originals.
"""

import argparse
import copy
import hashlib
import io
import json
import math
import os
import random
import signal
import sqlite3
import sys
import time
import unicodedata
from collections import namedtuple
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy
import torch
from PIL import Image, ImageChops, ImageOps
from torch import distributed, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights
from torchvision import models

PHOTO_SUFFIXES = frozenset({".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp"})
SPLITS = ("train", "valid", "test")
DEFAULTS = {"model_dir": Path("TrainedModels"), "backbone": "resnet50", "weights": "", "learning_rate": 1e-4}
DEFAULTS |= {"epochs": 5, "batch_size": 2, "patience": 5, "views": 1, "seed": 0}
HIDDEN_FEATURES, Box, Data = 128, tuple[float, float, float, float], tuple[torch.Tensor, torch.Tensor]
_SPLIT_OF_FOLDER = {"train": "train", "valid": "valid", "validation": "valid", "val": "valid", "test": "test"}
_SHARE_OF_SPLIT = {"valid": 0.15, "test": 0.15}
_PHOTOS_PER_BATCH, _TOLERANCE = {"cpu": 4, "cuda": 64}, 1e-3
_ADOBE_SEGMENT, _WHITE, _HIDDEN = "adobe", (255, 255, 255, 255), (".", "__MACOSX")
# A photo's class, its name below the class folder and its path; what a backbone wants to see of it.
ListedPhoto = namedtuple("ListedPhoto", "label name path")
TransformSpec = namedtuple("TransformSpec", "size crop_fraction interpolation mean std")


def open_photos(root: Path, seed: int) -> dict[str, list[ListedPhoto]]:
    """Return the photos of each split; a folder that is itself a split is refused."""
    if not root.is_dir():
        raise SystemExit(f"error: there is no folder {root}")
    splits, photos = [one for one in _folders(root) if one.name.lower() in _SPLIT_OF_FOLDER], {"train": []}
    if any(map(_folders, splits)):
        for split in splits:
            photos.setdefault(_SPLIT_OF_FOLDER[split.name.lower()], []).extend(_list_classes(split))
    elif root.name.lower() in _SPLIT_OF_FOLDER:
        raise SystemExit(f"error: {root} is a split; test photos are not for training: --data {root.parent}")
    else:
        photos["train"] = _list_classes(root)
    if len({photo.label for photo in photos["train"]}) < 2:
        raise SystemExit(f"error: there are no photos of two classes in {root}/train/CLASS/ (nor in {root}/CLASS/)")
    fill_splits(photos, seed)
    seen = {split: {hashlib.sha256(one.path.read_bytes()).digest() for one in photos[split]} for split in photos}
    if not seen["valid"] or any(2 * len(seen["train"] & seen[one]) > len(seen[one]) for one in ("valid", "test")):
        raise SystemExit("error: there are no photos to choose and to test by that are not training photos, too")
    return {split: sorted(photos.get(split, [])) for split in SPLITS}


def _list_classes(parent: Path) -> list[ListedPhoto]:
    return [
        ListedPhoto(*(unicodedata.normalize("NFC", text) for text in (folder.name, name.as_posix())), folder / name)
        for folder in _folders(parent)
        for name in sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
        if name.suffix.lower() in PHOTO_SUFFIXES and not any(part.startswith(_HIDDEN) for part in name.parts)
    ]


def fill_splits(photos: dict[str, list[ListedPhoto]], seed: int) -> None:
    """Move training photos of every class to the splits that have none, as in opslib."""
    missing = [split for split in _SHARE_OF_SPLIT if not photos.get(split)]
    by_class: dict[str, list[ListedPhoto]] = {}
    for photo in photos["train"]:
        by_class.setdefault(photo.label, []).append(photo)
    photos["train"] = []
    for members in by_class.values():
        members.sort(key=lambda photo: hashlib.sha256(f"{seed}/{photo.label}/{photo.name}".encode()).digest())
        total = len(members)
        for split in missing:
            taken = min(max(1, round(total * _SHARE_OF_SPLIT[split])), len(members) - 1)
            photos.setdefault(split, []).extend(members[:taken])
            del members[:taken]
        photos["train"].extend(members)


def _folders(parent: Path) -> list[Path]:
    return sorted(path for path in parent.iterdir() if not path.name.startswith(_HIDDEN) and path.is_dir())


def decode_photo(data: bytes, shortest_side: int) -> Image.Image:
    """Decode a photo to an upright RGB picture, a large JPEG at a fraction of its size."""
    picture = Image.open(io.BytesIO(data), formats=("JPEG", "PNG", "WEBP"))
    scans = data.count(b"\xff\xda") if picture.format in ("JPEG", "MPO") else 0
    if picture.width * picture.height > 50_000_000 or scans > 100:
        raise ValueError("it has more than 50,000,000 pixels or 100 scans")
    picture.draft(None, (shortest_side, shortest_side))
    picture.load()
    with suppress(Exception):  # an EXIF block that cannot be read is none
        picture = ImageOps.exif_transpose(picture)
    return _rgb(picture)


def _rgb(picture: Image.Image) -> Image.Image:
    if picture.mode == "RGB" and not picture.has_transparency_data:
        return picture
    if picture.mode.startswith("I"):
        return picture.convert("I").point(lambda value: value / 256).convert("L").convert("RGB")
    if picture.mode == "CMYK":
        inks = picture if _ADOBE_SEGMENT in picture.info else ImageChops.invert(picture)
        return inks.convert("RGB")
    if picture.has_transparency_data:
        layer = picture.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, _WHITE), layer).convert("RGB")
    return picture.convert("RGB")


def centre_box(size: tuple[int, int], crop_fraction: float) -> Box:
    """Return the centred square of `crop_fraction` times the shorter side, as in opslib."""
    width, height = size
    side = min(width, height) * crop_fraction
    left, upper = (width - side) / 2, (height - side) / 2
    return left, upper, left + side, upper + side


def random_box(size: tuple[int, int], rng: random.Random, scale: tuple[float, float]) -> Box:
    """Return a random crop of `scale` times the area, its sides from 3:4 to 4:3, as in opslib."""
    width, height = size
    for _ in range(10):
        area = width * height * rng.uniform(*scale)
        ratio = (4 / 3) ** rng.uniform(-1, 1)
        crop_width, crop_height = (area * ratio) ** 0.5, (area / ratio) ** 0.5
        if crop_width <= width and crop_height <= height:
            left, upper = rng.uniform(0, width - crop_width), rng.uniform(0, height - crop_height)
            return left, upper, left + crop_width, upper + crop_height
    return centre_box(size, 1.0)


def view_pixels(photo: ListedPhoto, view: str, spec: TransformSpec) -> numpy.ndarray:
    """Return a photo's centre, or the random crop that any other name of a view decides: uint8 (size, size, 3)."""
    try:
        picture = decode_photo(photo.path.read_bytes(), 2 * round(spec.size / spec.crop_fraction))
    except Exception as error:  # Pillow's decoders raise a dozen types
        raise SystemExit(f"error: {photo.path} cannot be used: {error}") from error
    rng, size = random.Random(view), picture.size  # noqa: S311 - no secret
    box = random_box(size, rng, (0.08, 1.0)) if view != "centre" else centre_box(size, spec.crop_fraction)
    pixels = picture.resize((spec.size, spec.size), Image.Resampling[spec.interpolation.upper()], box=box)
    return numpy.array(pixels)[:, :: -1 if view != "centre" and rng.random() < 0.5 else 1]


def build_backbone(name: str, weights: str) -> tuple[nn.Module, TransformSpec]:
    """Return a pretrained network without its classifier, and what it wants to see."""
    try:
        if name == "efficientnet_lite0":
            import timm

            model = timm.create_model("tf_efficientnet_lite0")
            spec = TransformSpec(256, 1.0, "bicubic", (0.5,) * 3, (0.5,) * 3)
        else:
            known = models.get_model_weights(name).DEFAULT
            view, size = known.transforms(), known.transforms().crop_size[0]
            spec = TransformSpec(size, size / view.resize_size[0], view.interpolation.value, view.mean, view.std)
            model = models.get_model(name, weights=None if weights else known)
        if weights or name == "efficientnet_lite0":
            state, wanted = torch.load(weights or "FILE", map_location="cpu", weights_only=True), model.state_dict()
            # The package of EfficientNet-Lite0 names its entries after another implementation, in the same order.
            model.load_state_dict(dict(zip(wanted, state.values(), strict=True)) if state.keys() ^ wanted else state)
    except Exception as error:  # of torch, timm, the network or the file
        raise SystemExit(f"error: backbone {name}: {error}\n  hint: offline, --weights is its state dict") from error
    model.set_submodule([path for path, one in model.named_modules() if isinstance(one, nn.Linear)][-1], nn.Identity())
    return model.eval().requires_grad_(False), spec


def build_head(features: int, classes: int) -> nn.Sequential:
    """Build the head: Linear(features, 128), ReLU, Linear(128, classes), as in opslib."""
    return nn.Sequential(nn.Linear(features, HIDDEN_FEATURES), nn.ReLU(), nn.Linear(HIDDEN_FEATURES, classes))


def fold_batch_norm(module: nn.Module, size: int) -> nn.Module:
    """Return a copy with its BatchNorm layers folded into the convolutions before them, as in opslib."""
    if not any(isinstance(layer, nn.BatchNorm2d) for layer in module.modules()):
        return module
    folded = copy.deepcopy(module)
    convolution: nn.Conv2d | None = None
    for path, layer in list(folded.named_modules()):
        if isinstance(layer, nn.Conv2d):
            convolution = layer
        elif isinstance(layer, nn.BatchNorm2d) and convolution is not None:
            if convolution.out_channels != layer.num_features:
                return module
            _fold(convolution, layer)
            folded.set_submodule(path, getattr(layer, "act", nn.Identity()))
            convolution = None
    return folded if _agree(module, folded, size) else module


def _fold(convolution: nn.Conv2d, norm: nn.BatchNorm2d) -> None:
    convolution.weight, convolution.bias = fuse_conv_bn_weights(
        convolution.weight, convolution.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
    )


def _agree(module: nn.Module, folded: nn.Module, size: int) -> bool:
    parameter = next(module.parameters())
    noise = torch.rand(1, 3, size, size, generator=torch.Generator().manual_seed(0)).to(parameter.device)
    with torch.inference_mode():
        expected, actual = module(noise), folded(noise)
    return (expected - actual).abs().max().item() <= _TOLERANCE * expected.abs().max().item()


def extract(views: list[Any], module: nn.Module, spec: TransformSpec, database: sqlite3.Connection) -> torch.Tensor:
    """Return the features of some views, float32 (views, features): those on disk, and the others computed now."""
    device = torch.device(f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if torch.cuda.is_available() else "cpu")
    about = hashlib.sha256(f"{spec} {device.type}".encode())
    for value in module.state_dict().values():
        about.update(value.flatten().view(torch.uint8).numpy())
    keys = [hashlib.sha256(about.digest() + view.encode() + photo.path.read_bytes()).digest() for photo, view in views]
    database.execute("CREATE TABLE IF NOT EXISTS features (key BLOB PRIMARY KEY, row BLOB)")
    rows: dict[bytes, bytes] = dict(database.execute("SELECT key, row FROM features"))
    missing = [index for index, key in enumerate(keys) if key not in rows]
    size = _PHOTOS_PER_BATCH[device.type]
    batches = [missing[start : start + size] for start in range(0, len(missing), size)]
    network = fold_batch_norm(copy.deepcopy(module), spec.size).to(device=device, memory_format=torch.channels_last)
    mean, std = (torch.tensor(values, device=device).view(3, 1, 1) for values in (spec.mean, spec.std))

    @torch.inference_mode()
    def compute(batch: list[int]) -> list[bytes]:
        pixels = torch.from_numpy(numpy.stack([view_pixels(*views[index], spec) for index in batch]))
        values = pixels.to(device).movedim(-1, -3).to(torch.float32).div_(255).sub_(mean).div_(std)
        with torch.autocast("cuda", enabled=device.type == "cuda"):
            features = network(values.contiguous(memory_format=torch.channels_last)).float().cpu().numpy()
        return [row.tobytes() for row in features]

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    # Every core works for itself, on one thread: nobody waits, and small batches fit the memory that malloc reuses.
    ranks = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    pool = ThreadPoolExecutor(max(1, cores // ranks), initializer=torch.set_num_threads, initargs=(1,))
    started, saved, new = time.monotonic(), 0, {}
    try:
        for batch, values in zip(batches, pool.map(compute, batches), strict=True):
            new |= zip([keys[index] for index in batch], values, strict=True)
            if len(new) - saved >= 256 or batch is batches[-1]:
                with database:  # short, because other processes write as well
                    database.executemany("INSERT OR REPLACE INTO features VALUES (?, ?)", list(new.items())[saved:])
                saved = len(new)
                print(f"features {saved}/{len(missing)} seconds={time.monotonic() - started:.1f}", flush=True)
    finally:
        pool.shutdown(cancel_futures=True)
    rows |= new
    return torch.from_numpy(numpy.stack([numpy.frombuffer(rows[key], numpy.float32) for key in keys]))


@torch.inference_mode()
def summarise(head: nn.Module, data: Data, split: str) -> dict[str, Any]:
    """Return the figures by which a model is judged; `_ece` is the calibration error in 15 bins."""
    scores, labels = head(data[0]), data[1]
    probability, predicted = scores.softmax(dim=1).max(dim=1)
    hits, bins = (predicted == labels).float(), (probability * 15).ceil().long().clamp(1, 15) - 1
    return {
        f"{split}_photos": len(labels),
        f"{split}_loss": nn.functional.cross_entropy(scores, labels).item(),
        f"{split}_accuracy": hits.mean().item(),
        f"{split}_ece": torch.zeros(15).index_add_(0, bins, hits - probability).abs().sum().item() / len(labels),
        f"{split}_predicted_classes": len(predicted.unique()),
        f"{split}_score_spread": scores.std(dim=0, correction=0).mean().item(),
    }


def train_head(data: dict[str, Data], head: nn.Module, options: dict[str, Any], file: Path) -> dict[str, Any]:
    """Train with Adam, a checkpoint in `file` after every epoch; return the metrics of the best, which the head has."""
    optimizer = torch.optim.Adam(head.parameters(), lr=options["learning_rate"], fused=True)
    state: dict[str, Any] = {"epoch": 0, "metrics": {"epoch": 0, "valid_loss": math.inf}}
    with suppress(Exception):  # no checkpoint, or a damaged one: begin anew
        optimizer.load_state_dict((saved := torch.load(file, weights_only=True))["optimizer"])
        head.load_state_dict(saved["head"])
        state = saved
        print(f"resumed after epoch {state['epoch']}", flush=True)
    while state["epoch"] < options["epochs"] and state["epoch"] - state["metrics"]["epoch"] < options["patience"]:
        # The order of an epoch depends on its number alone: a resumed training takes the same steps.
        order = torch.Generator().manual_seed((options["seed"] << 20) + state["epoch"])
        rows = torch.randperm(len(data["train"][1]), generator=order).split(options["batch_size"])
        metrics = {"epoch": state["epoch"] + 1, **train_epoch(head, optimizer, data["train"], rows)}
        metrics |= summarise(head, data["valid"], "valid")
        print(*(f"{name}={value:.6g}" for name, value in metrics.items()), flush=True)
        if not math.isfinite(metrics["train_loss"] + metrics["valid_loss"]):
            raise SystemExit("error: the loss is not a number; try a tenth of --learning_rate")
        if metrics["valid_loss"] < state["metrics"]["valid_loss"]:
            state |= {"metrics": metrics, "best": copy.deepcopy(head.state_dict())}
        state |= {"epoch": metrics["epoch"], "head": head.state_dict(), "optimizer": optimizer.state_dict()}
        write(file, state)
    head.load_state_dict(state["best"])
    return state["metrics"]


def train_epoch(head: nn.Module, optimizer: Any, data: Data, batches: tuple[torch.Tensor, ...]) -> dict[str, float]:
    """Take a step for every batch of rows; return the means per view."""
    (features, labels), losses, hits = data, 0.0, 0
    for rows in batches:
        scores = head(features[rows])
        loss = nn.functional.cross_entropy(scores, labels[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses += loss.item() * len(rows)
        hits += (scores.argmax(dim=1) == labels[rows]).sum().item()
    return {"train_loss": losses / len(labels), "train_accuracy": hits / len(labels)}


def write(path: Path, content: Any) -> None:
    """Write a file (text, or what torch saves) that appears whole or not at all."""
    with (partial := path.with_suffix(path.suffix + ".partial")).open("wb") as file:
        file.write(content.encode()) if isinstance(content, str) else torch.save(content, file)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def save_artifact(folder: Path, module: nn.Module, head: nn.Sequential, about: dict[str, Any]) -> None:
    """Write `model.pth` and `model.json`, as `opslib.vision.artifact` reads them."""
    state = nn.ModuleDict({"backbone": module, "head": head}).state_dict()
    write(folder / "model.pth", {name: value.contiguous() for name, value in state.items()})
    content = (folder / "model.pth").read_bytes()
    weights = {"file": "model.pth", "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    about |= {"format": 1, "head": {"features": head[0].in_features, "hidden": HIDDEN_FEATURES}, "weights": weights}
    about["versions"] = {"python": sys.version.split()[0], "torch": torch.__version__}
    write(folder / "model.json", json.dumps(about, indent=2, ensure_ascii=False) + "\n")


def see(photos: dict[str, list[ListedPhoto]], chosen: argparse.Namespace) -> tuple[Any, tuple[torch.Tensor, ...]]:
    """Return the backbone, and the features of every view of each split; several processes share the work."""
    backbone, seed = build_backbone(chosen.backbone, chosen.weights), chosen.seed
    views = {split: [(photo, "centre") for photo in photos[split]] for split in SPLITS}
    for view in range(1, chosen.views):
        views["train"] += [(one, f"{seed}/{view}/train/{one.label}/{one.name}") for one in photos["train"]]
    everything = [view for split in SPLITS for view in views[split]]
    with closing(sqlite3.connect(chosen.model_dir / "features.sqlite", timeout=600)) as database:
        if (ranks := int(os.environ.get("WORLD_SIZE", "1"))) > 1:
            distributed.init_process_group("gloo", timeout=timedelta(hours=24))
            extract(everything[distributed.get_rank() :: ranks], *backbone, database)
            distributed.barrier()  # now the database has them all
        features = extract(everything, *backbone, database)
    return backbone, features.split([len(views[split]) for split in SPLITS])


def main() -> None:
    """Compute features, each process its share; the first one then trains, tests and writes."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("interrupted: the same command goes on from here"))
    torch.set_num_threads(1)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    for name, default in DEFAULTS.items():
        parser.add_argument(f"--{name}", type=type(default), default=default)
    chosen = parser.parse_args()
    if min(chosen.epochs, chosen.batch_size, chosen.patience, chosen.views) < 1 or not 0 < chosen.learning_rate < 1e9:
        parser.error("epochs, batch_size, patience and views are at least 1, and learning_rate is above 0")
    photos = open_photos(chosen.data.expanduser().resolve(), chosen.seed)
    chosen.model_dir.mkdir(parents=True, exist_ok=True)
    (module, spec), features = see(photos, chosen)
    if os.environ.get("RANK", "0") != "0":
        return
    classes = sorted({photo.label for listed in photos.values() for photo in listed})
    data = {}
    for split, rows in zip(SPLITS, features, strict=True):
        labels = torch.tensor([classes.index(photo.label) for photo in photos[split]], dtype=torch.int64)
        data[split] = rows, labels.repeat(chosen.views if split == "train" else 1)
    options = {name: getattr(chosen, name) for name in DEFAULTS if name not in ("model_dir", "weights")}
    identity = hashlib.sha256(repr([options, classes]).encode() + torch.cat(features[:2]).numpy().tobytes())
    checkpoint = chosen.model_dir / f"checkpoint-{identity.hexdigest()[:16]}.pth"
    torch.manual_seed(chosen.seed)
    head = build_head(features[0].shape[1], len(classes))
    metrics = train_head(data, head, options, checkpoint)
    metrics |= {"chance_loss": math.log(len(classes)), "chance_accuracy": 1 / len(classes)}
    if photos["test"]:
        metrics |= summarise(head, data["test"], "test")
    about = {"backbone": chosen.backbone, "classes": classes, "transform": spec._asdict(), "metrics": metrics}
    save_artifact(chosen.model_dir, module, head, about | {"training": options})
    checkpoint.unlink()
    print(*(f"{name}={value:.6g}" for name, value in metrics.items()), f"model={chosen.model_dir / 'model.pth'}")


if __name__ == "__main__":
    try:
        main()
    except (OSError, UnicodeError, sqlite3.Error) as error:
        sys.exit(f"error: {error}; names must be UTF-8, --model_dir needs space, a bad features.sqlite may go")
