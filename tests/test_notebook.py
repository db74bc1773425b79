"""The runner of notebooks: parameters are checked, failures are told, every run leaves a report and is swept."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest

from opslib import notebook
from opslib.errors import ConfigurationError

PARAMETERS = "\n".join(
    [
        "epochs: int = 5  # how long",
        "rate: float = 0.1  # how fast",
        "photos: str = 'sample'  # where from",
        "keep: bool = False  # leave it standing",
        "run_id: str = ''  # empty for a new run",
    ]
)


def wait_until(condition, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


@pytest.fixture
def make_notebook(tmp_path: Path):
    def make(*cells: str) -> Path:
        parameters = nbformat.v4.new_code_cell(PARAMETERS, metadata={"tags": ["parameters"]})
        book = nbformat.v4.new_notebook(
            cells=[parameters, nbformat.v4.new_markdown_cell("## Work"), *map(nbformat.v4.new_code_cell, cells)],
            metadata={"kernelspec": {"name": "python3", "language": "python", "display_name": "Python 3"}},
        )
        nbformat.write(book, tmp_path / "book.ipynb")
        return tmp_path / "book.ipynb"

    return make


def test_parameters_take_the_declared_types(make_notebook) -> None:
    values = {"epochs": "7", "rate": "1e-3", "photos": "2024", "keep": "TRUE"}
    typed = notebook.typed_parameters(make_notebook(), values)
    assert typed == {"epochs": 7, "rate": 1e-3, "photos": "2024", "keep": True}


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [("epoch", "7", "did you mean 'epochs'"), ("epochs", "many", "takes int"), ("keep", "perhaps", "takes bool")],
)
def test_wrong_parameters_are_refused_before_anything_starts(make_notebook, tmp_path, name, value, said) -> None:
    with pytest.raises(ConfigurationError, match=said):
        notebook.execute(make_notebook(), {name: value}, home=tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


def test_a_missing_notebook_is_named(tmp_path) -> None:
    with pytest.raises(ConfigurationError, match=r"nowhere\.ipynb"):
        notebook.declared_parameters(tmp_path / "nowhere.ipynb")


@pytest.mark.parametrize("typo", ["notebooks/01_trainig.ipynb", "01_training.ipynb"])
def test_a_notebook_that_is_nearly_there_is_suggested(typo, monkeypatch) -> None:
    monkeypatch.chdir(Path(notebook.__file__).parents[1])
    with pytest.raises(ConfigurationError, match=r"did you mean notebooks/01_training\.ipynb\?"):
        notebook.declared_parameters(Path(typo))


def test_a_completed_run_leaves_notebook_report_and_summary(make_notebook, tmp_path, rehearsal) -> None:
    book = make_notebook("print('answer', epochs * 6)")
    outcome = notebook.execute(book, {"epochs": "7"}, home=tmp_path / "runs")
    assert outcome.failure == ""
    summary = json.loads((outcome.directory / "summary.json").read_text())
    assert summary["status"] == "completed"
    assert summary["leftovers"] == []
    page = outcome.report.read_text()
    assert "answer 42" in page
    assert "<details" in page
    assert "<script src" not in page  # opens without the internet
    assert (outcome.directory / "book.ipynb").exists()


def test_a_run_that_is_kept_says_so(make_notebook, tmp_path, rehearsal, monkeypatch, capsys) -> None:
    from opslib.__main__ import main

    home = tmp_path / "runs"
    assert main(["--home", str(home), "run", str(make_notebook("1 + 1")), "-p", "keep", "true"]) == 0
    (run,) = home.iterdir()
    assert json.loads((run / "summary.json").read_text())["kept"] is True
    assert f"python -m opslib sweep {run.name}" in capsys.readouterr().out


def test_a_failing_cell_is_told_and_the_run_is_swept(make_notebook, tmp_path, rehearsal) -> None:
    from opslib.aws import session

    book = make_notebook(
        "from pathlib import Path\nfrom opslib.aws import ledger, storage\n"
        f"run = ledger.start_run('book', run_id=run_id, home=Path({str(tmp_path / 'runs')!r}))\n"
        "bucket = storage.ensure_bucket(run)",
        "import json\ntext = '{'\njson.loads(text)",  # the last frames are the library's, not the cell's
    )
    outcome = notebook.execute(book, {"keep": "true"}, home=tmp_path / "runs")
    assert "JSONDecodeError: Expecting property name" in outcome.failure
    assert outcome.failure.startswith("under 'Work', at `json.loads(text)`\n")
    assert outcome.summary["status"] == "failed"
    assert outcome.summary["leftovers"] == []
    assert outcome.run_id not in str(session.client("s3").list_buckets()["Buckets"])
    page = outcome.report.read_text()
    assert f"Run {outcome.run_id} failed" in page
    assert "under 'Work'" in page
    assert "An Exception was encountered" not in page  # papermill's own marks


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_run_that_is_interrupted_twice_is_swept(make_notebook, tmp_path, rehearsal, number) -> None:
    from opslib.aws import session

    up, home = tmp_path / "up", tmp_path / "runs"
    make_notebook(
        "from pathlib import Path\nimport time\nfrom opslib.aws import ledger, storage\n"
        f"run = ledger.start_run('book', run_id=run_id, home=Path({str(home)!r}))\n"
        f"storage.ensure_bucket(run)\nPath({str(up)!r}).touch()\ntime.sleep(600)"
    )
    # A shell's background job ignores SIGINT, and so may the one that runs the tests.
    program = (
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from opslib.__main__ import main; sys.exit(main())"
    )
    arguments = ["--home", str(home), "run", str(tmp_path / "book.ipynb")]
    command = [sys.executable, "-c", program, *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as running:
        wait_until(up.exists)
        running.send_signal(number)
        (run_id,) = (directory.name for directory in home.iterdir())
        wait_until(lambda: run_id not in str(session.client("s3").list_buckets()["Buckets"]))
        running.send_signal(number)  # people press Ctrl-C again: the sweep goes on
        assert running.wait(60) == 130
        assert running.stdout.read().startswith("failed   the run was interrupted")
        assert "Traceback" not in running.stderr.read()
    (summary,) = [json.loads(path.read_text()) for path in home.glob("*/summary.json")]
    assert (summary["status"], summary["leftovers"]) == ("failed", [])


def test_a_chapter_works_in_the_projects_folder_wherever_its_kernel_started(tmp_path, monkeypatch) -> None:
    project = Path(notebook.__file__).parent.parent
    monkeypatch.chdir(project / "notebooks")
    notebook.enter_project()
    assert Path.cwd() == project
    notebook.enter_project()
    assert Path.cwd() == project
    monkeypatch.chdir(tmp_path)
    notebook.enter_project()
    assert Path.cwd() == tmp_path
