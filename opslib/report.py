"""An executed notebook as one readable HTML page: code folded, figures inside, nothing fetched when it is opened."""

from pathlib import Path

import nbformat
from jinja2 import FileSystemLoader
from nbconvert import HTMLExporter
from nbconvert.preprocessors import CoalesceStreamsPreprocessor

_MARKER = "papermill-error-cell-tag"
_PROGRESS = "application/vnd.jupyter.widget-view+json"


def write_report(executed: Path, report: Path, *, run_id: str, verdict: str, failed: bool) -> Path:
    """Write `report` (HTML) from the notebook `executed`, headed by the verdict on the run."""
    notebook = without_markers(nbformat.read(executed, as_version=4))
    notebook.metadata["opslib"] = {"run_id": run_id, "verdict": verdict, "failed": failed}
    for cell in notebook.cells:
        cell["outputs"] = [output for output in cell.get("outputs", []) if not _is_unfinished_bar(output)]
    exporter = HTMLExporter(
        extra_loaders=[FileSystemLoader(Path(__file__).parent)],
        template_file="report.html.j2",
        preprocessors=[CoalesceStreamsPreprocessor],
    )
    page, _ = exporter.from_notebook_node(notebook, {"metadata": {"name": f"Run {run_id}"}})
    report.write_text(page, encoding="utf-8")
    return report


def without_markers(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Take out the cells that papermill puts into a notebook that failed: the report's head says it better."""
    notebook.cells = [cell for cell in notebook.cells if _MARKER not in cell.metadata.get("tags", [])]
    return notebook


def _is_unfinished_bar(output: nbformat.NotebookNode) -> bool:
    """Say whether `output` is a live widget, of which a page without JavaScript would show only the first state."""
    return _PROGRESS in output.get("data", {})
