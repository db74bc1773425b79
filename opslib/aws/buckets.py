"""Buckets: private, encrypted, TLS-only, in the region where the work is done."""

from typing import Any

from botocore.exceptions import ClientError

from opslib.aws import policies
from opslib.aws.failures import error_code, explained, gone_is_fine, is_absent
from opslib.aws.ledger import Run
from opslib.aws.roles import here
from opslib.aws.session import client, region
from opslib.errors import AwsError


def ensure_bucket(run: Run, name: str = "") -> str:
    """Return a bucket to work in, making it if need be.

    Without a name it belongs to the run: tagged, written to the ledger, deleted by `sweep`. A bucket named by the
    caller is used as it is when it exists, made when it does not, and never deleted by `sweep`, which removes only
    what the run wrote under its own prefix.

    Raises:
        AwsError: S3 refused, or the named bucket is in another region or not ours.
    """
    bucket = name or run.name("data")
    is_there = bucket_exists(bucket)  # first: a bucket of somebody else's must not get into the ledger
    run.record("prefix" if name else "bucket", f"s3://{bucket}/{run.prefix}/" if name else bucket)
    if not is_there:
        _create(bucket)
    if not name or not is_there:
        _protect(bucket)
    if not name:
        with explained(f"tagging bucket {bucket}"):
            client("s3").put_bucket_tagging(Bucket=bucket, Tagging={"TagSet": run.tags})
    return bucket


def bucket_exists(bucket: str) -> bool:
    """Tell whether there is a bucket of that name, in our region and ours to use.

    Raises:
        AwsError: it is somebody else's or in another region, or S3 refused.
    """
    try:
        head = client("s3").head_bucket(Bucket=bucket)
    except ClientError as error:
        if is_absent(error):
            return False
        if error_code(error) == "403":
            raise AwsError(
                f"bucket {bucket} exists, but is not ours to use (S3 answered 403)", hint="choose another bucket name"
            ) from error
        with explained(f"looking at bucket {bucket}", hint="S3 answers 301 when a bucket is in another region"):
            raise
    found = head.get("BucketRegion") or region()
    if found != region():
        raise AwsError(
            f"bucket {bucket} is in {found}, but we work in {region()}",
            hint="SageMaker reads only buckets of its own region: name another one, or set AWS_DEFAULT_REGION",
        )
    return True


def _create(bucket: str) -> None:
    # us-east-1 is the one region that must not be named
    where: dict[str, Any] = {"CreateBucketConfiguration": {"LocationConstraint": region()}}
    with explained(f"making bucket {bucket}"):
        client("s3").create_bucket(Bucket=bucket, **({} if region() == "us-east-1" else where))


def _protect(bucket: str) -> None:
    s3 = client("s3")
    rule = {"ApplyServerSideEncryptionByDefault": {"SSEAlgorithm": "AES256"}}
    blocked = {
        "BlockPublicAcls": True,
        "IgnorePublicAcls": True,
        "BlockPublicPolicy": True,
        "RestrictPublicBuckets": True,
    }
    with explained(f"protecting bucket {bucket}"):
        s3.put_public_access_block(Bucket=bucket, PublicAccessBlockConfiguration=blocked)
        s3.put_bucket_encryption(Bucket=bucket, ServerSideEncryptionConfiguration={"Rules": [rule]})
        s3.put_bucket_policy(Bucket=bucket, Policy=policies.policy(policies.tls_only_statements(here(), bucket)))


def delete_bucket(bucket: str) -> None:
    """Delete a bucket with all its objects and their versions; succeeds when it is already gone.

    Raises:
        AwsError: S3 refused.
    """
    with explained(f"deleting bucket {bucket}"), gone_is_fine():
        _empty(bucket, "")
        client("s3").delete_bucket(Bucket=bucket)


def delete_objects(bucket: str, prefix: str) -> None:
    """Delete every object, version and delete marker whose key begins with `prefix`; succeeds when nothing is there.

    Raises:
        AwsError: S3 refused, or kept some of them (the message names the first).
    """
    with explained(f"emptying s3://{bucket}/{prefix}"), gone_is_fine():
        _empty(bucket, prefix)


def _empty(bucket: str, prefix: str) -> None:
    s3 = client("s3")
    # Always the first page: its markers for a next one would name objects that are gone by then.
    # A page has at most 1000 entries, which is also the most that one DeleteObjects takes.
    while objects := _first_versions(bucket, prefix):
        answer = s3.delete_objects(Bucket=bucket, Delete={"Objects": objects, "Quiet": True})
        _raise_if_kept(answer.get("Errors", []), bucket)


def _first_versions(bucket: str, prefix: str) -> list[dict[str, str]]:
    page = client("s3").list_object_versions(Bucket=bucket, Prefix=prefix)
    found = page.get("Versions", []) + page.get("DeleteMarkers", [])
    return [{"Key": entry["Key"], "VersionId": entry["VersionId"]} for entry in found]


def _raise_if_kept(errors: list[dict[str, str]], bucket: str) -> None:
    if errors:
        first = errors[0]
        raise AwsError(
            f"S3 kept {len(errors)} objects of bucket {bucket}, among them {first.get('Key')}: "
            f"{first.get('Code')}: {first.get('Message')}"
        )
