"""The training loop that the reference project and its copies run, with its metrics put right.

    python benchmarks/reference_loop.py [--photos DIR] [--epochs 2] [--json FILE]

Every epoch decodes every training photo anew, takes a random crop, sends it through the frozen backbone and takes a
step of the head; then the same for the validation photos. Kept from the reference: torchvision's crop and flip without
normalisation, validation photos squashed to a square, DataLoader without workers, batches of 32, the last epoch's
weights. Put right in its favour: means per photo, and a backbone whose BatchNorm statistics stay where they are.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy
import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from opslib.vision.backbones import OFFLINE_BACKBONE, Backbone, build_backbone
from opslib.vision.data import Photo, Photos, open_photos
from opslib.vision.decoding import decode_photo
from opslib.vision.features import FeatureExtractor, Features, View
from opslib.vision.model import Classifier, build_head
from opslib.vision.samples import draw_sample
from opslib.vision.transforms import TransformSpec

BATCH_SIZE, LEARNING_RATE = 32, 5e-4
FRESH_EPOCHS = 5
"""Epochs whose crops are new when the recipe is played to its end; later epochs see these crops in turn."""


class Folder(Dataset):
    """Photos through a torchvision transform, one after the other."""

    def __init__(self, photos: Sequence[Photo], transform: transforms.Compose) -> None:
        self.photos, self.transform = photos, transform

    def __len__(self) -> int:
        return len(self.photos)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        photo = self.photos[index]
        return self.transform(decode_photo(photo.path.read_bytes())), photo.label


def training_view(size: int) -> transforms.Compose:
    """Return the reference's augmentation."""
    return transforms.Compose([transforms.RandomResizedCrop(size), transforms.RandomHorizontalFlip()])


def squashed_view(size: int) -> transforms.Compose:
    """Return the reference's view of validation and test photos."""
    return transforms.Compose([transforms.Resize((size, size))])


def _loader(photos: Sequence[Photo], view: transforms.Compose, *, shuffle: bool) -> DataLoader:
    transform = transforms.Compose([view, transforms.ToTensor()])
    return DataLoader(Folder(photos, transform), batch_size=BATCH_SIZE, shuffle=shuffle)


def train_epoch(model: Classifier, optimizer: torch.optim.Optimizer, batches: DataLoader) -> None:
    """Take one step a batch, the backbone's work included."""
    model.train()
    for photos, labels in batches:
        loss = functional.cross_entropy(model(photos), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


@torch.inference_mode()
def accuracy(model: Classifier, batches: DataLoader) -> float:
    """Return the share of photos whose highest score is their class."""
    model.eval()
    hits = [(model(photos).argmax(dim=1) == labels).float() for photos, labels in batches]
    return torch.cat(hits).mean().item()


def measure_epochs(photos: Photos, backbone: Backbone, epochs: int) -> dict[str, float]:
    """Run the loop; return the seconds of a mean epoch, of the test pass, and the test accuracy by then."""
    size = backbone.transform.size
    model = Classifier(backbone.module, build_head(backbone.features, len(photos.classes)))
    optimizer = torch.optim.Adam(model.head.parameters(), lr=LEARNING_RATE)
    train = _loader(photos.files["train"], training_view(size), shuffle=True)
    valid, test = (_loader(photos.files[split], squashed_view(size), shuffle=False) for split in ("valid", "test"))
    started = time.perf_counter()
    for _ in range(epochs):
        train_epoch(model, optimizer, train)
        accuracy(model, valid)
    trained = time.perf_counter()
    reached = accuracy(model, test)
    return {
        "epoch_seconds": (trained - started) / epochs,
        "test_seconds": time.perf_counter() - trained,
        f"test_accuracy_after_{epochs}_epochs": reached,
    }


def accuracy_after(photos: Photos, backbone: Backbone, epochs: int) -> float:
    """Return the test accuracy of the whole recipe, its frozen features computed by our feature pass to save hours."""
    view = TransformSpec(backbone.transform.size, 1.0, "bilinear", (0.0,) * 3, (1.0,) * 3)
    extractor = FeatureExtractor(replace(backbone, transform=view), torch.device("cpu"))
    crops = _features(extractor, photos.files["train"], training_view(view.size), min(epochs, FRESH_EPOCHS))
    rounds = list(crops)
    (test,) = _features(extractor, photos.files["test"], squashed_view(view.size), 1)
    head = build_head(backbone.features, len(photos.classes))
    optimizer = torch.optim.Adam(head.parameters(), lr=LEARNING_RATE)
    for epoch in range(epochs):
        _head_epoch(head, optimizer, rounds[epoch % len(rounds)])
    with torch.inference_mode():
        return (head(test.values).argmax(dim=1) == test.labels).float().mean().item()


def _features(
    extractor: FeatureExtractor, photos: Sequence[Photo], view: transforms.Compose, rounds: int
) -> Iterator[Features]:
    for _ in range(rounds):
        yield extractor._extract(photos, View(lambda _: "", lambda picture, _: numpy.array(view(picture))), None)


def _head_epoch(head: nn.Module, optimizer: torch.optim.Optimizer, features: Features) -> None:
    for rows in torch.randperm(len(features)).split(BATCH_SIZE):
        loss = functional.cross_entropy(head(features.values[rows]), features.labels[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def main() -> None:
    """Measure some epochs, play the recipe to its end, print, and write JSON when asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, help="folder of photos (default: a drawn sample)")
    parser.add_argument("--backbone", default=OFFLINE_BACKBONE)
    parser.add_argument("--epochs", type=int, default=2, help="epochs to measure")
    parser.add_argument("--all_epochs", type=int, default=50, help="epochs after which the accuracy is taken")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    options = parser.parse_args()
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as scratch:
        if options.photos is None:
            draw_sample(Path(scratch) / "sample")
        photos = open_photos(options.photos or Path(scratch) / "sample")
        figures = measure_epochs(photos, build_backbone(options.backbone), options.epochs)
        figures["test_accuracy"] = accuracy_after(photos, build_backbone(options.backbone), options.all_epochs)
    print("\n".join(f"{name:<32}{figure:10.3f}" for name, figure in figures.items()))
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
