"""The last stages learn, the others do not, and the model that comes out can be served."""

import pytest
import torch

from opslib.errors import ConfigurationError
from opslib.specs import TrainingSpec
from opslib.vision.artifact import ModelDescription, load_artifact, save_artifact
from opslib.vision.backbones import build_backbone
from opslib.vision.data import open_photos
from opslib.vision.finetuning import backbone_stages
from opslib.vision.training import Surroundings, train

SPEC = TrainingSpec("efficientnet_lite0", epochs=1, batch_size=12, learning_rate=0.003, unfreeze=1)


@pytest.mark.parametrize(
    ("name", "first", "last", "count"),
    [
        ("resnet50", "conv1", "layer4", 6),
        ("efficientnet_lite0", "blocks.0", "blocks.6", 7),
        ("convnext_tiny", "features.0", "features.7", 8),
        ("vit_b_16", "encoder.layers.encoder_layer_0", "encoder.layers.encoder_layer_11", 12),
    ],
)
def test_stages_hold_every_weight_once(name, first, last, count):
    module = build_backbone(name, pretrained=False).module
    stages = backbone_stages(module)
    assert (next(iter(stages)), next(reversed(stages)), len(stages)) == (first, last, count)
    held = [id(parameter) for parameters in stages.values() for parameter in parameters]
    assert sorted(held) == sorted(id(parameter) for parameter in module.parameters())


@pytest.fixture(scope="module")
def tuned(sample):
    lines = []
    return train(open_photos(sample), SPEC, Surroundings(log=lines.append)), lines


def test_only_the_last_stage_has_moved(tuned):
    model, lines = tuned
    stages = backbone_stages(model.classifier.backbone)
    before = backbone_stages(build_backbone(SPEC.backbone).module)
    for name, parameters in stages.items():
        moved = [not torch.equal(now, then) for now, then in zip(parameters, before[name], strict=True)]
        assert any(moved) == (name == "blocks.6"), name
    statistics = [name for name in model.classifier.state_dict() if "running" in name]
    kept = build_backbone(SPEC.backbone).module.state_dict()
    for name in statistics:
        assert torch.equal(model.classifier.state_dict()[name], kept[name.removeprefix("backbone.")])
    assert any(line.startswith("fine-tuning the last 1 stages, from valid_loss=") for line in lines)
    assert model.metrics["valid_loss"] == model.best.valid_loss


def test_tuned_model_answers_as_it_was_tested(tuned, tmp_path):
    model, _ = tuned
    about = ModelDescription(SPEC.backbone, model.photos.classes, model.backbone.transform, model.metrics, {})
    save_artifact(tmp_path, model.classifier, about)
    loaded = load_artifact(tmp_path)
    photos = torch.rand(2, 3, loaded.transform.size, loaded.transform.size)
    with torch.inference_mode():
        assert torch.allclose(loaded.classifier(photos), model.classifier(photos), atol=1e-4)


def test_too_many_stages_are_named(sample):
    spec = TrainingSpec("efficientnet_lite0", epochs=1, unfreeze=8)
    with pytest.raises(ConfigurationError, match=r"has 7 stages\n.*blocks\.0, blocks\.1"):
        train(open_photos(sample), spec)
