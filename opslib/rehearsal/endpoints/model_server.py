"""The program inside a rehearsed endpoint's container: /ping and /invocations over the user's `inference.py`.

    python -P model_server.py --socket FD      # finds SM_MODEL_DIR and the SAGEMAKER_* variables in its environment

It stands for AWS's PyTorch inference container and keeps its contract: `model_fn`, `input_fn`, `predict_fn` and
`output_fn`, or `transform_fn`, each with an optional last argument for the context; JSON and CSV bodies arrive as text,
all others as bytes; `Accept` defaults to application/json; an exception of the toolkit's BaseInferenceToolkitError
becomes its status and any other becomes 500, with the message and the traceback as the body; what is returned and is
neither text nor bytes becomes JSON (sources: sagemaker-inference-toolkit, transformer.py; TorchServe,
otf_message_handler.py and context.py). Three things differ: /ping answers 200 only once the model is loaded, a
model that cannot be loaded ends the process, and text that is not UTF-8 reaches `input_fn` as bytes, where the toolkit
answers 500 by itself.

It is run by path and imports nothing of opslib: the model's own `code/` directory may bring another version of it.
"""

import argparse
import asyncio
import importlib
import inspect
import json
import os
import socket
import subprocess
import sys
import traceback
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from time import perf_counter
from types import ModuleType, SimpleNamespace
from typing import Any

import uvicorn
from packaging.requirements import InvalidRequirement, Requirement
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

TEXT_TYPES = ("application/json", "text/csv")
"""Content types whose body is handed to `input_fn` as text, as AWS's toolkit does."""

JOB_QUEUE_SIZE = 100
"""Requests that may wait for the model; TorchServe's default for `job_queue_size`, which AWS leaves as it is."""
CLIENT_LEFT = 499
"""nginx's status for it; nobody gets it."""


@dataclass(frozen=True)
class Reply:
    """What goes back for one invocation: HTTP status, content type, body and the headers that the model set."""

    status: int
    content_type: str
    body: bytes
    headers: Mapping[str, str] = field(default_factory=dict)


class Context:
    """TorchServe's context of a request (the index of a request in its batch, which is always 0, is not looked at)."""

    def __init__(self, headers: Mapping[str, str] | None = None) -> None:
        """Take the request's headers, if there is a request."""
        self.system_properties = {"model_dir": os.environ["SM_MODEL_DIR"]}
        self.response_headers: dict[str, str] = {}
        self._headers = headers or {}

    def get_request_header(self, _index: int, key: str) -> str | None:
        """Return a header of the request, e.g. X-Amzn-SageMaker-Custom-Attributes."""
        return self._headers.get(key)

    def get_all_request_header(self, _index: int) -> dict[str, str]:
        """Return all of them; their names are in lower case."""
        return dict(self._headers)

    def set_response_header(self, _index: int, key: str, value: str) -> None:
        """Set a header of the answer."""
        self.response_headers[key.lower()] = str(value)


def _call(function: Callable, context: Context, *arguments: Any) -> Any:
    """Call a handler with its arguments, and with the context when it takes one more."""
    expected = len(inspect.signature(function).parameters)
    if expected == len(arguments) + 1:
        return function(*arguments, context)
    if expected != len(arguments):
        raise TypeError(f"{function.__name__} takes {expected} arguments but {len(arguments)} were given.")
    return function(*arguments)


class BaseInferenceToolkitError(Exception):
    """The toolkit's class for errors that have a status of their own, with the toolkit's constructor."""

    def __init__(self, status_code: int, message: str, phrase: str) -> None:
        """Keep the HTTP status, the body of the answer, and HTTP's words for the status."""
        self.status_code, self.message, self.phrase = status_code, message, phrase
        super().__init__(status_code, message, phrase)


