"""hpo.py, as a person, as SageMaker and as a mistake would call it."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import hpo
from opslib.specs import METRIC_REGEXES, TrainingSpec
from opslib.vision.samples import draw_sample
from opslib.vision.threads import single_threaded_torch
from tests.hostile import good_photo

SAGEMAKER = ("SM_CHANNEL_TRAINING", "SM_MODEL_DIR", "SM_OUTPUT_DATA_DIR", "SM_OUTPUT_DIR", "SM_HOSTS", "WORLD_SIZE")
EVERY_METRIC = {
    "epoch", "train_loss", "train_accuracy", "valid_loss", "valid_accuracy", "valid_photos", "valid_ece",
    "valid_predicted_classes", "valid_score_spread", "chance_loss", "chance_accuracy", "test_photos", "test_loss",
    "test_accuracy", "test_top5", "test_ece",
}  # fmt: skip


@pytest.fixture(autouse=True)
def _outside_sagemaker(monkeypatch):
    for name in SAGEMAKER:
        monkeypatch.delenv(name, raising=False)
    with single_threaded_torch():
        yield


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos") / "sample"
    draw_sample(folder, breeds=4, per_breed={"train": 3, "valid": 1, "test": 1})
    return folder


@pytest.fixture(scope="module")
def trained(photos, tmp_path_factory):
    """A run on the command line: what it printed, and the folders that it left."""
    folder = tmp_path_factory.mktemp("run")
    arguments = ["--data", photos, "--model_dir", folder / "model", "--output_dir", folder / "output"]
    arguments += ["--backbone", "efficientnet_lite0", "--epochs", "3", "--learning_rate", "0.001", "--batch_size", "4"]
    run = subprocess.run([sys.executable, "hpo.py", *arguments], capture_output=True, text=True, check=True)
    assert run.stderr == ""
    return run.stdout, folder


def test_every_metric_is_found_in_what_is_printed(trained):
    printed, folder = trained
    rows = [json.loads(line) for line in (folder / "output" / "metrics.jsonl").read_text().splitlines()]
    report = json.loads((folder / "output" / "report.json").read_text())
    found = {name: [float(value) for value in re.findall(regex, printed)] for name, regex in METRIC_REGEXES.items()}
    assert [row["epoch"] for row in rows] == [1, 2, 3]
    assert found["train:loss"] == pytest.approx([row["train_loss"] for row in rows], abs=1e-5)
    assert found["valid:loss"][:-1] == pytest.approx([row["valid_loss"] for row in rows], abs=1e-5)
    assert found["valid:loss"][-1] == pytest.approx(min(row["valid_loss"] for row in rows), abs=1e-5)
    assert found["test:accuracy"] == pytest.approx([report["test_accuracy"]], abs=1e-4)
    assert found["test:top5"] == pytest.approx([report["test_top5"]], abs=1e-4)
    assert report["photos"] == {"train": 12, "valid": 4, "test": 4}
    description = json.loads((folder / "model" / "model.json").read_text())
    assert description["metrics"] == report["metrics"]
    assert set(report["metrics"]) >= EVERY_METRIC


def test_model_folder_can_be_deployed_as_it_is(trained):
    _, folder = trained
    program = (
        "import sys, inference; model = inference.model_fn(sys.argv[1]);"
        "photo = inference.input_fn(open(sys.argv[2], 'rb').read(), 'image/jpeg');"
        "print(inference.output_fn(inference.predict_fn(photo, model), 'application/json;verbose')[0])"
    )
    photo = folder / "photo.jpg"
    photo.write_bytes(good_photo())
    code = folder / "model" / "code"
    arguments = [sys.executable, "-c", program, folder / "model", photo]
    answered = subprocess.run(arguments, cwd=code, capture_output=True, text=True, check=True)
    description = json.loads((folder / "model" / "model.json").read_text())
    assert json.loads(answered.stdout)["predicted_label"] in description["classes"]
    assert description["training"]["backbone"] == "efficientnet_lite0"
    assert "test_accuracy" in description["metrics"]
    assert (code / "requirements.txt").read_text().startswith("timm")


def test_arguments_are_the_specifications_fields():
    parser = hpo.build_parser({"SM_CHANNEL_TRAINING": "/in", "SM_MODEL_DIR": "/model"})
    arguments = vars(parser.parse_args([]))
    assert TrainingSpec(**{name: arguments[name] for name in TrainingSpec().hyperparameters()}) == TrainingSpec()
    changed = dict.fromkeys(TrainingSpec().hyperparameters(), "7")
    line = [part for name, value in changed.items() for part in (f"--{name}", value)]
    assert TrainingSpec(**{name: vars(parser.parse_args(line))[name] for name in changed}).hyperparameters() == {
        name: "7.0" if name == "learning_rate" else "7" for name in changed
    }


def test_sagemakers_variables_are_defaults_only():
    variables = {"SM_CHANNEL_TRAINING": "/in", "SM_MODEL_DIR": "/model", "SM_OUTPUT_DATA_DIR": "/out"}
    arguments = hpo.build_parser(variables).parse_args(["--data", "mine"])
    assert (arguments.data, arguments.model_dir, arguments.output_dir) == (Path("mine"), Path("/model"), Path("/out"))


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--momentum", "0.9"], "unrecognized arguments: --momentum"),
        (["--epoch", "3"], "unrecognized arguments: --epoch"),
        (["--epochs", "many"], "invalid int value: 'many'"),
        (["--epochs", "0"], "epochs is 0"),
        (["--learning_rate", "nan"], "learning_rate is nan"),
        (["--backbone", "resnet5"], "no backbone 'resnet5'"),
        (["--data", "nowhere"], "no folder nowhere"),
        (["--num_workers", "-1"], "num_workers is -1"),
        (["--output_dir", "hpo.py"], "File exists: hpo.py"),
        (["--output_dir", "TMP", "--model_dir", "hpo.py/model"], "Not a directory: hpo.py/model"),
        (["--backbone", "efficientnet_lite0", "--checkpoint_dir", "hpo.py"], "Not a directory: hpo.py/training"),
    ],
)
def test_wrong_arguments_end_with_the_reason_in_the_failure_file(
    photos, tmp_path, monkeypatch, capsys, arguments, reason
):
    monkeypatch.setenv("SM_OUTPUT_DIR", str(tmp_path))
    line = ["--data", str(photos), "--model_dir", str(tmp_path / "model"), *arguments]
    assert hpo.main([str(tmp_path) if part == "TMP" else part for part in line]) == 1
    assert reason in (tmp_path / "failure").read_text()
    assert reason in capsys.readouterr().err


def test_folders_are_required_outside_sagemaker(capsys):
    assert hpo.main([]) == 1
    assert "--data, --model_dir" in capsys.readouterr().err


def test_unforeseen_errors_reach_the_failure_file_too(tmp_path, monkeypatch):
    monkeypatch.setenv("SM_OUTPUT_DIR", str(tmp_path))
    monkeypatch.setattr(hpo, "run", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        hpo.main(["--data", "x", "--model_dir", "y"])
    assert (tmp_path / "failure").read_text() == "ZeroDivisionError: division by zero"


def test_consequence_does_not_hide_the_first_reason(tmp_path):
    variables = {"SM_OUTPUT_DIR": str(tmp_path)}
    hpo.write_failure("rank 1 was lost", variables, is_consequence=True)
    assert (tmp_path / "failure").read_text() == "rank 1 was lost"
    hpo.write_failure("a photo is broken", variables)
    hpo.write_failure("rank 0 was lost", variables, is_consequence=True)
    assert (tmp_path / "failure").read_text() == "a photo is broken"


def test_hosts_that_no_launcher_has_joined_refuse_to_train(monkeypatch, capsys):
    monkeypatch.setenv("SM_HOSTS", '["algo-1", "algo-2"]')
    assert hpo.main([]) == 1
    assert "one of 2 hosts, but no launcher" in capsys.readouterr().err


def test_launcher_that_says_half_of_it_is_refused(monkeypatch, capsys, photos, tmp_path):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert hpo.main(["--data", str(photos), "--model_dir", str(tmp_path)]) == 1
    assert "the launcher's variables are not complete: 'RANK'" in capsys.readouterr().err
