"""One host of a training job: its directory laid out as /opt/ml, its environment, its process, its last words.

Source of the layout: https://docs.aws.amazon.com/sagemaker/latest/dg/your-algorithms-training-algo-running-container.html
"""

import json
import os
import sys
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from opslib.rehearsal.processes.containers import Container, build_container
from opslib.rehearsal.processes.keeper import Process, start_process
from opslib.rehearsal.role_storage import RoleStorage
from opslib.rehearsal.training.channels import Channel, fetch_channel
from opslib.rehearsal.training.cores import on_cores, share_of_cores
from opslib.rehearsal.training.job import MAX_FAILURE_REASON, TrainingJob
from opslib.rehearsal.training.program import (
    Program,
    read_program,
    script_command,
    script_variables,
    unpack_code,
)

LAST_LINES = 20
_LOOPBACK = "lo" if sys.platform == "linux" else "lo0"  # AWS says eth0; hosts meet on the loopback interface here


class TrainingHost:
    """A host of a job; `position` of `count`, as algo-1, algo-2, ..."""

    def __init__(self, job: TrainingJob, directory: Path, position: int, count: int) -> None:
        self.name = f"algo-{position + 1}"
        self.process: Process | None = None
        self.lines_heard = 0
        self._job = job
        self._position, self._count = position, count
        self._cores = share_of_cores(position, count)
        self._master_port = 0
        self._program: Program = read_program(job.params)
        self._last_lines: deque[str] = deque(maxlen=LAST_LINES)
        self.container: Container = build_container(directory / self.name)

    @property
    def model_directory(self) -> Path:
        """/opt/ml/model: becomes model.tar.gz."""
        return self.container.root / "model"

    @property
    def output_directory(self) -> Path:
        """/opt/ml/output/data: becomes output.tar.gz."""
        return self.container.root / "output" / "data"

    @property
    def checkpoint_directory(self) -> Path:
        """/opt/ml/checkpoints, or the job's own LocalPath."""
        config = self._job.params.get("CheckpointConfig", {})
        return Path(self.container.relocate(os.path.normpath(config.get("LocalPath", "/opt/ml/checkpoints"))))

    def prepare(self, channels: list[Channel], storage: RoleStorage, master_port: int) -> None:
        """Lay out the directory and fetch the input.

        Raises:
            StorageRefused: an object cannot be read.
        """
        root = self.container.root
        self._master_port = master_port
        for made in (self.model_directory, self.output_directory, root / "input" / "config", root / "code"):
            made.mkdir(parents=True, exist_ok=True)
        hyperparameters = self._job.params.get("HyperParameters", {})
        relocated = {name: self.container.relocate(value) for name, value in hyperparameters.items()}
        self._write_config("hyperparameters", relocated)
        self._write_config("resourceconfig", self._resources())
        self._write_config("inputdataconfig", {channel.name: channel.config for channel in channels})
        for channel in channels:
            fetch_channel(channel, storage, root / "input" / "data" / channel.name, (self._position, self._count))
        self._move_drivers(root / "input" / "data" / "sm_drivers", master_port)
        if self._program.script:
            unpack_code(self._program, storage, self.container)

    def start(self, variables: Mapping[str, str], on_line: Callable[[str], None]) -> None:
        """Start the program with `variables` beside its own; `on_line` gets each line of its output."""

        def hear(line: str) -> None:
            self.lines_heard += 1
            self._last_lines.append(line)
            on_line(line)

        command = [self.container.relocate(part) for part in self._program.command]
        directory = self.container.directory
        if self._program.script:
            command = script_command(self._program, self._job.params, self.container)
            directory = self.container.root / "code"
        environment = self.container.environment(self._variables() | variables)
        with on_cores(self._cores):
            self.process = start_process(command, env=environment, cwd=directory, on_line=hear)

    def cpu_seconds(self) -> float:
        """Return the computing time of the processes that it runs at the moment."""
        seconds = 0.0
        with suppress(psutil.Error):
            program = psutil.Process(self.process.pid if self.process else None)
            for process in (program, *program.children(recursive=True)):
                with suppress(psutil.Error):
                    seconds += sum(process.cpu_times()[:2])
        return seconds

    def failure_reason(self, exit_code: int) -> str:
        """Return the FailureReason of this host's exit: the failure file's text and the exit code, as AWS writes it.

        Of several hosts it names the one that failed.
        """
        path = self.container.root / "output" / "failure"
        text = path.read_text(encoding="utf-8", errors="replace").strip() if path.is_file() else ""
        if not text and self._program.script:
            words = "\n".join(self._last_lines)
            text = f'ExecuteUserScriptError:\nExitCode {exit_code}\nErrorMessage "{words}"'
        start, end = "AlgorithmError: ", f", exit code: {exit_code}"
        if self._count > 1:
            start += f"{self.name}: "
        return start + text[: MAX_FAILURE_REASON - len(start) - len(end)] + end

    def _write_config(self, name: str, value: Any) -> None:
        path = self.container.root / "input" / "config" / f"{name}.json"
        path.write_text(json.dumps(value), encoding="utf-8")

    def _resources(self) -> dict[str, Any]:
        instance_type = self._job.params["ResourceConfig"].get("InstanceType", "")
        hosts = [f"algo-{position + 1}" for position in range(self._count)]
        group = {"instance_group_name": "homogeneousCluster", "instance_type": instance_type, "hosts": hosts}
        return {
            "current_host": self.name,
            "current_instance_type": instance_type,
            "current_group_name": "homogeneousCluster",
            "hosts": hosts,
            "instance_groups": [group],
            "network_interface_name": _LOOPBACK,
        }

    def _move_drivers(self, directory: Path, master_port: int) -> None:
        """Tell the SDK's driver scripts, whose paths and addresses are fixed, where /opt/ml and the first host are."""
        for path in sorted(directory.rglob("*")):
            if path.suffix not in {".py", ".sh", ".json"}:
                continue
            text = self.container.relocate(path.read_text(encoding="utf-8"))
            if path.name == "environment.py" and self._count > 1:
                text = text.replace('SM_MASTER_ADDR = "algo-1"', 'SM_MASTER_ADDR = "127.0.0.1"')
            if path.name == "environment.py":
                text = text.replace("SM_MASTER_PORT = 7777", f"SM_MASTER_PORT = {master_port}")
            path.write_text(text, encoding="utf-8")

    def _variables(self) -> dict[str, str]:
        params = self._job.params
        variables = {
            "TRAINING_JOB_NAME": self._job.name,
            "TRAINING_JOB_ARN": self._job.arn,
            "CURRENT_HOST": self.name,
        }
        if self._count > 1:  # the hosts share this machine's cores
            variables["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // self._count))
        # torchrun's own defaults, for launchers that name no master: two jobs would meet at its port 29500 otherwise.
        variables |= {"PET_MASTER_ADDR": "127.0.0.1", "PET_MASTER_PORT": str(self._master_port)}
        if self._program.script:
            variables |= script_variables(self._program, params, self._resources(), len(self._cores))
        return variables | params.get("Environment", {})
