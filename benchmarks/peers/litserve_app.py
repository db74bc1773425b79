"""The reference's handler under LitServe: `python litserve_app.py PORT WORKERS`."""

import os
import sys
from typing import Annotated, Any

import litserve
from fastapi import Depends, Request, Response
from reference_handler import answer, model_fn


async def photo_bytes(request: Request) -> bytes:
    """Return the body as it came; with `Request` for a type LitServe would read JSON or a form."""
    return await request.body()


Photo = Annotated[bytes, Depends(photo_bytes)]


class Classifier(litserve.LitAPI):
    """LitServe's four steps."""

    def setup(self, device: str) -> None:  # noqa: ARG002
        """Load the model."""
        self.model = model_fn(os.environ["BENCH_MODEL"])

    def decode_request(self, request: Photo) -> bytes:
        """Take the photo's bytes."""
        return request

    def predict(self, body: bytes) -> str:
        """Answer."""
        return answer(self.model, body)

    def encode_response(self, output: Any) -> Response:
        """Send JSON."""
        return Response(output, media_type="application/json")


if __name__ == "__main__":
    port, workers = map(int, sys.argv[1:])
    server = litserve.LitServer(
        Classifier(api_path="/invocations"), accelerator="cpu", workers_per_device=workers, healthcheck_path="/ping"
    )
    server.run(host="127.0.0.1", port=port, generate_client_file=False, num_api_servers=1)