def toolkit_error() -> type[Exception]:
    """Return the class that the user's code imports from `sagemaker_inference.errors`, as it can in AWS's container.

    Where the toolkit is not installed, modules with this one class take its place.
    """
    try:
        return importlib.import_module("sagemaker_inference.errors").BaseInferenceToolkitError
    except ModuleNotFoundError:
        toolkit, errors = ModuleType("sagemaker_inference"), ModuleType("sagemaker_inference.errors")
        toolkit.errors, errors.BaseInferenceToolkitError = errors, BaseInferenceToolkitError
        sys.modules |= {toolkit.__name__: toolkit, errors.__name__: errors}
        return BaseInferenceToolkitError


def _as_handed_on(body: bytes, content_type: str) -> bytes | str:
    """Return text types as text, if they are."""
    try:
        return body.decode() if content_type in TEXT_TYPES else body
    except UnicodeDecodeError:
        return body


class Handlers:
    """The user's functions, with AWS's defaults for those that are missing."""

    def __init__(self, module: ModuleType | SimpleNamespace, refusal: type[Exception]) -> None:
        """Take the functions from the user's module, and the class whose exceptions have a status of their own.

        Raises:
            ValueError: `transform_fn` stands beside functions that it would replace.
        """
        self._transform = getattr(module, "transform_fn", None)
        steps = ("input_fn", "predict_fn", "output_fn")
        if self._transform and any(hasattr(module, step) for step in steps):
            raise ValueError(
                "Cannot use transform_fn implementation in conjunction with input_fn, predict_fn, and/or output_fn "
                "implementation"
            )
        self._load = getattr(module, "model_fn", default_model_fn)
        self._input = getattr(module, "input_fn", default_input_fn)
        self._predict = getattr(module, "predict_fn", default_predict_fn)
        self._output = getattr(module, "output_fn", default_output_fn)
        self._refusal = refusal
        self._model: Any = None

    def load(self, model_dir: str) -> None:
        """Load the model; whatever `model_fn` raises comes through."""
        self._model = _call(self._load, Context(), model_dir)

    def invoke(self, body: bytes, content_type: str, accept: str, context: Context) -> Reply:
        """Answer one request; an exception becomes an error reply and a traceback in the log."""
        try:
            result = self._run(context, _as_handed_on(body, content_type), content_type, accept)
            answer, answer_type = result if isinstance(result, tuple) else (result, accept)
        except Exception as error:  # noqa: BLE001 - the container answers for whatever the user's code raises
            return self._error_reply(error)
        try:
            return Reply(200, str(answer_type), _as_bytes(answer), context.response_headers)
        except (TypeError, ValueError):
            write_line(traceback.format_exc())
            return Reply(503, "text/plain", b"Unsupported model output data type.")

    def _run(self, context: Context, data: bytes | str, content_type: str, accept: str) -> Any:
        if self._transform:
            return _call(self._transform, context, self._model, data, content_type, accept)
        prediction = _call(self._predict, context, _call(self._input, context, data, content_type), self._model)
        return _call(self._output, context, prediction, accept)

    def _error_reply(self, error: Exception) -> Reply:
        trace = traceback.format_exc()
        write_line(trace)
        status, message = 500, str(error) or "Invalid Request"
        if isinstance(error, self._refusal):
            status, message = error.status_code, error.message
        return Reply(status, "text/plain", f"{message}\n{trace}".encode())


def _as_bytes(answer: Any) -> bytes:
    """Return what a function returned as TorchServe sends it."""
    if isinstance(answer, bytes | bytearray):
        return bytes(answer)
    return (answer if isinstance(answer, str) else json.dumps(answer, indent=2)).encode()


def default_model_fn(model_dir: str) -> Any:
    """Load the one TorchScript file of the directory, model.pt before any other .pt or .pth."""
    import torch

    path = Path(model_dir, "model.pt")
    if not path.exists():
        files = [file for file in Path(model_dir).iterdir() if file.suffix in (".pt", ".pth")]
        if len(files) != 1:
            names = sorted(file.name for file in files)
            raise ValueError(f"Exactly one .pth or .pt file is required for PyTorch models: {names}")
        path = files[0]
    return torch.jit.load(str(path), map_location="cpu").eval()


