"""A container is a directory, a Python of its own, and an environment that holds nothing of the user's."""

import zipfile

import pytest

from opslib.rehearsal.processes.containers import build_container
from opslib.rehearsal.processes.keeper import start_process


@pytest.fixture
def container(tmp_path):
    return build_container(tmp_path / "container")


def run(container, *command, **variables) -> list[str]:
    lines = []
    environment = container.environment(variables)
    assert start_process(command, env=environment, cwd=container.root, on_line=lines.append).wait() == 0, lines
    return lines


@pytest.mark.parametrize(
    ("text", "relocated"),
    [
        ("/opt/ml", "ROOT"),
        ("cd /opt/ml/input && X='/opt/ml/model'", "cd ROOT/input && X='ROOT/model'"),
        ("/opt/mlflow /opt/ml-old /home/opt/ml s3://opt/ml", "/opt/mlflow /opt/ml-old /home/opt/ml s3://opt/ml"),
    ],
)
def test_opt_ml_is_relocated_where_it_is_that_path(container, text, relocated):
    assert container.relocate(text) == relocated.replace("ROOT", str(container.root))


def test_the_environment_is_the_images_not_the_users(container, monkeypatch):
    monkeypatch.setenv("AWS_PROFILE", "mine")
    monkeypatch.setenv("PYTHONPATH", "/mine")
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy:1")
    environment = container.environment({"DATA": "/opt/ml/input"})
    assert "AWS_PROFILE" not in environment
    assert "PYTHONPATH" not in environment
    assert environment["HTTPS_PROXY"] == "http://proxy:1"
    assert environment["DATA"] == f"{container.root}/input"
    assert environment["HOME"].startswith(str(container.directory))


def test_its_python_sees_the_installed_packages_under_a_prefix_of_its_own(container):
    import psutil

    code = "import sys, psutil; print(sys.prefix); print(psutil.__file__)"
    prefix, path = run(container, "python3", "-c", code)
    assert prefix == str(container.directory / "venv")
    assert path == psutil.__file__


def test_what_pip_installs_stays_in_the_container_and_wins(container, tmp_path):
    wheel = tmp_path / "psutil-99.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("psutil/__init__.py", "__version__ = '99.0'")
        archive.writestr("psutil-99.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: psutil\nVersion: 99.0\n")
        archive.writestr(
            "psutil-99.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr("psutil-99.0.dist-info/RECORD", "")
    run(container, "pip3", "install", "--no-index", "--no-deps", str(wheel))
    assert run(container, "python3", "-c", "import psutil; print(psutil.__version__)") == ["99.0"]
    import psutil

    assert psutil.__version__ != "99.0"
