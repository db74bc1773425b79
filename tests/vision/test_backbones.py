"""Backbones by name, their weights, and the folding of their BatchNorm."""

import urllib.error

import pytest
import torch
from torch import nn
from torchvision import models

from opslib.errors import ConfigurationError
from opslib.vision.backbones import build_backbone
from opslib.vision.folding import fold_batch_norm
from opslib.vision.model import Classifier, build_head
from opslib.vision.transforms import TransformSpec


def noise(count=2, size=64):
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def offline():
    return build_backbone("efficientnet_lite0")


def test_offline_backbone_has_real_weights_and_looks_at_the_whole_square(offline):
    assert offline.features == 1280
    assert offline.transform == TransformSpec(256, 1.0, "bicubic", (0.5,) * 3, (0.5,) * 3)
    untrained = build_backbone("efficientnet_lite0", pretrained=False)
    weights = offline.module.state_dict()
    assert len(weights) == 296 - 2
    assert not torch.equal(weights["conv_stem.weight"], untrained.module.state_dict()["conv_stem.weight"])
    assert torch.equal(weights["conv_stem.weight"], build_backbone("efficientnet_lite0").module.conv_stem.weight)


@pytest.mark.parametrize(
    ("name", "features", "size"),
    [
        ("resnet50", 2048, 224),
        ("mobilenet_v3_small", 1024, 224),
        ("timm/resnet18", 512, 224),
        ("mobilenetv3_small_050", 1024, 224),
    ],
)
def test_any_name_of_torchvision_or_timm(name, features, size):
    backbone = build_backbone(name, pretrained=False)
    assert (backbone.name, backbone.features, backbone.transform.size) == (name, features, size)
    assert backbone.module(noise()).shape == (2, features)
    assert not backbone.module.training
    assert not any(parameter.requires_grad for parameter in backbone.module.parameters())


def test_resnet50_has_torchvisions_view():
    transform = build_backbone("resnet50", pretrained=False).transform
    assert transform == TransformSpec(224, 224 / 232, "bilinear", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@pytest.mark.parametrize(("name", "meant"), [("resnet5", "resnet50"), ("eficientnet_lite0", "efficientnet_lite0")])
def test_unknown_names_get_a_suggestion(name, meant):
    with pytest.raises(ConfigurationError, match=rf"no backbone '{name}'(.|\n)*{meant}"):
        build_backbone(name)


@pytest.mark.parametrize("name", ["squeezenet1_0", "", "../../etc/passwd"])
def test_what_cannot_be_a_backbone_is_refused(name):
    with pytest.raises(ConfigurationError):
        build_backbone(name, pretrained=False)


@pytest.mark.parametrize("name", ["resnet18", "timm/resnet18"])
def test_weights_that_cannot_be_fetched_are_a_clear_error(name, monkeypatch):
    def fail(*arguments, **options):
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr(models.ResNet18_Weights.DEFAULT.__class__, "get_state_dict", fail)
    monkeypatch.setattr("timm.models._builder.load_pretrained", fail)
    with pytest.raises(ConfigurationError, match=r"no route to host(.|\n)*efficientnet_lite0"):
        build_backbone(name)


def test_weights_from_a_file(tmp_path):
    model = models.resnet18()
    torch.save(model.state_dict(), tmp_path / "resnet18.pth")
    backbone = build_backbone("resnet18", weights=tmp_path / "resnet18.pth")
    assert torch.equal(backbone.module.conv1.weight, model.conv1.weight)
    with pytest.raises(ConfigurationError, match="do not fit"):
        build_backbone("resnet34", weights=tmp_path / "resnet18.pth")
    (tmp_path / "page.pth").write_text("<html>")
    for missing in ("page.pth", "nowhere.pth"):
        with pytest.raises(ConfigurationError, match="not a state-dict file"):
            build_backbone("resnet18", weights=tmp_path / missing)


def test_folding_keeps_the_numbers_and_the_original(offline):
    before = {name: value.clone() for name, value in offline.module.state_dict().items()}
    folded = fold_batch_norm(offline.module, 64)
    assert not any(isinstance(layer, nn.BatchNorm2d) for layer in folded.modules())
    with torch.inference_mode():
        assert torch.allclose(folded(noise()), offline.module(noise()), atol=1e-3)
    assert all(torch.equal(value, before[name]) for name, value in offline.module.state_dict().items())


def test_networks_that_cannot_be_folded_stay_as_they_are():
    network = models.densenet121(weights=None).eval()
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.uniform_(layer.running_mean, -1, 1)
            nn.init.uniform_(layer.running_var, 0.5, 2)
    assert fold_batch_norm(network, 64) is network


def test_training_moves_the_head_and_nothing_else(offline):
    classifier = Classifier(offline.module, build_head(offline.features, 3)).train()
    before = {name: value.clone() for name, value in classifier.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in classifier.parameters() if p.requires_grad], lr=0.1)
    nn.functional.cross_entropy(classifier(noise()), torch.tensor([0, 2])).backward()
    optimizer.step()
    moved = {
        name.partition(".")[0]
        for name, value in classifier.state_dict().items()
        if not torch.equal(value, before[name])
    }
    assert moved == {"head"}
    assert [tuple(p.shape) for p in classifier.head.parameters()] == [(128, 1280), (128,), (3, 128), (3,)]
