"""Run a parameterised notebook through papermill, and leave a report and an empty account behind.

`python -m opslib run train_and_deploy.ipynb -p epochs 20` ends here. Papermill stops at the first failing cell, so
what a run created is deleted from out here, where it happens however the notebook ended.
"""

import contextlib
import difflib
import json
import logging
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nbformat
import papermill
from papermill.exceptions import PapermillException, PapermillExecutionError, strip_color

from opslib.aws.ledger import Run, start_run
from opslib.aws.sweeping import sweep
from opslib.errors import ConfigurationError
from opslib.report import without_markers, write_report

_FIGURES = {
    "test_accuracy": "test accuracy {:.3f}",
    "chance_accuracy": "chance {:.3f}",
    "endpoint_p50_ms": "endpoint p50 {:.0f} ms",
    "lambda_p50_ms": "Lambda p50 {:.0f} ms",
    "canary_success_rate": "{:.1%} answered during the canary",
    "failed_share": "{:.1%} failed until the bad model was taken back",
    "knee_rps": "one instance takes {:.0f} requests/s",
    "most_instances": "1 to {} instances and back",
    "burst_throttled": "{} of a burst throttled",
}
"""Keys of summary.json that the last lines of a run name, when a notebook wrote them."""

_HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
_CELL_LINE = re.compile(r"^Cell In\[\d+\], line (\d+)", re.MULTILINE)
"""The line of the cell that raised, as IPython names it in a traceback."""

_TRUE, _FALSE = {"true", "1", "yes"}, {"false", "0", "no"}


@dataclass(frozen=True)
class Outcome:
    """How a run ended: its directory, its summary, and, if a cell raised, which one and why ("" when none did)."""

    run_id: str
    directory: Path
    summary: dict[str, Any]
    failure: str

    @property
    def report(self) -> Path:
        """The readable page of the run."""
        return self.directory / "report.html"

    @property
    def verdict(self) -> str:
        """What there is to say of the run at its end: why it failed, or its figures."""
        if self.failure:
            return f"failed   {self.failure}"
        figures = [form.format(self.summary[key]) for key, form in _FIGURES.items() if key in self.summary]
        spent = f"run {self.run_id} in {self.summary['total_seconds']:.0f} s"
        return f"done     {spent}: {', '.join(figures) or 'no figures'}"


def declared_parameters(notebook: Path) -> dict[str, dict[str, str]]:
    """Return the parameters of `notebook` by name, each with `inferred_type_name`, `default` and `help`.

    Raises:
        ConfigurationError: there is no such notebook.
    """
    if not notebook.is_file():
        raise ConfigurationError(f"there is no notebook {notebook}", hint=_notebooks_like(notebook))
    with _quiet_papermill():
        return papermill.inspect_notebook(str(notebook))


def _notebooks_like(notebook: Path) -> str:
    known = sorted((*Path().glob("*.ipynb"), *Path().glob("notebooks/*.ipynb")))
    same = [str(path) for path in known if path.name == notebook.name]
    close = same or difflib.get_close_matches(str(notebook), map(str, known), n=1)
    return f"did you mean {close[0]}?" if close else "name an .ipynb file, e.g. train_and_deploy.ipynb"


def typed_parameters(notebook: Path, values: Mapping[str, str]) -> dict[str, Any]:
    """Return `values` with the types that the notebook declares.

    Papermill only logs a warning for a parameter it does not know, and the run goes on with the defaults.

    Raises:
        ConfigurationError: a name is not a parameter of the notebook, or a value does not fit its type.
    """
    declared = declared_parameters(notebook)
    for name in values:
        if name not in declared:
            close = difflib.get_close_matches(name, declared, n=1)
            meant = f"did you mean {close[0]!r}? " if close else ""
            raise ConfigurationError(
                f"{notebook.name} has no parameter {name!r}", hint=f"{meant}its parameters: {', '.join(declared)}"
            )
    return {name: _typed(name, value, declared[name]["inferred_type_name"]) for name, value in values.items()}


def _typed(name: str, value: str, kind: str) -> Any:
    try:
        if kind == "bool":
            return {**dict.fromkeys(_TRUE, True), **dict.fromkeys(_FALSE, False)}[value.lower()]
        return {"int": int, "float": float}.get(kind, str)(value)
    except (KeyError, ValueError) as error:
        raise ConfigurationError(f"parameter {name} takes {kind}, not {value!r}") from error


def execute(notebook: Path, values: Mapping[str, str], *, home: Path = Path("runs")) -> Outcome:
    """Execute `notebook`, sweep what it made, and write notebook, report.html and summary.json under `home`/<run id>.

    With the parameter `keep` true, a run that completed is left standing. A run that failed is always swept.

    Raises:
        ConfigurationError: a parameter is unknown or of the wrong type; nothing was started.
        KeyboardInterrupt: the run was interrupted (SIGINT, SIGTERM, SIGHUP); it was swept before this is raised.
    """
    parameters = typed_parameters(notebook, values)
    run = start_run(notebook.stem, run_id=parameters.get("run_id", ""), home=home)
    started = time.monotonic()
    failure = "the run was interrupted"
    with _interrupted_by_sigterm():
        try:
            failure = _execute_cells(notebook, run, parameters)
        finally:
            keep = bool(parameters.get("keep")) and not failure
            with _undisturbed():
                outcome = _clean_up(notebook, run, failure, keep=keep, started=started)
    return outcome


