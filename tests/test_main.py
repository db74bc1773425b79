"""The command line: python -m opslib where | runs | sweep | version."""

import subprocess
import sys
from pathlib import Path

import pytest

import opslib
from opslib.__main__ import main
from opslib.aws import storage
from opslib.aws.ledger import start_run


def test_version(capsys) -> None:
    assert main(["version"]) == 0
    assert capsys.readouterr().out == f"opslib {opslib.__version__}\n"


def test_where(rehearsal, capsys) -> None:
    assert main(["where"]) == 0
    assert f"Rehearsal on this machine ({rehearsal.endpoint_url}" in capsys.readouterr().out


def test_runs_are_listed_and_swept(rehearsal, tmp_path, capsys) -> None:
    home = ["--home", str(tmp_path)]
    assert main([*home, "runs"]) == 0
    assert "no runs" in capsys.readouterr().out
    run = start_run(home=tmp_path)
    storage.ensure_bucket(run)
    assert main([*home, "runs"]) == 0
    assert f"{run.run_id}  -             1 written down" in capsys.readouterr().out
    (run.directory / "summary.json").write_text('{"status": "completed", "kept": true}')
    assert main([*home, "runs"]) == 0
    assert f"{run.run_id}  kept" in capsys.readouterr().out
    assert main([*home, "sweep", run.run_id]) == 0
    out = capsys.readouterr().out
    assert out.startswith("Rehearsal on this machine")
    assert f"deleted  bucket {run.name('data')}" in out
    assert main([*home, "runs"]) == 0
    assert f"{run.run_id}  completed" in capsys.readouterr().out


def test_what_is_left_shows_in_the_exit_code(rehearsal, tmp_path, capsys, monkeypatch) -> None:
    run = start_run(home=tmp_path)
    run.record("something-new", "x")
    assert main(["--home", str(tmp_path), "sweep", run.run_id]) == 1
    assert "LEFT     something-new x" in capsys.readouterr().out


def test_a_wrong_run_id_is_a_usage_error(rehearsal, tmp_path, capsys) -> None:
    assert main(["--home", str(tmp_path), "sweep", "../x"]) == 2
    assert "hint:" in capsys.readouterr().err


def test_a_run_that_nobody_knows_is_not_called_swept(rehearsal, tmp_path, capsys) -> None:
    assert main(["--home", str(tmp_path), "sweep", "20261122-190312-k3f9"]) == 2
    assert "there is no run '20261122-190312-k3f9'" in capsys.readouterr().err


def test_aws_that_cannot_be_reached_is_a_failure(rehearsal, capsys, monkeypatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    assert main(["where"]) == 1
    assert "AWS_ENDPOINT_URL" in capsys.readouterr().err


def test_without_a_command_it_says_how(capsys) -> None:
    with pytest.raises(SystemExit) as ended:
        main([])
    assert ended.value.code == 2


def test_version_does_not_wait_for_the_sdk() -> None:
    """Commands import what they need: `version` starts in a blink."""
    script = "import sys; from opslib.__main__ import main; main(['version']); print('boto3' in sys.modules)"
    root = Path(opslib.__file__).parent.parent
    done = subprocess.run([sys.executable, "-c", script], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [f"opslib {opslib.__version__}", "False"]
