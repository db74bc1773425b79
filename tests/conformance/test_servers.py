"""One model.tar.gz under the servers themselves that AWS's containers run: Ray Serve, and AWS's toolkit over MMS.

They are installed from PyPI into environments of their own, which takes minutes, so these tests are run on demand:

    CONFORMANCE_HOME=~/.cache/opslib/conformance python -m pytest tests/conformance
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import torch

import inference
from opslib.bundle import copy_serving_code
from opslib.vision.artifact import ModelDescription, save_artifact
from opslib.vision.backbones import build_backbone
from opslib.vision.exporting import export_classifier
from opslib.vision.model import Classifier, build_head
from tests.hostile import good_photo

HOME = os.environ.get("CONFORMANCE_HOME", "")
pytestmark = pytest.mark.skipif(not HOME, reason="run on demand: set CONFORMANCE_HOME to a folder for environments")

START_SECONDS = 180.0
RAY = ("ray[serve]==2.55.*", "protobuf<7")  # 2.55 reads a field that protobuf 7 has removed
TOOLKIT = ("setuptools<81", "sagemaker-inference==1.10.*", "multi-model-server==1.1.*")


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("conformance") / "model"
    directory.mkdir()
    torch.manual_seed(0)
    backbone = build_backbone("efficientnet_lite0")
    classifier = Classifier(backbone.module, build_head(backbone.features, 3)).eval()
    export = export_classifier(directory, classifier, backbone.transform)
    description = ModelDescription(backbone.name, ("a", "b", "c"), backbone.transform, {}, {}, export.to_dict())
    save_artifact(directory, classifier, description)
    copy_serving_code(directory, ())
    return directory


@pytest.fixture(scope="module")
def expected(model_dir) -> list[float]:
    return inference.predict_fn(good_photo(), inference.model_fn(str(model_dir))).scores


def environment(name: str, requirements: tuple[str, ...]) -> Path:
    """Return the interpreter of an environment with some packages; torch and the like are this interpreter's own."""
    home = Path(HOME).expanduser() / name
    python, ready = home / "bin" / "python", home / "ready"
    if not ready.exists():
        shutil.rmtree(home, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", home], check=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", *requirements], check=True)
        own = next((home / "lib").glob("python*/site-packages"))
        (own / "caller.pth").write_text("\n".join(path for path in sys.path if "site-packages" in path))
        ready.touch()
    return python


@contextmanager
def running(command: list[object], url: str, cwd: Path, **variables: str) -> Iterator[None]:
    """Run a server until it answers a photo, and end it with all that it started."""
    log = cwd.parent / "server.log"
    with log.open("w") as output:
        process = subprocess.Popen(
            [str(part) for part in command], cwd=cwd, env={**os.environ, **variables}, stdout=output,
            stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
    try:
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                ask(url)
                break
            except OSError as error:
                if isinstance(error, urllib.error.HTTPError):
                    error.close()
                assert process.poll() is None, log.read_text()[-3000:]
                assert time.monotonic() < deadline, log.read_text()[-3000:]
                time.sleep(0.5)
        yield
    finally:
        end(process)


def end(process: subprocess.Popen) -> None:
    """End a process and its group, which may be gone already."""
    for number, seconds in ((signal.SIGTERM, 20), (signal.SIGKILL, None)):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with suppress(subprocess.TimeoutExpired):
            process.wait(seconds)


def ask(url: str, body: bytes | None = None, accept: str = "application/json") -> bytes:
    headers = {"Content-Type": "image/jpeg", "Accept": accept}
    request = urllib.request.Request(url, data=body or good_photo(), headers=headers)
    with urllib.request.urlopen(request, timeout=30) as reply:
        return reply.read()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return probe.getsockname()[1]


def free_port_for_mms() -> int:
    """MMS takes port numbers for signed 16-bit integers."""
    for port in range(23000, 32767):
        with suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port
    raise OSError("no port is free")


def check_answers(url: str, expected: list[float]) -> None:
    (scores,) = json.loads(ask(url))
    assert scores == pytest.approx(expected, abs=1e-4)
    verbose = json.loads(ask(url, accept="application/json;verbose"))
    assert verbose["scores"][0] == pytest.approx(expected, abs=1e-4)
    with pytest.raises(urllib.error.HTTPError) as refused:
        ask(url, b"not a photo")
    refused.value.close()
    assert refused.value.code == 415


def test_ray_serve(model_dir, expected) -> None:
    python, port = environment("ray", RAY), free_port()
    config = model_dir / "config.yaml"
    text = config.read_text()
    config.write_text(f"proxy_location: HeadOnly\nhttp_options:\n  host: 127.0.0.1\n  port: {port}\n{text}")
    command = [python, "-m", "ray.serve.scripts", "run", "config.yaml"]
    try:
        with running(command, f"http://127.0.0.1:{port}/", model_dir, RAY_USAGE_STATS_ENABLED="0"):
            check_answers(f"http://127.0.0.1:{port}/", expected)
    finally:
        config.write_text(text)
        subprocess.run([python, "-m", "ray.scripts.scripts", "stop", "--force"], check=False, capture_output=True)


def test_aws_toolkit_over_multi_model_server(model_dir, expected, tmp_path) -> None:
    """MMS is started by itself: the toolkit's own starter writes to /etc and listens on all addresses."""
    python, port = environment("toolkit", TOOLKIT), free_port_for_mms()
    config, work = tmp_path / "mms.properties", tmp_path / "work"
    work.mkdir()
    lines = [f"{name}_address=http://127.0.0.1:{port}" for name in ("inference", "management")]
    lines += ["default_workers_per_model=1", "decode_input_request=false", "load_models=ALL",
              "default_service_handler=sagemaker_inference.default_handler_service"]  # fmt: skip
    config.write_text("\n".join(lines) + "\n")
    command = [python, "-m", "mms.model_server", "--start", "--foreground", "--mms-config", config]
    command += ["--model-store", "/", "--models", f"model={model_dir}"]
    variables = {
        "PATH": f"{python.parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(model_dir / "code"),
        "SAGEMAKER_BASE_DIR": str(model_dir.parent),
        "TMPDIR": str(tmp_path),  # the number of its process goes there
    }
    with running(command, f"http://127.0.0.1:{port}/invocations", work, **variables):
        check_answers(f"http://127.0.0.1:{port}/invocations", expected)
