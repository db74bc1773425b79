"""Fixtures of the AWS side: a run of its own for each test, swept at the end, and a model that needs no torch."""

import io
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


@pytest.fixture
def run(rehearsal, tmp_path) -> Iterator[Run]:
    """A run in the rehearsal; whatever the test left is swept, and it must be possible to sweep it."""
    run = start_run("test", home=tmp_path / "runs")
    yield run
    assert sweep(run).leftovers == ()


def put_model(bucket: str, key: str, **files: str) -> str:
    """Put a model.tar.gz with INFERENCE and other files into a bucket; return its URI."""
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w:gz") as tar:
        for name, text in {"code/inference.py": INFERENCE, **files}.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(text.encode())
            tar.addfile(entry, io.BytesIO(text.encode()))
    client("s3").put_object(Bucket=bucket, Key=key, Body=archive.getvalue())
    return f"s3://{bucket}/{key}"


@pytest.fixture
def model_uri(run) -> str:
    """The URI of a model in the run's bucket."""
    return put_model(storage.ensure_bucket(run), "model.tar.gz")
