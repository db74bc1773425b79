"""Fixtures of the AWS side: a run of its own for each test, swept at the end, and a model that needs no torch."""

import io
import json
import tarfile
from collections.abc import Iterator

import pytest

from opslib.aws import storage
from opslib.aws.ledger import Run, start_run
from opslib.aws.session import client
from opslib.aws.sweeping import sweep

INFERENCE = """
import json
import os
from sagemaker_inference.errors import BaseInferenceToolkitError

def model_fn(model_dir):
    if os.path.exists(os.path.join(model_dir, "broken")):
        raise RuntimeError("this model is broken")
    return ["Affenpinscher", "Beagle"]

def input_fn(body, content_type):
    if body == b"nonsense":
        raise BaseInferenceToolkitError(415, "this is not a photo", "Unsupported Media Type")
    return body

def predict_fn(photo, model):
    return model, photo

def output_fn(prediction, accept):
    labels, photo = prediction
    scores = [[float(len(photo)), 0.5]]
    top = [{"label": labels[0], "probability": 0.75}, {"label": labels[1], "probability": 0.25}]
    if accept == "application/json;verbose":
        return json.dumps({"predicted_label": labels[0], "top_k": top, "scores": scores}), accept
    return json.dumps(scores), accept
"""
"""The four functions without a model: the score is the size of the body."""


GOOD_METRICS = {
    "valid_photos": 40, "valid_loss": 0.3, "valid_accuracy": 0.9, "valid_ece": 0.05, "valid_predicted_classes": 2,
    "valid_score_spread": 3.0, "chance_loss": 0.693, "chance_accuracy": 0.5,
}  # fmt: skip
"""Figures that pass the gate."""


@pytest.fixture
def run(rehearsal, tmp_path) -> Iterator[Run]:
    """A run in the rehearsal; whatever the test left is swept, and it must be possible to sweep it."""
    run = start_run("test", home=tmp_path / "runs")
    yield run
    assert sweep(run).leftovers == ()


def put_model(bucket: str, key: str, **files: str) -> str:
    """Put a model.tar.gz with INFERENCE, GOOD_METRICS and other files into a bucket; return its URI."""
    description = {"model.json": json.dumps({"metrics": GOOD_METRICS})}
    return put_archive(bucket, key, {"code/inference.py": INFERENCE} | description | files)


def put_archive(bucket: str, key: str, files: dict[str, str]) -> str:
    """Put a tar archive of files into a bucket; return its URI."""
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w:gz") as tar:
        for name, text in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(text.encode())
            tar.addfile(entry, io.BytesIO(text.encode()))
    client("s3").put_object(Bucket=bucket, Key=key, Body=archive.getvalue())
    return f"s3://{bucket}/{key}"


@pytest.fixture
def model_uri(run) -> str:
    """The URI of a model in the run's bucket."""
    return put_model(storage.ensure_bucket(run), "model.tar.gz")
