"""Buckets are private, uploads skip what is there, downloads stay inside their folder."""

import json
from pathlib import Path

import pytest
from botocore.exceptions import ClientError

from opslib.aws import buckets, storage
from opslib.aws.ledger import start_run
from opslib.aws.session import client
from opslib.errors import AwsError, ConfigurationError


@pytest.fixture
def photos(tmp_path) -> list[tuple[str, Path]]:
    """Return five files, one of them with a name beyond ASCII, one empty."""
    files = []
    for number, name in enumerate(["a.jpg", "b.png", "Fön & co.jpg", "sub/c.webp", "empty"]):
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes([number]) * 1000 if name != "empty" else b"")
        files.append((f"train/{name}", path))
    return files


def policy_of(bucket: str) -> dict:
    """Return the policy in force on a bucket."""
    return json.loads(client("s3").get_bucket_policy(Bucket=bucket)["Policy"])


def test_a_runs_bucket_is_closed_and_tagged(run) -> None:
    bucket = storage.ensure_bucket(run)
    assert storage.ensure_bucket(run) == bucket == run.name("data")
    s3 = client("s3")
    block = s3.get_public_access_block(Bucket=bucket)["PublicAccessBlockConfiguration"]
    assert all(block.values())
    assert len(block) == 4
    rule = s3.get_bucket_encryption(Bucket=bucket)["ServerSideEncryptionConfiguration"]["Rules"][0]
    assert rule["ApplyServerSideEncryptionByDefault"]["SSEAlgorithm"] == "AES256"
    assert s3.get_bucket_tagging(Bucket=bucket)["TagSet"] == run.tags
    statement = policy_of(bucket)["Statement"][0]
    assert (statement["Effect"], statement["Condition"]) == ("Deny", {"Bool": {"aws:SecureTransport": "false"}})


def test_a_named_bucket_is_used_as_it_is(run, bucket) -> None:
    assert storage.ensure_bucket(run, bucket) == bucket
    assert [resource.kind for resource in run.resources()] == ["prefix"]
    with pytest.raises(ClientError, match="NoSuchBucketPolicy"):
        policy_of(bucket)


def test_a_bucket_that_was_made_but_not_closed_is_closed(run) -> None:
    client("s3").create_bucket(Bucket=run.name("data"))  # as after an interruption
    bucket = storage.ensure_bucket(run)
    block = client("s3").get_public_access_block(Bucket=bucket)["PublicAccessBlockConfiguration"]
    assert all(block.values())
    assert policy_of(bucket)["Statement"][0]["Effect"] == "Deny"


def test_somebody_elses_bucket_does_not_get_into_the_ledger(run, monkeypatch) -> None:
    def refuse(_: str) -> bool:
        raise AwsError("bucket x exists, but is not ours to use (S3 answered 403)")

    monkeypatch.setattr(buckets, "bucket_exists", refuse)
    with pytest.raises(AwsError, match="not ours"):
        storage.ensure_bucket(run)
    assert run.resources() == ()


def test_a_bucket_elsewhere_is_refused(run, rehearsal, monkeypatch, bucket) -> None:
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-west-1")
    with pytest.raises(AwsError, match="us-east-1"):
        storage.ensure_bucket(run, bucket)
    monkeypatch.undo()


