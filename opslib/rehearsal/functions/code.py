"""The code of a Lambda function: the zip as it was sent or as it lies in S3, its limits and its unpacked files."""

import io
import shutil
import stat
import zipfile
import zlib
from pathlib import Path
from typing import Any

from moto.s3.exceptions import MissingBucket, MissingKey
from moto.s3.models import s3_backends

from opslib.rehearsal.calls import ACCOUNT_ID, Call, ServiceError
from opslib.rehearsal.gateway.actions import Need
from opslib.rehearsal.identity import require_permission

MAX_UNZIPPED_BYTES = 262_144_000
"""Largest deployment package, unzipped, layers included."""


def read_code(call: Call, code: dict[str, Any]) -> bytes:
    """Return the zip that a call names by ZipFile, or by S3Bucket and S3Key, checked as Lambda checks it.

    Raises:
        ServiceError: InvalidParameterValueException for what is no usable zip, or AccessDeniedException when the caller
            may not read the object.
    """
    if "ImageUri" in code:
        raise ServiceError("InvalidParameterValueException", "Container images cannot be rehearsed; send a zip.")
    content = code["ZipFile"] if "ZipFile" in code else _read_s3(call, code)
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            size = sum(entry.file_size for entry in archive.infolist())
            damaged = archive.testzip() if size < MAX_UNZIPPED_BYTES else None
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as error:  # the last: encrypted, or packed oddly
        raise _not_a_zip() from error
    if damaged:
        raise _not_a_zip()
    if size >= MAX_UNZIPPED_BYTES:
        raise ServiceError(
            "InvalidParameterValueException", f"Unzipped size must be smaller than {MAX_UNZIPPED_BYTES} bytes"
        )
    return content


def _not_a_zip() -> ServiceError:
    reason = "Could not unzip uploaded file. Please check your file, then try to upload again."
    return ServiceError("InvalidParameterValueException", reason)


def _read_s3(call: Call, code: dict[str, Any]) -> bytes:
    bucket, key = code.get("S3Bucket"), code.get("S3Key")
    if not bucket or not key:
        raise ServiceError("InvalidParameterValueException", "Please provide a source for function code.")
    try:
        require_permission(call.principal, Need("s3:GetObject", (f"arn:aws:s3:::{bucket}/{key}",)), {})
    except ServiceError as error:
        reason = (
            "Your access has been denied by S3, please make sure your request credentials have permission to GetObject "
            f"for {bucket}/{key}. S3 Error Code: AccessDenied. S3 Error Message: Access Denied"
        )
        raise ServiceError("AccessDeniedException", reason, status=403) from error
    try:
        found = s3_backends[ACCOUNT_ID]["aws"].get_object(bucket, key, version_id=code.get("S3ObjectVersion"))
    except (MissingBucket, MissingKey) as error:
        raise _missing("NoSuchBucket" if isinstance(error, MissingBucket) else "NoSuchKey") from error
    if found is None:
        raise _missing("NoSuchKey")
    return found.value


def _missing(code: str) -> ServiceError:
    what = "The specified bucket does not exist" if code == "NoSuchBucket" else "The specified key does not exist."
    reason = f"Error occurred while GetObject. S3 Error Code: {code}. S3 Error Message: {what}"
    return ServiceError("InvalidParameterValueException", reason)


def unpack_code(content: bytes, directory: Path) -> None:
    """Unpack a zip where nothing can be written, and unreadable what the zip marks as not readable by everyone.

    Lambda runs the handler as another user than the owner of /var/task, and /var/task is read-only. (Neither holds here
    for the superuser, who reads and writes everywhere.)
    """
    directory.mkdir(parents=True)
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        archive.extractall(directory)
        modes = {entry.filename: entry.external_attr >> 16 for entry in archive.infolist()}
    for path in directory.rglob("*"):
        mode = modes.get(str(path.relative_to(directory)), 0)
        if path.is_file():
            readable = not mode or mode & stat.S_IROTH
            path.chmod((0o555 if mode & stat.S_IXOTH else 0o444) if readable else 0)
    for folder in (directory, *(path for path in directory.rglob("*") if path.is_dir())):
        folder.chmod(0o555)


def remove_code(directory: Path) -> None:
    """Remove an unpacked zip, read-only directories included."""
    if not directory.exists():
        return
    directory.chmod(0o755)
    for folder in (path for path in directory.rglob("*") if path.is_dir()):
        folder.chmod(0o755)
    shutil.rmtree(directory, ignore_errors=True)
