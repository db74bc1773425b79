"""The reference's handler under FastAPI and uvicorn: `uvicorn fastapi_app:app --workers N`."""

import os

from fastapi import FastAPI, Request, Response
from reference_handler import answer, model_fn

model = model_fn(os.environ["BENCH_MODEL"])
app = FastAPI()


@app.get("/ping")
def ping() -> dict[str, str]:
    """Say that the model is loaded."""
    return {"status": "ok"}


@app.post("/invocations")
async def invocations(request: Request) -> Response:
    """Answer one photo, on the event loop as most examples do: a worker is busy with one photo anyway."""
    return Response(answer(model, await request.body()), media_type="application/json")
