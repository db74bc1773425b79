"""A `model.tar.gz` in S3: what it says of itself, and a copy of it with another file; nothing is unpacked to disk."""

import io
import json
import tarfile
import tempfile
import zlib
from typing import IO, Any

from opslib.aws.failures import explained
from opslib.aws.session import client
from opslib.aws.storage import split_uri
from opslib.errors import ModelRefused

DESCRIPTION_FILE = "model.json"
MAX_DESCRIPTION_BYTES = 4 << 20
MAX_UNPACKED_BYTES = 16 << 30
"""How much of an archive is read for its description: SageMaker's real models are smaller, a tar bomb is larger."""

_HINT = "deploy the model.tar.gz of a job that ran hpo.py, or say overrule_gate=True"


def model_metrics(model_uri: str) -> dict[str, Any]:
    """Return the figures in the `model.json` of an archive: what `opslib.gate` judges.

    Raises:
        ModelRefused: it is no tar.gz, or holds no `model.json` of ours with `metrics`.
        AwsError: S3 refused.
        ConfigurationError: `model_uri` is not an S3 URI.
    """
    bucket, key = split_uri(model_uri)
    with explained(f"reading {model_uri}"):
        body = client("s3").get_object(Bucket=bucket, Key=key)["Body"]
        with body:
            text = _description(body, model_uri)
    try:
        metrics = json.loads(text)["metrics"]
    except (ValueError, RecursionError, KeyError, TypeError) as error:
        raise ModelRefused(f"{DESCRIPTION_FILE} in {model_uri} holds no metrics to judge it by", hint=_HINT) from error
    if not isinstance(metrics, dict):
        raise ModelRefused(f"{DESCRIPTION_FILE} in {model_uri} holds no metrics to judge it by", hint=_HINT)
    return metrics


def with_file(model_uri: str, name: str, content: bytes, *, key: str) -> str:
    """Copy an archive with one file exchanged, e.g. another `code/inference.py` for the same weights; return its URI.

    Args:
        model_uri: The archive; it stays as it is.
        name: The file's place in the archive.
        content: What it holds from now on.
        key: Where the copy goes in the same bucket.

    Raises:
        ModelRefused: it is no tar.gz, or has no such file.
        AwsError: S3 refused.
    """
    bucket, source = split_uri(model_uri)
    with explained(f"copying {model_uri}"), tempfile.TemporaryFile() as before, tempfile.TemporaryFile() as after:
        client("s3").download_fileobj(bucket, source, before)
        before.seek(0)
        _exchange(before, after, name, content, model_uri)
        after.seek(0)
        client("s3").upload_fileobj(after, bucket, key)
    return f"s3://{bucket}/{key}"


def _exchange(before: IO[bytes], after: IO[bytes], name: str, content: bytes, model_uri: str) -> None:
    found = False
    try:
        with tarfile.open(fileobj=before, mode="r:gz") as old, tarfile.open(fileobj=after, mode="w:gz") as new:
            for member in old:
                if member.isfile() and member.name.removeprefix("./") == name:
                    member.size, found = len(content), True
                    new.addfile(member, io.BytesIO(content))
                else:
                    new.addfile(member, old.extractfile(member) if member.isfile() else None)
    except (tarfile.TarError, EOFError, zlib.error, OSError) as error:
        raise ModelRefused(f"{model_uri} is not a whole tar.gz: {error}", hint=_HINT) from error
    if not found:
        raise ModelRefused(f"{model_uri} holds no {name}", hint="name a file as `tar -tzf` lists it")


def _description(body: IO[bytes], model_uri: str) -> bytes:
    """Return the bytes of model.json; the archive is a stream, so what lies before it is read and forgotten."""
    try:
        with tarfile.open(fileobj=body, mode="r|gz") as tar:
            for member in tar:
                if member.offset_data > MAX_UNPACKED_BYTES:
                    break
                if member.isfile() and member.name.removeprefix("./") == DESCRIPTION_FILE:
                    if member.size > MAX_DESCRIPTION_BYTES:
                        raise ModelRefused(f"{DESCRIPTION_FILE} in {model_uri} has {member.size} bytes", hint=_HINT)
                    return tar.extractfile(member).read()
    except (tarfile.TarError, EOFError, zlib.error, OSError) as error:
        raise ModelRefused(f"{model_uri} is not a whole tar.gz: {error}", hint=_HINT) from error
    raise ModelRefused(f"{model_uri} holds no {DESCRIPTION_FILE} to judge it by", hint=_HINT)
