"""The model that an endpoint serves: found, fetched and unpacked with the permissions of the model's role.

The words of the errors are those of CreateModel and CreateEndpoint on AWS. A model comes as `ModelDataUrl` (a .tar.gz),
or as `ModelDataSource` (a .tar.gz, or the objects under a prefix).
"""

import tarfile
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import botocore.session
from botocore.client import BaseClient
from botocore.config import Config
from botocore.exceptions import ClientError

from opslib.rehearsal.calls import ServiceError


class ModelDataFailed(Exception):  # noqa: N818 - it becomes a FailureReason
    """The model could not be fetched or unpacked; the text is SageMaker's."""


@dataclass(frozen=True)
class ModelData:
    """Where a model lies: one archive, or everything under a prefix."""

    uri: str
    is_archive: bool

    @property
    def bucket(self) -> str:
        """The bucket."""
        return self.uri.removeprefix("s3://").partition("/")[0]

    @property
    def key(self) -> str:
        """The archive's key, or the prefix."""
        return self.uri.removeprefix("s3://").partition("/")[2]


def find_model_data(container: Mapping[str, Any]) -> ModelData | None:
    """Return where a container definition's model lies, or None when it names none.

    Raises:
        ServiceError: ValidationException, for what cannot be rehearsed.
    """
    if "ModelDataUrl" in container:
        return ModelData(container["ModelDataUrl"], is_archive=True)
    source = container.get("ModelDataSource", {}).get("S3DataSource")
    if source is None:
        return None
    return ModelData(source["S3Uri"], is_archive=source["CompressionType"] == "Gzip")


def storage_client(credentials: Mapping[str, str], region: str, endpoint_url: str) -> BaseClient:
    """Return an S3 client that acts as a role: bucket policies and IAM decide as they do for everyone."""
    return botocore.session.Session().create_client(
        "s3",
        region_name=region,
        endpoint_url=endpoint_url,
        aws_access_key_id=credentials["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=credentials["AWS_SECRET_ACCESS_KEY"],
        aws_session_token=credentials["AWS_SESSION_TOKEN"],
        config=Config(s3={"addressing_style": "path"}, retries={"max_attempts": 1}),
    )


def require_model_data(client: BaseClient, data: ModelData, role_arn: str, region: str) -> None:
    """Refuse a model that is not there or that the role may not read, as CreateModel does.

    Raises:
        ServiceError: ValidationException in SageMaker's words, which do not tell the two apart.
    """
    try:
        if data.is_archive:
            client.head_object(Bucket=data.bucket, Key=data.key)
        elif not client.list_objects_v2(Bucket=data.bucket, Prefix=data.key, MaxKeys=1).get("KeyCount"):
            raise ServiceError("ValidationException", f"Could not find model data at {data.uri}.")
    except ClientError as error:
        raise ServiceError(
            "ValidationException",
            f'Could not access model data at {data.uri}. Please ensure that the role "{role_arn}" exists and that its '
            'trust relationship policy allows the action "sts:AssumeRole" for the service principal '
            '"sagemaker.amazonaws.com". Also ensure that the role has "s3:GetObject" permissions and that the object '
            f"is located in {region}. If your Model uses multiple models or uncompressed models, please ensure that "
            'the role has "s3:ListBucket" permission.',
        ) from error


def fetch_model(client: BaseClient, data: ModelData, directory: Path) -> None:
    """Bring the model into `directory`, which stands for /opt/ml/model.

    Raises:
        ModelDataFailed: it cannot be read, or is not a .tar.gz of plain files inside the directory.
    """
    directory.mkdir(parents=True, exist_ok=True)
    try:
        if data.is_archive:
            _fetch_archive(client, data, directory)
        else:
            _fetch_prefix(client, data, directory)
    except ClientError as error:
        raise ModelDataFailed(
            f'Failed to download model data for container "container_1" from URL: "{data.uri}". Please ensure that '
            "there is an object located at the URL and that the role passed to CreateModel has permissions to download "
            "the object."
        ) from error


def _fetch_archive(client: BaseClient, data: ModelData, directory: Path) -> None:
    with tempfile.TemporaryFile(dir=directory.parent) as archive:
        for chunk in client.get_object(Bucket=data.bucket, Key=data.key)["Body"].iter_chunks(1 << 20):
            archive.write(chunk)
        archive.seek(0)
        try:
            with tarfile.open(fileobj=archive, mode="r:gz") as tar:
                tar.extractall(directory, filter="data")  # the filter refuses what leaves the directory
        except (tarfile.TarError, OSError, EOFError) as error:
            raise ModelDataFailed(
                f'Failed to extract model data archive from URL "{data.uri}". Please ensure that the object located at '
                f"the URL is a valid tar.gz archive. ({error})"
            ) from error


def _fetch_prefix(client: BaseClient, data: ModelData, directory: Path) -> None:
    for page in client.get_paginator("list_objects_v2").paginate(Bucket=data.bucket, Prefix=data.key):
        for found in page.get("Contents", []):
            target = (directory / found["Key"].removeprefix(data.key).lstrip("/")).resolve()
            if not target.is_relative_to(directory.resolve()) or found["Key"].endswith("/"):
                continue
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(client.get_object(Bucket=data.bucket, Key=found["Key"])["Body"].read())
