"""What moves in a notebook: an upload, a training job, an endpoint on its way, and a box for a photo of your own.

What shows progress is a display that is rewritten in place, not an ipywidget: so the executed notebook and its report
keep its last state, where a widget would leave nothing behind.
"""

import html
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import ipywidgets
from IPython.display import HTML, display
from matplotlib.figure import Figure

from opslib import plots
from opslib.errors import OpslibError

RUNNING, DONE, FAILED = "#0b6e99", "#22aa77", "#cc3333"
_COLOURS = {"Completed": DONE, "InService": DONE, "Failed": FAILED, "Stopped": FAILED}
_REDRAW_SECONDS = 0.2


class TrainingProgress(Protocol):
    """What a look at a training job tells (`opslib.aws.training.follow_training`)."""

    status: str
    stage: str
    elapsed_seconds: float
    lines: Sequence[str]
    metrics: Sequence[dict[str, Any]]


class TuningProgress(Protocol):
    """What a look at a tuning job tells (`opslib.aws.tuning.follow_tuning`)."""

    status: str
    elapsed_seconds: float
    trials: Sequence[Any]
    max_jobs: int
    best: Any


class EndpointProgress(Protocol):
    """What a look at an endpoint tells (`opslib.aws.endpoints.deploy_model`)."""

    status: str
    elapsed_seconds: float


class LoadProgress(Protocol):
    """What a look at a load tells (`opslib.aws.load.run_load`)."""

    elapsed_seconds: float
    seconds: float
    requests: int
    sent: int
    counts: Counter[str]
    recent_p95_ms: float


class ShiftProgress(Protocol):
    """What a look at an endpoint that changes its model tells (`opslib.aws.deployments.shift_model`)."""

    status: str
    stage: str
    elapsed_seconds: float


class _Line:
    """One line of the notebook, rewritten in place."""

    def __init__(self) -> None:
        self._display = display(HTML(""), display_id=True)

    def write(self, status: str, detail: str, log_line: str = "") -> None:
        colour = _COLOURS.get(status, RUNNING)
        log = f"<br><code>{html.escape(log_line)}</code>" if log_line else ""
        self._display.update(HTML(f"<b style='color:{colour}'>{html.escape(status)}</b> · {html.escape(detail)}{log}"))


def load_progress(*also: Callable[[Any], object]) -> Callable[[LoadProgress], None]:
    """Return a callback that shows a load in place: how much is sent, what became of it, and how long answers take.

    Args:
        also: Called with each look, too, e.g. a `scaling.InstanceWatch`.
    """
    line = _Line()

    def show(progress: LoadProgress) -> None:
        outcomes = ", ".join(f"{count:,} {outcome}" for outcome, count in progress.counts.most_common())
        status = "Completed" if progress.sent == progress.requests else "Sending"
        elapsed = min(progress.elapsed_seconds, progress.seconds)
        detail = f"{progress.sent:,} of {progress.requests:,} requests, {elapsed:.0f} of {progress.seconds:.0f} s"
        line.write(status, f"{detail}: {outcomes or 'none is back yet'}; p95 {progress.recent_p95_ms:.0f} ms")
        for callback in also:
            callback(progress)

    return show


def shift_progress() -> Callable[[ShiftProgress], None]:
    """Return a callback that shows in place how an endpoint changes its model."""
    line = _Line()

    def show(progress: ShiftProgress) -> None:
        stage = f", {progress.stage}" if progress.stage else ""
        line.write(progress.status, f"{progress.elapsed_seconds:.0f} s{stage}")

    return show


def upload_progress() -> Callable[[int, int], None]:
    """Return a callback `(files done, files in all)` that shows an upload in place."""
    line, started, drawn = _Line(), time.monotonic(), 0.0

    def show(done: int, total: int) -> None:
        nonlocal drawn
        now = time.monotonic()
        if done == total or now - drawn > _REDRAW_SECONDS:
            drawn = now
            line.write("Completed" if done == total else "Uploading", f"{done} of {total} files, {now - started:.0f} s")

    return show


def training_progress(*, classes: int) -> Callable[[TrainingProgress], None]:
    """Return a callback that shows a training job in place: its state, its last line, and the curves so far.

    Args:
        classes: number of classes, for the line of guessing.
    """
    line, figure = _Line(), display(HTML(""), display_id=True)
    drawn_rows, last_line = 0, ""

    def show(progress: TrainingProgress) -> None:
        nonlocal drawn_rows, last_line
        last_line = progress.lines[-1] if progress.lines else last_line
        if progress.status == "Completed":
            line.write(progress.status, f"{progress.elapsed_seconds:.0f} s, {len(progress.metrics)} epochs")
            figure.update(HTML(""))  # the next cell draws the curves from the job's own files
            return
        line.write(progress.status, f"{progress.stage} · {progress.elapsed_seconds:.0f} s", last_line)
        if len(progress.metrics) > max(drawn_rows, 1):
            drawn_rows = len(progress.metrics)
            figure.update(plots.learning_curves(progress.metrics, classes=classes))

    return show


def tuning_progress(*, classes: int) -> Callable[[TuningProgress], None]:
    """Return a callback that shows a tuning job in place: its trials so far, and the best of them.

    Args:
        classes: number of classes, for the line of guessing.
    """
    line, figure = _Line(), display(HTML(""), display_id=True)
    drawn: list[tuple[str, str, float | None]] = []

    def show(progress: TuningProgress) -> None:
        nonlocal drawn
        running = sum(trial.status == "InProgress" for trial in progress.trials)
        done = f"{len(progress.trials) - running} of {progress.max_jobs} trials ended, {running} running"
        best = f", best valid_loss {progress.best.valid_loss:.4f}" if progress.best else ""
        line.write(progress.status, f"{done}{best} · {progress.elapsed_seconds:.0f} s")
        if progress.status == "Completed":
            figure.update(HTML(""))  # the next cell draws them from the results
            return
        state = [(trial.name, trial.status, trial.valid_loss) for trial in progress.trials]
        if progress.best and state != drawn:
            drawn = state
            figure.update(plots.trials(progress, classes=classes))

    return show


class EndpointWatch:
    """A callback that shows an endpoint coming into service, and keeps how long that took."""

    def __init__(self) -> None:
        """Open the line of the notebook that is rewritten."""
        self.elapsed_seconds = 0.0
        self._line = _Line()

    def __call__(self, progress: EndpointProgress) -> None:
        """Show one look at the endpoint."""
        self.elapsed_seconds = progress.elapsed_seconds
        self._line.write(progress.status, f"{progress.elapsed_seconds:.1f} s")


def classify_box(classify: Callable[[bytes], Any]) -> ipywidgets.VBox:
    """Return a box to drop a photo into; `classify` takes its bytes and answers with a prediction that has `top`."""
    upload = ipywidgets.FileUpload(accept="image/*", multiple=False, description="Your photo")
    answer = ipywidgets.Output()

    def answered(change: dict[str, Any]) -> None:
        answer.clear_output(wait=True)
        if change["new"]:
            with answer:
                display(_answer(classify, bytes(change["new"][0]["content"])))

    upload.observe(answered, names="value")
    return ipywidgets.VBox([upload, answer])


def _answer(classify: Callable[[bytes], Any], photo: bytes) -> Figure | HTML:
    try:
        prediction = classify(photo)  # first: the endpoint's own words say best what is wrong with a photo
        return plots.answer(photo, prediction.top)
    except (OpslibError, OSError) as error:
        return HTML(f"<pre>{html.escape(str(error))}</pre>")
