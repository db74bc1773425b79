"""The input channels of a training job: which objects, which file names, which host gets which.

Source: https://docs.aws.amazon.com/sagemaker/latest/APIReference/API_S3DataSource.html
"""

import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from opslib.rehearsal.calls import ServiceError
from opslib.rehearsal.role_storage import RoleStorage, StorageRefused, split_uri

_WRITERS = 4


@dataclass(frozen=True)
class Channel:
    """One input channel as CreateTrainingJob describes it."""

    name: str
    uri: str
    data_type: str
    distribution: str
    description: dict[str, Any]

    @property
    def config(self) -> dict[str, str]:
        """The channel's entry in inputdataconfig.json."""
        return {
            "TrainingInputMode": "File",
            "S3DistributionType": self.distribution,
            "RecordWrapperType": self.description.get("RecordWrapperType", "None"),
            **({"ContentType": self.description["ContentType"]} if "ContentType" in self.description else {}),
        }


def read_channels(params: Mapping[str, Any]) -> list[Channel]:
    """Return the channels of a CreateTrainingJob request.

    Raises:
        ServiceError: a data source, or an input mode, that cannot be rehearsed; a channel name given twice.
    """
    default_mode = params.get("AlgorithmSpecification", {}).get("TrainingInputMode", "File")
    channels = []
    for description in params.get("InputDataConfig", []):
        source = description["DataSource"].get("S3DataSource")
        if source is None or description.get("InputMode", default_mode) == "Pipe":
            raise ServiceError("NotImplemented", "only S3 data in File mode can be rehearsed", status=501)
        distribution = source.get("S3DataDistributionType", "FullyReplicated")
        name, kind = description["ChannelName"], source["S3DataType"]
        channels.append(Channel(name, source["S3Uri"], kind, distribution, description))
    names = [channel.name for channel in channels]
    if len(set(names)) < len(names):
        raise ServiceError("ValidationException", f"Duplicate channel names in the input data configuration: {names}")
    return channels


def require_objects(channel: Channel, storage: RoleStorage, role_arn: str, region: str) -> None:
    """Refuse a channel with nothing under its prefix that the role can see.

    Raises:
        ServiceError: ValidationException; AWS answers it to CreateTrainingJob itself, before any job exists.
    """
    bucket, prefix = split_uri(channel.uri)
    try:
        if storage.list_keys(bucket, prefix):
            return
    except StorageRefused:
        pass  # AWS answers the same for a missing bucket, an empty prefix and a role without s3:ListBucket
    raise ServiceError(
        "ValidationException",
        f'No S3 objects found under S3 URL "{channel.uri}" given in input data source. Please ensure that the bucket '
        f"exists in the selected region ({region}), that objects exist under that S3 prefix, and that the role "
        f'"{role_arn}" has "s3:ListBucket" permissions on bucket "{bucket}".',
    )


def fetch_channel(channel: Channel, storage: RoleStorage, directory: Path, host: tuple[int, int]) -> None:
    """Write a channel's files for one host, `host` being its position and the number of hosts.

    Raises:
        StorageRefused: an object cannot be read, or a manifest is not one.
    """
    bucket, files = _files_of(channel, storage)
    position, count = host
    if channel.distribution == "ShardedByS3Key":
        files = files[position::count]
    for key, name in files:
        if Path(name).is_absolute() or ".." in Path(name).parts or "\0" in name:
            raise StorageRefused(f"s3://{bucket}/{key} (InvalidKey: the key leaves the channel's directory)")
    directory.mkdir(parents=True, exist_ok=True)
    try:
        for parent in {(directory / name).parent for _, name in files}:
            parent.mkdir(parents=True, exist_ok=True)
        with ThreadPoolExecutor(_WRITERS) as writers:
            list(writers.map(lambda file: (directory / file[1]).write_bytes(storage.read(bucket, file[0])), files))
    except OSError as error:  # a key that is a file and a folder at once, or a name that is too long for one
        name = Path(error.filename or "").relative_to(directory) if error.filename else ""
        raise StorageRefused(f"s3://{bucket} ({error.strerror}: {name})") from error


def _files_of(channel: Channel, storage: RoleStorage) -> tuple[str, Sequence[tuple[str, str]]]:
    """Return the bucket, and for each object its key and its file name in the channel's directory."""
    bucket, prefix = split_uri(channel.uri)
    if channel.data_type == "ManifestFile":
        return _files_of_manifest(channel, storage)
    if channel.data_type != "S3Prefix":
        raise StorageRefused(f"{channel.uri} ({channel.data_type} cannot be rehearsed)")
    keys = [key for key in storage.list_keys(bucket, prefix) if not key.endswith("/")]
    return bucket, [(key, _file_name(key, prefix)) for key in keys]


def _file_name(key: str, prefix: str) -> str:
    """Return a key's path below its prefix; the prefix is a folder, a file, or the beginning of names in a folder."""
    folder = prefix if prefix.endswith("/") or not prefix else f"{prefix}/"
    if not key.startswith(folder):
        folder = prefix[: prefix.rfind("/") + 1]
    return key.removeprefix(folder)


def _files_of_manifest(channel: Channel, storage: RoleStorage) -> tuple[str, Sequence[tuple[str, str]]]:
    try:
        first, *names = json.loads(storage.read(*split_uri(channel.uri)))
        bucket, prefix = split_uri(first["prefix"])
        return bucket, [(prefix + name, name) for name in names]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise StorageRefused(f"{channel.uri} (not a manifest: a list of a prefix and names is expected)") from error
