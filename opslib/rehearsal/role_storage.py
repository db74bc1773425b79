"""S3 as a role sees it, without the way over HTTP: a job's 2,000 photos arrive in a fraction of a second.

Every access is decided by IAM and the bucket's policy, exactly as at the gate; what is read and written are moto's
objects.
"""

from moto.s3.models import FakeBucket, s3_backends

from opslib.rehearsal.calls import ACCOUNT_ID, Principal, ServiceError
from opslib.rehearsal.gateway.actions import s3_needs
from opslib.rehearsal.identity import require_permission

_CONTEXT = {"aws:securetransport": ["true"]}


class StorageRefused(Exception):  # noqa: N818 - its text becomes part of a FailureReason
    """S3 refused; the text is `s3://... (AccessDenied: ...)`."""


def split_uri(uri: str) -> tuple[str, str]:
    """Return the bucket and the key or prefix of an s3:// address."""
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    return bucket, key


class RoleStorage:
    """S3 with the permissions of one principal; every method raises `StorageRefused` where S3 would refuse."""

    def __init__(self, principal: Principal) -> None:
        self._principal = principal

    def list_keys(self, bucket: str, prefix: str) -> list[str]:
        """Return the keys under a prefix, in order."""
        found = self._bucket("ListObjectsV2", bucket, "", prefix)
        return sorted(key for key in found.keys if key.startswith(prefix))

    def read(self, bucket: str, key: str) -> bytes:
        """Return an object's content."""
        found = self._bucket("GetObject", bucket, key).keys.get(key)
        if found is None:
            raise StorageRefused(f"s3://{bucket}/{key} (NoSuchKey: The specified key does not exist.)")
        return found.value

    def write(self, bucket: str, key: str, content: bytes) -> None:
        """Write an object."""
        self._bucket("PutObject", bucket, key)
        s3_backends[ACCOUNT_ID]["aws"].put_object(bucket, key, content)

    def _bucket(self, operation: str, bucket: str, key: str, prefix: str = "") -> FakeBucket:
        found = s3_backends[ACCOUNT_ID]["aws"].buckets.get(bucket)
        where = f"s3://{bucket}/{key or prefix}"
        if found is None:
            raise StorageRefused(f"{where} (NoSuchBucket: The specified bucket does not exist)")
        policy = found.policy.decode() if found.policy else ""
        try:
            for need in s3_needs(operation, bucket, key, {"prefix": [prefix]}):
                require_permission(self._principal, need, _CONTEXT, policy)
        except ServiceError as error:
            raise StorageRefused(f"{where} (AccessDenied: Access Denied)") from error
        return found
