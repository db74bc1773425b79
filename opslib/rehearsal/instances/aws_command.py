"""The little of the AWS CLI that user data needs: `aws s3 cp [--recursive] [--quiet] FROM TO`, also as `sync`.

Every AWS image has the CLI; this machine need not. It runs in the instance, with its credentials, as a script.
"""

import sys
from pathlib import Path

import boto3


def copy(source: str, target: str, recursive: bool) -> None:
    """Copy files to S3 or from it."""
    client = boto3.client("s3")
    if source.startswith("s3://"):
        bucket, _, prefix = source.removeprefix("s3://").partition("/")
        if not recursive:
            path = Path(target)
            client.download_file(bucket, prefix, str(path / Path(prefix).name if path.is_dir() else path))
            return
        folder = prefix.rstrip("/") + "/"
        for page in client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=folder):
            for entry in page.get("Contents", []):
                path = Path(target) / entry["Key"].removeprefix(folder)
                path.parent.mkdir(parents=True, exist_ok=True)
                client.download_file(bucket, entry["Key"], str(path))
        return
    bucket, _, key = target.removeprefix("s3://").partition("/")
    if not recursive:
        client.upload_file(source, bucket, key + Path(source).name if key.endswith("/") else key)
        return
    for path in sorted(Path(source).rglob("*")):
        if path.is_file():
            client.upload_file(str(path), bucket, f"{key.rstrip('/')}/{path.relative_to(source).as_posix()}")


def main(arguments: list[str]) -> None:
    """Run one command; what the script does not know ends it, as the CLI's usage errors do."""
    words = [word for word in arguments if not word.startswith("--")]
    options = set(arguments) - set(words)
    if words[:1] != ["s3"] or words[1:2] not in (["cp"], ["sync"]) or len(words) != 4:
        raise SystemExit(f"aws: only `aws s3 cp` and `aws s3 sync` can be rehearsed: {' '.join(arguments)}")
    if options - {"--quiet", "--recursive", "--only-show-errors", "--no-progress"}:
        raise SystemExit(f"aws: unknown options: {' '.join(sorted(options))}")
    copy(words[2], words[3], "--recursive" in options or words[1] == "sync")


if __name__ == "__main__":
    main(sys.argv[1:])