def default_input_fn(data: bytes | str, content_type: str) -> Any:
    """Turn JSON, CSV or NPY into a tensor."""
    import io

    import numpy
    import torch

    if content_type == "application/json":
        return torch.FloatTensor(json.loads(data))
    if content_type == "text/csv":
        return torch.FloatTensor(numpy.genfromtxt(io.StringIO(data), dtype="float32", delimiter=","))
    if content_type == "application/x-npy":
        return torch.from_numpy(numpy.load(io.BytesIO(data), allow_pickle=False))
    raise ValueError(f"Content type {content_type} is not supported by this framework.")


def default_predict_fn(data: Any, model: Callable) -> Any:
    """Run the model without gradients."""
    import torch

    with torch.no_grad():
        return model(data)


def default_output_fn(prediction: Any, accept: str) -> tuple[bytes | str, str]:
    """Write the prediction as JSON or NPY."""
    import io

    import numpy

    rows = prediction.detach().cpu().numpy() if hasattr(prediction, "detach") else numpy.asarray(prediction)
    for wanted in (part.split(";")[0].strip() for part in accept.split(",")):
        if wanted in ("application/json", "*/*"):
            return json.dumps(rows.tolist()), "application/json"
        if wanted == "application/x-npy":
            buffer = io.BytesIO()
            numpy.save(buffer, rows)
            return buffer.getvalue(), wanted
    raise ValueError(f"Content type {accept} is not supported by this framework.")


def import_user_module(model_dir: Path) -> ModuleType | SimpleNamespace:
    """Import the inference script: SAGEMAKER_PROGRAM in SAGEMAKER_SUBMIT_DIRECTORY, by default code/inference.py.

    The submit directory goes first on sys.path, as in AWS's container, so that the script finds its neighbours.
    Without a script the default functions serve the model alone.
    """
    program = os.environ.get("SAGEMAKER_PROGRAM", "inference.py")
    directory = os.environ.get("SAGEMAKER_SUBMIT_DIRECTORY", str(model_dir / "code"))
    if not Path(directory, program).is_file():
        if "SAGEMAKER_PROGRAM" in os.environ:
            raise FileNotFoundError(f"SAGEMAKER_PROGRAM {program} is not in {directory}")
        return SimpleNamespace()
    sys.path.insert(0, directory)
    return importlib.import_module(program.removesuffix(".py").replace("/", "."))


def install_requirements(model_dir: Path) -> None:
    """Install what code/requirements.txt names, as AWS's container does before it serves.

    pip needs seconds to find that there is nothing to do, so it is asked only when there may be something.
    """
    requirements = Path(os.environ.get("SAGEMAKER_SUBMIT_DIRECTORY", str(model_dir / "code")), "requirements.txt")
    if not requirements.is_file():
        return
    lines = [line.partition(" #")[0].strip() for line in requirements.read_text(encoding="utf-8").splitlines()]
    wanted = [line for line in lines if line and not line.startswith("#")]
    if all(is_installed(line) for line in wanted):
        for line in wanted:
            write_line(f"Requirement already satisfied: {line}")
        return
    subprocess.run(["pip3", "install", "--disable-pip-version-check", "-r", str(requirements)], check=True)


def is_installed(line: str) -> bool:
    """Return whether a line of a requirements file names a distribution that is here in a version that it allows."""
    try:
        requirement = Requirement(line)
        version = metadata.version(requirement.name)
    except (InvalidRequirement, metadata.PackageNotFoundError):
        return False
    plain = not (requirement.url or requirement.extras or requirement.marker)
    return plain and requirement.specifier.contains(version, prereleases=True)


