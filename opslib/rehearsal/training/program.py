"""What a training container runs: the job's own entry point, or a script by the framework containers' conventions.

Script mode (sources: the sagemaker-training toolkit, ENVIRONMENT_VARIABLES.md and its entry_point module): the
hyperparameters `sagemaker_program` and `sagemaker_submit_directory` name a script and an archive of code in S3, which
is unpacked to /opt/ml/code, its requirements.txt installed, and the script run with `--name value` for every other
hyperparameter, in the order of their names, under the SM_* variables.
"""

import io
import json
import os
import shlex
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from opslib.rehearsal.calls import ServiceError
from opslib.rehearsal.processes.containers import OPT_ML, Container
from opslib.rehearsal.role_storage import RoleStorage, split_uri

OBJECTIVE = "_tuning_objective_metric"
"""The hyperparameter by which a tuning job tells its trials the name of its objective."""


@dataclass(frozen=True)
class Program:
    """What to run: a command (the container's entry point and arguments), or a script with the archive it lies in."""

    command: tuple[str, ...] = ()
    script: str = ""
    archive_uri: str = ""


def decode_hyperparameters(params: Mapping[str, Any]) -> dict[str, Any]:
    """Return the hyperparameters with those that are JSON decoded, as the toolkit does."""
    return {name: _decoded(value) for name, value in params.get("HyperParameters", {}).items()}


def _decoded(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def read_program(params: Mapping[str, Any]) -> Program:
    """Return what a CreateTrainingJob request asks to run.

    Raises:
        ServiceError: nothing that runs without the image itself: images cannot be pulled here.
    """
    checkpoints = os.path.normpath(params.get("CheckpointConfig", {}).get("LocalPath", OPT_ML))
    if not f"{checkpoints}/".startswith(f"{OPT_ML}/"):
        raise ServiceError("NotImplemented", f"checkpoints outside {OPT_ML} cannot be rehearsed", status=501)
    specification = params["AlgorithmSpecification"]
    command = (*specification.get("ContainerEntrypoint", ()), *specification.get("ContainerArguments", ()))
    if specification.get("ContainerEntrypoint"):
        return Program(command=command)
    decoded = decode_hyperparameters(params)
    if "sagemaker_program" in decoded and "sagemaker_submit_directory" in decoded:
        return Program(script=str(decoded["sagemaker_program"]), archive_uri=str(decoded["sagemaker_submit_directory"]))
    raise ServiceError(
        "NotImplemented",
        "the entry point inside an image cannot be rehearsed: give a ContainerEntrypoint, or a script by the "
        "hyperparameters sagemaker_program and sagemaker_submit_directory",
        status=501,
    )


def unpack_code(program: Program, storage: RoleStorage, container: Container) -> None:
    """Fetch the script's archive and unpack it to /opt/ml/code.

    Raises:
        StorageRefused: the archive cannot be read.
        tarfile.TarError: it is not a tar archive, or one whose files would lie elsewhere.
        EOFError: it is cut off.
    """
    content = storage.read(*split_uri(program.archive_uri))
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        archive.extractall(container.root / "code", filter="data")
        archive.fileobj.read()  # to the end, where a compressed file says whether it was whole


def script_command(program: Program, params: Mapping[str, Any], container: Container) -> list[str]:
    """Return the command that installs what the script requires and runs it, in /opt/ml/code."""
    runner = ["sh", program.script] if program.script.endswith(".sh") else ["python3", program.script]
    line = shlex.join([*runner, *map(container.relocate, script_arguments(params))])
    return ["sh", "-c", f"if [ -f requirements.txt ]; then pip3 install -r requirements.txt || exit; fi; exec {line}"]


def script_arguments(params: Mapping[str, Any]) -> list[str]:
    """Return the user's hyperparameters as arguments."""
    users = _users(params)
    pairs = [(f"--{name}" if len(name) > 1 else f"-{name}", _text(value)) for name, value in sorted(users.items())]
    return [part for pair in pairs for part in pair]


def _users(params: Mapping[str, Any]) -> dict[str, Any]:
    """Return what is the script's own: not the toolkit's settings, nor what a tuning job adds."""
    decoded = decode_hyperparameters(params)
    return {name: value for name, value in decoded.items() if not name.startswith("sagemaker_") and name != OBJECTIVE}


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def script_variables(
    program: Program, params: Mapping[str, Any], resources: Mapping[str, Any], cores: int
) -> dict[str, str]:
    """Return the SM_* variables of script mode, with paths under /opt/ml; `resources` is resourceconfig.json."""
    users = _users(params)
    channels = [channel["ChannelName"] for channel in params.get("InputDataConfig", [])]
    variables = {
        "SM_MODEL_DIR": "/opt/ml/model",
        "SM_INPUT_DIR": "/opt/ml/input",
        "SM_INPUT_CONFIG_DIR": "/opt/ml/input/config",
        "SM_OUTPUT_DIR": "/opt/ml/output",
        "SM_OUTPUT_DATA_DIR": "/opt/ml/output/data",
        "SM_OUTPUT_INTERMEDIATE_DIR": "/opt/ml/output/intermediate",
        "SM_MODULE_DIR": program.archive_uri,
        "SM_MODULE_NAME": Path(program.script).stem,
        "SM_USER_ENTRY_POINT": program.script,
        "SM_USER_ARGS": json.dumps(script_arguments(params)),
        "SM_CHANNELS": json.dumps(sorted(channels)),
        "SM_HPS": json.dumps(users),
        "SM_HOSTS": json.dumps(resources["hosts"]),
        "SM_CURRENT_HOST": resources["current_host"],
        "SM_CURRENT_INSTANCE_TYPE": resources["current_instance_type"],
        "SM_NETWORK_INTERFACE_NAME": resources["network_interface_name"],
        "SM_RESOURCE_CONFIG": json.dumps(resources),
        "SM_NUM_CPUS": str(cores),
        "SM_NUM_GPUS": "0",
        "SM_LOG_LEVEL": "20",
    }
    variables |= {f"SM_CHANNEL_{name.upper()}": f"/opt/ml/input/data/{name}" for name in channels}
    return variables | {f"SM_HP_{name.upper().replace('-', '_')}": _text(value) for name, value in users.items()}
