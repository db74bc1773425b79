"""Files to and from S3: many small ones at once, and nothing twice.

What is already there is recognised by its size and MD5, which is the ETag of an object that was put in one piece and is
encrypted by S3's own keys. (With a KMS key the ETag is something else, and files are sent again.)
"""

import hashlib
import mimetypes
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from botocore.exceptions import BotoCoreError, ClientError

from opslib.aws.buckets import delete_bucket, delete_objects, ensure_bucket
from opslib.aws.failures import error_code, error_message, explained, gone_is_fine, hint_for
from opslib.aws.session import client
from opslib.errors import AwsError, ConfigurationError

__all__ = [
    "delete_bucket",
    "delete_prefix",
    "download_file",
    "download_prefix",
    "ensure_bucket",
    "list_objects",
    "object_exists",
    "split_uri",
    "upload_files",
]

THREADS = 16
CHUNK_BYTES = 1 << 20
MAX_PUT_BYTES = 5 << 30
"""The largest object that one PutObject request takes."""

Progress = Callable[[int, int], None]
"""Called with the number of files done and the number of all files."""

Item = TypeVar("Item")


def split_uri(uri: str) -> tuple[str, str]:
    """Return bucket and key (or prefix) of an `s3://` URI.

    Raises:
        ConfigurationError: it is not one.
    """
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    if not uri.startswith("s3://") or not bucket:
        raise ConfigurationError(f"{uri!r} is not an S3 URI", hint="it looks like s3://bucket/prefix/")
    return bucket, key


def _folder(prefix: str) -> str:
    """End a prefix with a slash: S3 and SageMaker match prefixes as text, so `photos` would take `photos-old/` too."""
    stripped = prefix.strip("/")
    return f"{stripped}/" if stripped else ""


def list_objects(bucket: str, prefix: str) -> dict[str, tuple[int, str]]:
    """Return the objects whose keys begin with `prefix`: key to size in bytes and ETag.

    Raises:
        AwsError: S3 refused.
    """
    with explained(f"listing s3://{bucket}/{prefix}"):
        pages = client("s3").get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
        return {
            entry["Key"]: (entry["Size"], entry["ETag"].strip('"'))
            for page in pages
            for entry in page.get("Contents", [])
        }


def upload_files(
    items: Iterable[tuple[str, Path]], bucket: str, prefix: str, *, progress: Progress | None = None
) -> str:
    """Upload files to `s3://<bucket>/<prefix>/<key>` and return the URI of the prefix, with a slash at its end.

    Args:
        items: Pairs of key (relative to the prefix, with forward slashes) and file.
        bucket: The bucket.
        prefix: Where under it; a training job that reads the prefix gets everything below it.
        progress: Told how many files are there, including those that already were.

    Raises:
        AwsError: S3 refused a file, which the message names, or a file could not be read.
        ConfigurationError: the prefix holds objects that are not among the items, so that a job would train on them.
    """
    folder = _folder(prefix)
    wanted = {folder + key: Path(path) for key, path in items}
    present = list_objects(bucket, folder)
    strangers = sorted(key for key in present.keys() - wanted.keys() if not key.endswith("/"))
    if strangers:
        raise ConfigurationError(
            f"s3://{bucket}/{folder} holds {len(strangers)} objects that are not among these files: {strangers[0]}",
            hint=f"choose another prefix, or clear this one: storage.delete_prefix('s3://{bucket}/{folder}')",
        )

    def upload(pair: tuple[str, Path]) -> None:
        _upload_file(bucket, *pair, present.get(pair[0]))

    _for_each(upload, list(wanted.items()), progress)
    return f"s3://{bucket}/{folder}"


def _upload_file(bucket: str, key: str, path: Path, present: tuple[int, str] | None) -> None:
    try:
        size = path.stat().st_size
        if present and present[0] == size and present[1] == _md5(path):
            return
        if size > MAX_PUT_BYTES:
            raise AwsError(f"{path} has {size} bytes; one file may have at most {MAX_PUT_BYTES}")
        content_type = mimetypes.guess_type(path.name)[0] or "application/octet-stream"
        with path.open("rb") as body:
            client("s3").put_object(Bucket=bucket, Key=key, Body=body, ContentType=content_type)
    except OSError as error:
        raise AwsError(f"{path} could not be read: {error.strerror}") from error
    except (ClientError, BotoCoreError) as error:
        raise AwsError(f"{path} could not be uploaded: {_words(error)}", hint=hint_for(error)) from error


