"""Which objects a transform job reads, and where the output of each goes.

Source: docs.aws.amazon.com/sagemaker/latest/APIReference/API_TransformS3DataSource.html
"""

import gzip
import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from opslib.rehearsal.role_storage import RoleStorage, StorageRefused, split_uri


class InputFailed(Exception):  # noqa: N818 - it becomes a FailureReason
    """A job's input cannot be found or read; the text is SageMaker's."""


@dataclass(frozen=True)
class InputFile:
    """One object of the input, and the key of its output."""

    bucket: str
    key: str
    output_key: str


def find_files(params: Mapping[str, Any], storage: RoleStorage, region: str) -> list[InputFile]:
    """Return the objects that a CreateTransformJob request names.

    Raises:
        InputFailed: there are none, or the model's role may not list them.
    """
    source = params["TransformInput"]["DataSource"]["S3DataSource"]
    try:
        bucket, names = (_listed if source["S3DataType"] == "S3Prefix" else _in_manifest)(source["S3Uri"], storage)
    except StorageRefused:
        names = {}
    if not names:
        raise InputFailed(
            f'No S3 objects found under S3 URL "{source["S3Uri"]}" given in input data source. Please ensure that the '
            f"bucket exists in the selected region ({region}), that objects exist under that S3 prefix, and that the "
            'role has "s3:ListBucket" permissions on the bucket.'
        )
    output = split_uri(params["TransformOutput"]["S3OutputPath"])[1].rstrip("/")
    folder = f"{output}/" if output else ""
    return [InputFile(bucket, key, f"{folder}{name}.out") for key, name in names.items()]


def read_file(file: InputFile, storage: RoleStorage, *, is_gzip: bool) -> bytes:
    """Return an object's content, unpacked if it is compressed.

    Raises:
        InputFailed: it cannot be read or unpacked.
    """
    try:
        content = storage.read(file.bucket, file.key)
        return gzip.decompress(content) if is_gzip else content
    except StorageRefused as error:
        raise InputFailed(f"Data download failed: {error}") from error
    except (OSError, EOFError, zlib.error) as error:
        raise InputFailed(f"Failed to decompress s3://{file.bucket}/{file.key}: {error}") from error


def _listed(uri: str, storage: RoleStorage) -> tuple[str, dict[str, str]]:
    bucket, prefix = split_uri(uri)
    keys = [key for key in storage.list_keys(bucket, prefix) if not key.endswith("/")]
    folder = prefix if prefix.endswith("/") or not prefix else f"{prefix}/"
    if not all(key.startswith(folder) for key in keys):
        folder = prefix[: prefix.rfind("/") + 1]  # the prefix is a file, or the beginning of names in a folder
    return bucket, {key: key.removeprefix(folder) for key in keys}


def _in_manifest(uri: str, storage: RoleStorage) -> tuple[str, dict[str, str]]:
    try:
        first, *names = json.loads(storage.read(*split_uri(uri)))
        bucket, prefix = split_uri(first["prefix"])
        return bucket, {prefix + name: name for name in names}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InputFailed(f"{uri} is not a manifest: a list of a prefix and names is expected.") from error
