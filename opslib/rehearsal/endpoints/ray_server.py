"""The program inside a rehearsed endpoint's container of AWS's Ray Serve image: /ping and /invocations.

    python -P ray_server.py --socket FD        # finds SM_MODEL_DIR in its environment

It keeps the contract of aws.github.io/deep-learning-containers/ray: `config.yaml` at the model's root names one
application by `import_path`; `code/requirements.txt` is installed first; /invocations reaches the application's root.
A small stand-in takes the place of Ray itself: `serve.deployment`, `bind` and `options`, with one replica in this
process. What else `ray` has (batching, composition, several replicas) is refused when the model asks for it.

It is run by path and imports nothing of opslib: the model's own `code/` directory may bring another version of it.
"""

import argparse
import asyncio
import importlib
import inspect
import os
import socket
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from types import ModuleType
from typing import Any

import uvicorn
import yaml
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

sys.path.insert(0, str(Path(__file__).parent))
from model_server import install_requirements, write_line

sys.path.pop(0)


@dataclass(frozen=True)
class Application:
    """A deployment with the arguments that its replica is made with."""

    target: Callable[..., Any]
    arguments: tuple[Any, ...] = ()
    keywords: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Deployment:
    """What `@serve.deployment` makes of a class or a function."""

    target: Callable[..., Any]
    settings: dict[str, Any] = field(default_factory=dict)

    def options(self, **settings: Any) -> "Deployment":
        """Return the deployment with other settings."""
        return Deployment(self.target, {**self.settings, **settings})

    def bind(self, *arguments: Any, **keywords: Any) -> Application:
        """Return the application of one replica."""
        return Application(self.target, arguments, keywords)


def deployment(target: Callable[..., Any] | None = None, **settings: Any) -> Any:
    """Decorate a class or a function, with or without settings."""
    if target is not None:
        return Deployment(target, settings)
    return lambda decorated: Deployment(decorated, settings)


class _Unrehearsed(ModuleType):
    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        raise AttributeError(f"{self.__name__}.{name} cannot be rehearsed: one deployment without batching can")


def stand_in_for_ray() -> None:
    """Let `from ray import serve` find the stand-in."""
    ray, serve = _Unrehearsed("ray"), _Unrehearsed("ray.serve")
    serve.deployment, ray.serve, ray.__path__ = deployment, serve, []
    ray.is_initialized = lambda: False  # there is no cluster, whose resources one could ask for
    sys.modules.update({"ray": ray, "ray.serve": serve})


def import_application(model_dir: Path) -> Application:
    """Return the application that config.yaml names.

    Raises:
        ValueError: there is not exactly one, or it is none.
    """
    config = yaml.safe_load((model_dir / "config.yaml").read_text(encoding="utf-8"))
    applications = config.get("applications") if isinstance(config, dict) else None
    if not isinstance(applications, list) or len(applications) != 1:
        raise ValueError("config.yaml must name one application: applications: [{import_path: module:app}]")
    module, _, name = str(applications[0].get("import_path", "")).replace(":", ".").rpartition(".")
    sys.path.insert(0, str(model_dir))
    found = getattr(importlib.import_module(module), name)
    if not isinstance(found, Application):
        raise ValueError(f"{applications[0]['import_path']} is no application; make it with bind()")
    return found


class RayServer:
    """The HTTP side: requests go to the one replica."""

    def __init__(self) -> None:
        """Prepare; nothing is loaded yet."""
        self._replica: Callable[[Request], Any] | None = None
        self._server: uvicorn.Server | None = None
        self.load_failed = False

    async def ping(self, _request: Request) -> Response:
        """GET /ping: 200 once the replica is there, 503 before."""
        return Response(status_code=200 if self._replica else 503)

    async def invocations(self, request: Request) -> Response:
        """POST /invocations: the request to the replica, its answer back."""
        if self._replica is None:
            return Response("the application is not there yet", 503)
        started = perf_counter()
        try:
            response = as_response(await self._asked(request))
        except Exception:  # noqa: BLE001 - the container answers for whatever the user's code raises
            write_line(traceback.format_exc())
            response = PlainTextResponse("Internal Server Error", 500)
        write_line(f'"POST /invocations HTTP/1.1" {response.status_code} {1000 * (perf_counter() - started):.0f} ms')
        return response

    async def _asked(self, request: Request) -> Any:
        answer = self._replica(request)
        return await answer if inspect.isawaitable(answer) else answer

    def _load(self) -> Callable[[Request], Any]:
        model_dir = Path(os.environ["SM_MODEL_DIR"])
        install_requirements(model_dir)
        stand_in_for_ray()
        application = import_application(model_dir)
        if inspect.isclass(application.target):
            return application.target(*application.arguments, **application.keywords)
        return application.target

    async def load(self) -> None:
        """Make the replica, or end the server when that fails."""
        try:
            self._replica = await asyncio.to_thread(self._load)
            write_line("Application deployed; /ping answers 200.")
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


def as_response(answer: Any) -> Response:
    """Return what Ray Serve makes of an answer: text as it is, anything else as JSON."""
    if isinstance(answer, Response):
        return answer
    if isinstance(answer, str):
        return PlainTextResponse(answer)
    return Response(answer) if isinstance(answer, bytes) else JSONResponse(answer)


def main() -> int:
    """Serve on the listening socket that was inherited; return 1 when the application cannot be made."""
    parser = argparse.ArgumentParser(description="Serve a model as AWS's Ray Serve container does.")
    parser.add_argument("--socket", type=int, required=True, help="file descriptor of a listening socket")
    server = RayServer()
    asyncio.run(server.serve(socket.socket(fileno=parser.parse_args().socket)))
    if server.load_failed:
        sys.stdout.flush()
        os._exit(1)  # a thread that hangs must not keep the process alive
    return 0


if __name__ == "__main__":
    sys.exit(main())