def test_a_bucket_of_another_region_is_made_there(rehearsal, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-west-1")
    bucket = storage.ensure_bucket(start_run(home=tmp_path))
    assert client("s3").get_bucket_location(Bucket=bucket)["LocationConstraint"] == "eu-west-1"
    storage.delete_bucket(bucket)


def test_files_go_up_once(run, photos, monkeypatch) -> None:
    bucket, seen = storage.ensure_bucket(run), []
    uri = storage.upload_files(photos, bucket, "photos", progress=lambda done, total: seen.append((done, total)))
    assert uri == f"s3://{bucket}/photos/"
    assert sorted(seen) == [(number, 5) for number in range(1, 6)]
    head = client("s3").head_object(Bucket=bucket, Key="photos/train/a.jpg")
    assert head["ContentType"] == "image/jpeg"
    sent = []
    monkeypatch.setattr(client("s3"), "put_object", lambda **request: sent.append(request["Key"]))
    photos[0][1].write_bytes(b"changed, and as long as before".ljust(1000))
    storage.upload_files(photos, bucket, "photos")
    assert sent == ["photos/train/a.jpg"]


def test_strangers_under_the_prefix_are_reported(bucket, photos) -> None:
    storage.upload_files(photos, bucket, "photos")
    storage.upload_files(photos, bucket, "photos-old")
    with pytest.raises(ConfigurationError, match=r"holds 1 objects .* photos/train/empty"):
        storage.upload_files(photos[:4], bucket, "photos")


def test_a_vanished_file_is_named(bucket, photos) -> None:
    photos[2][1].unlink()
    with pytest.raises(AwsError, match=r"Fön & co\.jpg"):
        storage.upload_files(photos, bucket, "photos")


def test_a_refused_upload_names_file_and_reason(rehearsal, photos) -> None:
    with pytest.raises(AwsError, match="NoSuchBucket"):
        storage.upload_files(photos, "no-such-bucket-here", "photos")


def test_a_prefix_comes_down_with_its_folders(bucket, photos, tmp_path) -> None:
    uri = storage.upload_files(photos, bucket, "photos")
    client("s3").put_object(Bucket=bucket, Key="photos/train/folder/", Body=b"")  # the console's way to make a folder
    client("s3").put_object(Bucket=bucket, Key="photos-old/x.jpg", Body=b"x")
    storage.download_prefix(uri.rstrip("/"), tmp_path / "down")
    found = {
        path.relative_to(tmp_path / "down").as_posix() for path in (tmp_path / "down").rglob("*") if path.is_file()
    }
    assert found == {key for key, _ in photos}
    for key, path in photos:
        assert (tmp_path / "down" / key).read_bytes() == path.read_bytes()
    storage.download_prefix(uri, tmp_path / "down")


def test_a_key_cannot_lead_outside(bucket, tmp_path) -> None:
    client("s3").put_object(Bucket=bucket, Key="photos/a/../../outside.jpg", Body=b"x")
    with pytest.raises(AwsError, match="outside"):
        storage.download_prefix(f"s3://{bucket}/photos/", tmp_path / "down")
    assert not (tmp_path / "outside.jpg").exists()


def test_nothing_to_download_is_an_error(bucket, tmp_path) -> None:
    with pytest.raises(AwsError, match="nothing under"):
        storage.download_prefix(f"s3://{bucket}/photos/", tmp_path)


@pytest.mark.parametrize("uri", ["photos", "https://bucket/photos", "s3://", "s3:///photos"])
def test_other_uris_are_refused(uri: str, tmp_path) -> None:
    with pytest.raises(ConfigurationError, match="S3 URI"):
        storage.download_prefix(uri, tmp_path)


def test_a_missing_object_leaves_no_file(bucket, tmp_path) -> None:
    with pytest.raises(AwsError, match="NoSuchKey"):
        storage.download_file(f"s3://{bucket}/none", tmp_path / "none")
    assert list(tmp_path.iterdir()) == []


def test_deleting_a_prefix_leaves_its_neighbour(bucket, photos) -> None:
    storage.upload_files(photos, bucket, "photos")
    storage.upload_files(photos, bucket, "photos-old")
    storage.delete_prefix(f"s3://{bucket}/photos")
    storage.delete_prefix(f"s3://{bucket}/photos/")
    assert len(storage.list_objects(bucket, "")) == 5
    with pytest.raises(ConfigurationError, match="whole bucket"):
        storage.delete_prefix(f"s3://{bucket}/")


def test_a_bucket_goes_with_all_its_versions(run) -> None:
    bucket, s3 = storage.ensure_bucket(run), client("s3")
    s3.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})
    for body in (b"1", b"2"):
        s3.put_object(Bucket=bucket, Key="a", Body=body)
    s3.delete_object(Bucket=bucket, Key="a")
    storage.delete_bucket(bucket)
    storage.delete_bucket(bucket)
    assert not buckets.bucket_exists(bucket)


def test_a_kept_object_is_named(monkeypatch, bucket) -> None:
    client("s3").put_object(Bucket=bucket, Key="a", Body=b"1")
    kept = {"Errors": [{"Key": "a", "Code": "AccessDenied", "Message": "Access Denied"}]}
    with monkeypatch.context() as patch, pytest.raises(AwsError, match="a: AccessDenied"):
        patch.setattr(client("s3"), "delete_objects", lambda **_: kept)
        storage.delete_objects(bucket, "a")
