"""The reference's handler under TorchServe."""

import os
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(os.environ["BENCH_PEERS"])))
from reference_handler import answer, model_fn


class Handler:
    """TorchServe's contract: `initialize` once a worker, `handle` for each batch."""

    def initialize(self, _context: Any) -> None:
        """Load the model."""
        self.model = model_fn(os.environ["BENCH_MODEL"])

    def handle(self, rows: list[dict[str, Any]], _context: Any) -> list[str]:
        """Answer each request of a batch."""
        return [answer(self.model, bytes(row.get("body") or row.get("data"))) for row in rows]


_handler = Handler()


def handle(data: Any, context: Any) -> Any:
    """Be what TorchServe calls, with no data to begin with."""
    if not hasattr(_handler, "model"):
        _handler.initialize(context)
    return _handler.handle(data, context) if data else None