def _clean_up(notebook: Path, run: Run, failure: str, *, keep: bool, started: float) -> Outcome:
    """Sweep, and write what there is to say of the run: summary and report."""
    leftovers = [] if keep else sweep(run).leftovers
    summary = write_summary(
        run,
        status="failed" if failure else "completed",
        failure=failure,
        kept=keep,
        leftovers=[str(left) for left in leftovers],
        total_seconds=round(time.monotonic() - started, 1),
    )
    outcome = Outcome(run.run_id, run.directory, summary, failure)
    executed = run.directory / notebook.name
    if executed.exists():
        write_report(executed, outcome.report, run_id=run.run_id, verdict=outcome.verdict, failed=bool(failure))
    return outcome


def _interrupted_by_sigterm() -> contextlib.AbstractContextManager[None]:
    """Let SIGTERM and SIGHUP interrupt as Ctrl-C does: what a run has made is billed until it is swept."""
    return _handling((signal.SIGTERM, signal.SIGHUP), signal.default_int_handler)


def _undisturbed() -> contextlib.AbstractContextManager[None]:
    """Let no signal but SIGKILL and SIGQUIT end a sweep: people press Ctrl-C twice."""
    return _handling((signal.SIGINT, signal.SIGTERM, signal.SIGHUP), lambda *_: None)


@contextlib.contextmanager
def _handling(numbers: tuple[signal.Signals, ...], handler: Callable[[int, Any], Any]) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():  # only that one gets signals
        yield
        return
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, previous in before.items():
            signal.signal(number, previous if previous is not None else signal.SIG_DFL)


def enter_project() -> None:
    """Leave the project's folder `notebooks`, where JupyterLab starts a chapter's kernel, for the project's own folder.

    So `photos` and `runs` are the same folders for all chapters, and for `python -m opslib`. From anywhere else the
    working directory stays as it is.
    """
    here, project = Path.cwd(), Path(__file__).resolve().parent.parent
    if here.resolve() == project / "notebooks":
        os.chdir(project)


def write_summary(run: Run, **figures: Any) -> dict[str, Any]:
    """Merge `figures` into the run's summary.json, all or nothing, and return the whole of it."""
    path = run.directory / "summary.json"
    summary = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"run_id": run.run_id}
    summary.update(figures)
    unfinished = path.with_suffix(".json.part")
    unfinished.write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    unfinished.replace(path)
    return summary


def _execute_cells(notebook: Path, run: Run, parameters: Mapping[str, Any]) -> str:
    """Run the cells; return "" or, if one raised, which one and why."""
    executed = run.directory / notebook.name
    # A log file has no use for a bar that is redrawn; a line every ten seconds tells that the run is alive.
    bar = {"mininterval": 0.5 if sys.stderr.isatty() else 10.0, "ncols": 79, "desc": notebook.stem}
    try:
        with _quiet_papermill():
            papermill.execute_notebook(
                str(notebook),
                str(executed),
                parameters={**parameters, "run_id": run.run_id},
                kernel_name="python3",
                progress_bar=bar,
                cwd=Path.cwd(),
                # The kernel's own log would write over the bar; what a cell prints or raises is in the notebook.
                extra_arguments=["--IPKernelApp.log_level=CRITICAL"],
            )
    except PapermillExecutionError as error:
        return _told(error, executed)
    except (PapermillException, RuntimeError) as error:  # the kernel died, or never came up
        return f"{type(error).__name__}: {error}"
    return ""


def _told(error: PapermillExecutionError, executed: Path) -> str:
    """Say which cell raised, in which line, and what: the heading above tells people more than the cell's number."""
    above = without_markers(nbformat.read(executed, as_version=4)).cells[: error.cell_index]
    headings = [_HEADING.findall(cell.source) for cell in above if cell.cell_type == "markdown"]
    heading = next((found[-1] for found in reversed(headings) if found), "the beginning")
    source = error.source.strip().splitlines() or [""]
    number = _CELL_LINE.search(strip_color("\n".join(error.traceback)))
    line = source[int(number[1]) - 1] if number and int(number[1]) <= len(source) else source[0]
    return f"under {heading!r}, at `{line.strip()}`\n{error.ename}: {error.evalue}"


@contextlib.contextmanager
def _quiet_papermill() -> Iterator[None]:
    """Keep papermill's own log lines out of the terminal: they repeat what the bar and the last lines say."""
    logger = logging.getLogger("papermill")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)
