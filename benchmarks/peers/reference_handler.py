"""The reference project's way to answer, in plain torch, for whichever server calls it.

Its faults that change the answer are mended (the photo is cropped, not squashed, and normalised), so that its scores
can be compared; what makes it slow is left: eager torch, a photo at a time.
"""

import io
import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageOps


def model_fn(model_dir: str) -> Any:
    """Load the classifier and its view; one thread an operation when several workers share the cores."""
    sys.path.insert(0, str(Path(model_dir) / "code"))
    from opslib.vision.artifact import load_artifact
    from opslib.vision.transforms import evaluation_transform

    torch.set_num_threads(int(os.environ.get("BENCH_THREADS", "1")))
    model = load_artifact(Path(model_dir))
    return model.classifier.to(memory_format=torch.contiguous_format), evaluation_transform(model.transform)


def answer(model: Any, body: bytes) -> str:
    """Return the raw scores of a photo as JSON."""
    classifier, transform = model
    photo = ImageOps.exif_transpose(Image.open(io.BytesIO(body))).convert("RGB")
    with torch.no_grad():
        return json.dumps(classifier(transform(photo).unsqueeze(0)).tolist())
