"""The four functions of inference.py as a Ray Serve application: AWS's Ray Serve container, or Ray on your machines.

    serve run config.yaml                      # in the folder of the unpacked model.tar.gz
    curl -H 'Content-Type: image/jpeg' --data-binary @photo.jpg http://127.0.0.1:8000/

Photos are decoded and computed in threads, so that one replica keeps all its cores busy. When so many requests wait
that another one would be answered in more than a second and a half, going by how long the last ones took, it is
answered 503 with Retry-After at once, instead of late.
"""

import asyncio
import os
import sys
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import ray
from ray import serve
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

MODEL_DIR = Path(os.environ.get("SM_MODEL_DIR") or Path(__file__).resolve().parent)

LONGEST_WAIT_SECONDS = 1.5
RETRY_AFTER_SECONDS = 1
MOST_UNDER_WAY = 1000
MOST_BODY_BYTES = 26 << 20
"""More are not read; inference.py refuses a photo of more than 25 MiB."""
MOST_BYTES_HELD = 1 << 30
"""Of all bodies, those that are still being read among them."""
LONGEST_BODY_SECONDS = 60
"""SageMaker gives an invocation no more in all; without it in front, who sends slowly holds memory for so long."""
CLIENT_LEFT = 499
"""nginx's status for it; nobody gets it, but it stands in the log."""
FIRST_GUESS_SECONDS = 0.1
"""For a photo in a thread, before any was measured: a ResNet-50 with two threads for a core."""
NEWEST_SHARE = 0.05
"""Of a measured time in the running mean, once there are twenty."""


def gpus_for_a_replica() -> int:
    """Return 1 where Ray has a GPU, otherwise 0: a replica that does not ask for one gets to see none."""
    return int(ray.is_initialized() and ray.cluster_resources().get("GPU", 0) >= 1)


@serve.deployment(max_ongoing_requests=1024, ray_actor_options={"num_cpus": 1, "num_gpus": gpus_for_a_replica()})
class Classifier:
    """Answers what is in a photo."""

    def __init__(self) -> None:
        """Load the model and warm it up; until then the application is not healthy."""
        # Ray hands the class by value to the replica's process, where this module itself never runs.
        sys.path.insert(0, str(MODEL_DIR / "code"))
        import inference
        from opslib.vision.serving import serving_threads

        self._functions = inference
        self._model = inference.model_fn(str(MODEL_DIR))
        self._threads = serving_threads()
        self._pool = ThreadPoolExecutor(self._threads, thread_name_prefix="photo")
        self._under_way = self._bytes_held = 0
        self._photo_seconds, self._measured = FIRST_GUESS_SECONDS, 0

    async def __call__(self, request: Request) -> Response:
        """Answer one request with the status, the body and the type of what inference.py says."""
        body = bytearray()
        try:
            async with asyncio.timeout(LONGEST_BODY_SECONDS):
                await self._read(request, body)
            if self._is_full():
                return Response("too many requests wait", 503, headers={"Retry-After": str(RETRY_AFTER_SECONDS)})
            kind, accept = request.headers.get("content-type", ""), request.headers.get("accept", "*/*")
            self._under_way += 1
            try:
                return await asyncio.get_running_loop().run_in_executor(self._pool, self._answer, body, kind, accept)
            finally:
                self._under_way -= 1
        except TimeoutError:
            return Response("the body did not come in time", 408)
        except ClientDisconnect:
            return Response(status_code=CLIENT_LEFT)
        finally:
            self._bytes_held -= len(body)

    async def _read(self, request: Request, body: bytearray) -> None:
        """Read a body: one that is too long only until that is known, and none when those of others fill the memory.

        Whoever sends slowly is not under way yet: it takes no thread, and nobody waits for it.
        """
        async for chunk in request.stream():
            body += chunk
            self._bytes_held += len(chunk)
            if len(body) > MOST_BODY_BYTES or self._bytes_held > MOST_BYTES_HELD:
                return

    def _is_full(self) -> bool:
        """Return whether another request would wait for too long; one for which a thread is idle never does."""
        wait_seconds = self._under_way / self._threads * self._photo_seconds
        too_late = self._under_way >= self._threads and wait_seconds > LONGEST_WAIT_SECONDS
        return too_late or self._under_way >= MOST_UNDER_WAY or self._bytes_held > MOST_BYTES_HELD

    def _answer(self, body: bytearray, content_type: str, accept: str) -> Response:
        busy, started = min(self._under_way, self._threads), time.perf_counter()
        response = self._classify(body, content_type, accept)
        # A photo that is alone has all cores: what counts is how long it would take while every thread is busy.
        seconds = (time.perf_counter() - started) * self._threads / max(1, busy)
        if response.status_code == 200 or seconds > self._photo_seconds:  # a quick refusal says nothing of photos
            self._measured += 1
            share = max(NEWEST_SHARE, 1 / self._measured)
            self._photo_seconds += share * (seconds - self._photo_seconds)
        return response

    def _classify(self, body: bytearray, content_type: str, accept: str) -> Response:
        functions = self._functions
        try:
            prediction = functions.predict_fn(functions.input_fn(body, content_type), self._model)
            text, kind = functions.output_fn(prediction, accept)
        except functions.RequestError as error:
            return Response(error.message, error.status_code, media_type="text/plain")
        except Exception:  # noqa: BLE001 - one request's failure is not the replica's
            traceback.print_exc()
            return Response("the model failed; its log says why", 500, media_type="text/plain")
        return Response(text, headers={"content-type": kind})


app = Classifier.bind()
