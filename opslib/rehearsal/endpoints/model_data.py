"""The model that an endpoint serves: found, fetched and unpacked with the permissions of the model's role.

The words of the errors are those of CreateModel and CreateEndpoint on AWS. A model comes as `ModelDataUrl` (a .tar.gz),
or as `ModelDataSource` (a .tar.gz, or the objects under a prefix).
"""

import io
import tarfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from opslib.rehearsal.calls import ServiceError
from opslib.rehearsal.role_storage import RoleStorage, StorageRefused, split_uri


class ModelDataFailed(Exception):  # noqa: N818 - it becomes a FailureReason
    """The model could not be fetched or unpacked; the text is SageMaker's."""


@dataclass(frozen=True)
class ModelData:
    """Where a model lies: one archive, or everything under a prefix."""

    uri: str
    is_archive: bool


def find_model_data(container: Mapping[str, Any]) -> ModelData | None:
    """Return where a container definition's model lies, or None when it names none."""
    if "ModelDataUrl" in container:
        return ModelData(container["ModelDataUrl"], is_archive=True)
    source = container.get("ModelDataSource", {}).get("S3DataSource")
    if source is None:
        return None
    return ModelData(source["S3Uri"], is_archive=source["CompressionType"] == "Gzip")


def require_model_data(storage: RoleStorage, data: ModelData, role_arn: str, region: str) -> None:
    """Refuse a model that is not there or that the role may not read, as CreateModel does.

    Raises:
        ServiceError: ValidationException in SageMaker's words, which do not tell the two apart.
    """
    bucket, key = split_uri(data.uri)
    try:
        if data.is_archive:
            storage.read(bucket, key)
        elif not storage.list_keys(bucket, key):
            raise ServiceError("ValidationException", f"Could not find model data at {data.uri}.")
    except StorageRefused as error:
        raise ServiceError(
            "ValidationException",
            f'Could not access model data at {data.uri}. Please ensure that the role "{role_arn}" exists and that its '
            'trust relationship policy allows the action "sts:AssumeRole" for the service principal '
            '"sagemaker.amazonaws.com". Also ensure that the role has "s3:GetObject" permissions and that the object '
            f"is located in {region}. If your Model uses multiple models or uncompressed models, please ensure that "
            'the role has "s3:ListBucket" permission.',
        ) from error


def fetch_model(storage: RoleStorage, data: ModelData, directory: Path) -> None:
    """Bring the model into `directory`, which stands for /opt/ml/model.

    Raises:
        ModelDataFailed: it cannot be read, or is not a .tar.gz of plain files inside the directory.
    """
    try:
        if data.is_archive:
            _unpack(storage.read(*split_uri(data.uri)), data, directory)
        else:
            _copy_prefix(storage, data, directory)
    except (StorageRefused, OSError) as error:  # the latter: a key that is a file and a folder at once
        raise ModelDataFailed(
            f'Failed to download model data for container "container_1" from URL: "{data.uri}". Please ensure that '
            "there is an object located at the URL and that the role passed to CreateModel has permissions to download "
            "the object."
        ) from error


def _unpack(content: bytes, data: ModelData, directory: Path) -> None:
    try:
        with tarfile.open(fileobj=io.BytesIO(content), mode="r:gz") as archive:
            archive.extractall(directory, filter="data")  # the filter refuses what leaves the directory
            archive.fileobj.read()  # to the end, where a compressed file says whether it was whole
    except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
        raise ModelDataFailed(
            f'Failed to extract model data archive from URL "{data.uri}". Please ensure that the object located at '
            f"the URL is a valid tar.gz archive. ({error})"
        ) from error


def _copy_prefix(storage: RoleStorage, data: ModelData, directory: Path) -> None:
    bucket, prefix = split_uri(data.uri)
    for key in storage.list_keys(bucket, prefix):
        target = (directory / key.removeprefix(prefix).lstrip("/")).resolve()
        if target.is_relative_to(directory.resolve()) and not key.endswith("/"):
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(storage.read(bucket, key))