def _words(error: ClientError | BotoCoreError) -> str:
    return f"{error_code(error)}: {error_message(error)}" if isinstance(error, ClientError) else str(error)


def _md5(path: Path) -> str:
    digest = hashlib.md5(usedforsecurity=False)  # S3's own fingerprint of an object
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def _for_each(work: Callable[[Item], None], items: list[Item], progress: Progress | None) -> None:
    """Do the work in threads; the first error stops what has not begun."""
    done, lock = 0, threading.Lock()
    client("s3")  # made once, not by sixteen threads at the same moment

    def step(item: Item) -> None:
        nonlocal done
        work(item)
        with lock:
            done += 1
            if progress:
                progress(done, len(items))

    with ThreadPoolExecutor(max_workers=THREADS) as pool:
        futures = [pool.submit(step, item) for item in items]
        try:
            for future in futures:
                future.result()
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise


def download_prefix(uri: str, directory: Path) -> None:
    """Download everything under an S3 prefix to `directory`, keeping the folders; skip files that are already there.

    Raises:
        AwsError: S3 refused, there is nothing, or a key would lead outside of `directory`.
        ConfigurationError: `uri` is not an S3 URI.
    """
    bucket, prefix = split_uri(uri)
    folder = _folder(prefix)
    found = {key: about for key, about in list_objects(bucket, folder).items() if not key.endswith("/")}
    if not found:
        raise AwsError(f"there is nothing under s3://{bucket}/{folder}", hint="check bucket, prefix and region")

    def download(key: str) -> None:
        path = _inside(Path(directory), key.removeprefix(folder))
        if not (path.is_file() and path.stat().st_size == found[key][0] and _md5(path) == found[key][1]):
            download_file(f"s3://{bucket}/{key}", path)

    _for_each(download, sorted(found), None)


def _inside(directory: Path, relative: str) -> Path:
    parts = PurePosixPath(relative).parts
    if ".." in parts or relative.startswith("/"):
        raise AwsError(f"the key {relative!r} would be written outside of {directory}")
    return directory.joinpath(*parts)


def download_file(uri: str, path: Path) -> Path:
    """Download one object; the file appears whole or not at all.

    Raises:
        AwsError: S3 refused, e.g. because there is no such object.
        ConfigurationError: `uri` is not an S3 URI.
    """
    bucket, key = split_uri(uri)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    try:
        with explained(f"downloading {uri}"), part.open("wb") as file:
            for chunk in _chunks(client("s3").get_object(Bucket=bucket, Key=key)["Body"]):
                file.write(chunk)
        part.replace(path)
    finally:
        with suppress(FileNotFoundError):
            part.unlink()
    return path


def _chunks(body: Any) -> Iterator[bytes]:
    with body:
        yield from body.iter_chunks(CHUNK_BYTES)


def object_exists(uri: str) -> bool:
    """Tell whether there is an object of that URI.

    Raises:
        AwsError: S3 refused.
        ConfigurationError: `uri` is not an S3 URI.
    """
    bucket, key = split_uri(uri)
    with explained(f"looking at {uri}"), gone_is_fine():
        client("s3").head_object(Bucket=bucket, Key=key)
        return True
    return False


def delete_prefix(uri: str) -> None:
    """Delete everything under an S3 prefix; succeeds when nothing is there.

    Raises:
        AwsError: S3 refused.
        ConfigurationError: `uri` is not an S3 URI, or names a whole bucket.
    """
    bucket, prefix = split_uri(uri)
    if not _folder(prefix):
        raise ConfigurationError(f"{uri} names a whole bucket", hint="delete_bucket deletes a bucket with its objects")
    delete_objects(bucket, _folder(prefix))