def write_line(text: str) -> None:
    """Write to the container's log."""
    sys.stdout.write(text.rstrip("\n") + "\n")
    sys.stdout.flush()


class ModelServer:
    """The HTTP side: the model is loaded and run in one thread, because torch slows down in a second one."""

    def __init__(self) -> None:
        """Prepare the one thread of the model."""
        self._model_thread = ThreadPoolExecutor(1, thread_name_prefix="model")
        self._under_way = 0
        self._handlers: Handlers | None = None
        self._server: uvicorn.Server | None = None
        self.load_failed = False
        self._default_accept = os.environ.get("SAGEMAKER_DEFAULT_INVOCATIONS_ACCEPT", "application/json")

    async def ping(self, _request: Request) -> Response:
        """GET /ping: 200 once the model is loaded, 503 before."""
        return Response(status_code=200 if self._handlers else 503)

    async def invocations(self, request: Request) -> Response:
        """POST /invocations: the body through the user's functions."""
        if not self._handlers:
            return Response("the model is not loaded yet", 503)
        started = perf_counter()
        try:
            body = await request.body()
        except ClientDisconnect:
            return Response(status_code=CLIENT_LEFT)
        reply = await self._reply(body, request.headers)
        write_line(f'"POST /invocations HTTP/1.1" {reply.status} {1000 * (perf_counter() - started):.0f} ms')
        return Response(reply.body, reply.status, headers={**reply.headers, "content-type": reply.content_type})

    async def _reply(self, body: bytes, headers: Mapping[str, str]) -> Reply:
        """Ask the model, unless too many wait for it already: one is computed, the others stand in the queue."""
        if self._under_way > JOB_QUEUE_SIZE:
            return Reply(503, "text/plain", b"the queue of the model is full")
        content_type, accept = headers.get("content-type", "application/json"), headers.get("accept", "*/*")
        accept = self._default_accept if accept == "*/*" else accept
        self._under_way += 1
        try:
            return await self._in_model_thread(self._handlers.invoke, body, content_type, accept, Context(headers))
        finally:
            self._under_way -= 1

    async def _in_model_thread(self, function: Callable, *arguments: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._model_thread, function, *arguments)

    def _load(self) -> Handlers:
        model_dir = Path(os.environ["SM_MODEL_DIR"])
        install_requirements(model_dir)
        refusal = toolkit_error()  # before the user's module, which may import it
        handlers = Handlers(import_user_module(model_dir), refusal)
        handlers.load(str(model_dir))
        return handlers

    async def load(self) -> None:
        """Load the model, or end the server when that fails."""
        try:
            self._handlers = await self._in_model_thread(self._load)
            write_line("Model loaded; /ping answers 200.")
        except BaseException:
            write_line(traceback.format_exc())
            self.load_failed = self._server.should_exit = True
            raise

    async def serve(self, listener: socket.socket) -> None:
        """Serve until SIGTERM; the listener takes requests at once, while the model loads."""
        routes = [Route("/ping", self.ping), Route("/invocations", self.invocations, methods=["POST"])]
        config = uvicorn.Config(Starlette(routes=routes), log_level="warning", access_log=False, lifespan="off")
        self._server = uvicorn.Server(config)
        loading = asyncio.create_task(self.load())
        await self._server.serve(sockets=[listener])
        loading.cancel()


def main() -> int:
    """Serve on the listening socket that was inherited; return 1 when the model cannot be loaded."""
    parser = argparse.ArgumentParser(description="Serve a model as AWS's PyTorch inference container does.")
    parser.add_argument("--socket", type=int, required=True, help="file descriptor of a listening socket")
    server = ModelServer()
    asyncio.run(server.serve(socket.socket(fileno=parser.parse_args().socket)))
    if server.load_failed:
        sys.stdout.flush()
        os._exit(1)  # a model thread that hangs must not keep the process alive
    return 0


if __name__ == "__main__":
    sys.exit(main())
