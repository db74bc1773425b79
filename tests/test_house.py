"""The rules of the house: imports run one way, there is one seam to AWS, notebooks read like a lecture."""

import ast
import json
from pathlib import Path

import papermill
import pytest

ROOT = Path(__file__).parent.parent
NOTEBOOKS = [ROOT / "train_and_deploy.ipynb", *sorted((ROOT / "notebooks").glob("*.ipynb"))]
SHOWN = {"opslib.plots", "opslib.widgets", "opslib.notebook"}
FORBIDDEN = {
    "vision": {"boto3", "botocore", "sagemaker", "moto", "opslib.aws", "opslib.rehearsal"} | SHOWN,
    "aws": {"torch", "torchvision", "timm", "moto", "opslib.vision", "opslib.rehearsal"} | SHOWN,
    "rehearsal": {"torchvision", "timm", "sagemaker", "opslib.aws", "opslib.vision"} | SHOWN,
}


def imported_modules(source: Path) -> set[str]:
    """Return every module that a file imports, at any depth of its code."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{source}: relative import"
            names.add(node.module)
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return names


@pytest.mark.parametrize("half", FORBIDDEN)
def test_imports_run_one_way(half: str) -> None:
    sources = sorted((ROOT / "opslib" / half).rglob("*.py"))
    assert len(sources) > 3
    for source in sources:
        for module in imported_modules(source):
            clash = [name for name in FORBIDDEN[half] if module == name or module.startswith(name + ".")]
            assert not clash, f"{source.relative_to(ROOT)} imports {module}"


def test_one_place_makes_boto3_clients() -> None:
    callers = [
        source.name
        for source in sorted((ROOT / "opslib" / "aws").rglob("*.py"))
        for node in ast.walk(ast.parse(source.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and getattr(node.func, "attr", "") in {"client", "resource"}
    ]
    assert set(callers) == {"session.py"}


def test_files_stay_readable() -> None:
    tracked = [*ROOT.glob("*.py"), *(ROOT / "opslib").rglob("*.py"), *(ROOT / "tests").rglob("*.py")]
    long = {path.name: lines for path in tracked if (lines := len(path.read_text(encoding="utf-8").splitlines())) > 400}
    assert long == {}


def code_cells(notebook: Path) -> list[dict]:
    """Return the code cells of a notebook."""
    return [cell for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.name)
def test_notebooks_are_committed_clean_and_readable(notebook: Path) -> None:
    cells = code_cells(notebook)
    assert len(cells) <= 25
    for cell in cells:
        source = "".join(cell["source"])
        assert cell["outputs"] == []
        assert cell["execution_count"] is None
        assert len(source.splitlines()) <= (20 if "parameters" in cell["metadata"].get("tags", []) else 8), source
        assert "arn:" not in source
        tree = ast.parse(source)  # fails on `!` and `%`
        assert not [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.ClassDef | ast.While)], source


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.name)
def test_papermill_sees_every_parameter(notebook: Path) -> None:
    """A parameter line with a second `=`, even in its comment, vanishes from papermill's sight."""
    cell = next(cell for cell in code_cells(notebook) if "parameters" in cell["metadata"].get("tags", []))
    declared = [node.target.id for node in ast.parse("".join(cell["source"])).body if isinstance(node, ast.AnnAssign)]
    seen = papermill.inspect_notebook(str(notebook))
    assert list(seen) == declared
    assert all(parameter["help"] for parameter in seen.values())
