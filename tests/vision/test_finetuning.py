"""The last stages learn, the others do not, and the model that comes out can be served."""

import pytest
import torch

from opslib.errors import ConfigurationError
from opslib.specs import TrainingSpec
from opslib.vision.artifact import ModelDescription, load_artifact, save_artifact
from opslib.vision.backbones import build_backbone
from opslib.vision.checkpoints import Checkpoint, Interrupted
from opslib.vision.data import open_photos
from opslib.vision.distributed import Ranks
from opslib.vision.features import FeatureExtractor
from opslib.vision.finetuning import FineTuning, backbone_stages
from opslib.vision.fitting import Course, EpochMetrics, best_epoch, fit
from opslib.vision.model import Classifier, build_head
from opslib.vision.samples import draw_sample
from opslib.vision.sharing import share_photos
from opslib.vision.training import Surroundings, train
from tests.vision.test_checkpoints import AskedAtStep
from tests.vision.test_distributed import Host, start_hosts

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


TWO_STAGES = TrainingSpec("efficientnet_lite0", epochs=2, batch_size=4, learning_rate=1e-3, unfreeze=2)


@pytest.fixture(scope="module")
def few(tmp_path_factory):
    folder = tmp_path_factory.mktemp("few") / "sample"
    draw_sample(folder, breeds=2, seed=1, per_breed={"train": 4, "valid": 2, "test": 1})
    return folder


def fine_tuning(few, spec=TWO_STAGES):
    share, backbone = share_photos(open_photos(few), Ranks()), build_backbone(spec.backbone)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        classifier = Classifier(backbone.module, build_head(backbone.features, 2))
    return FineTuning(classifier, backbone, share, spec, FeatureExtractor(backbone, torch.device("cpu"), 1))


def state_of(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


def test_only_the_last_stages_learn_each_slower_than_the_next(few):
    tuning = fine_tuning(few)
    before = state_of(tuning.module)
    fit(tuning, TWO_STAGES, Course())
    moved = {name for name, value in tuning.module.state_dict().items() if not torch.equal(value, before[name])}
    parameters = dict(tuning.module.named_parameters())
    stages = list(backbone_stages(tuning.module.backbone).values())
    learning = {id(parameter) for stage in stages[-2:] for parameter in stage} | set(
        map(id, tuning.module.head.parameters())
    )
    assert moved == {name for name, parameter in parameters.items() if id(parameter) in learning}
    assert [group["lr"] for group in tuning.groups] == pytest.approx([1e-3, 1e-4, 1e-4 / 3])


def test_fine_tuning_that_only_worsens_is_not_kept(few):
    tuning = fine_tuning(few)
    before = state_of(tuning.module)
    head = (EpochMetrics(1, 1.0, 0.5, 0.0, 1.0, 3.0), EpochMetrics(2, 1.0, 0.5, 0.1, 1.0, 4.0))
    history = fit(tuning, TWO_STAGES, Course(), head)
    assert [metrics.epoch for metrics in history] == [1, 2, 3, 4]
    assert history[2].seconds > 4.0
    assert best_epoch(history) == head[0]
    assert all(torch.equal(value, before[name]) for name, value in tuning.module.state_dict().items())


def test_fine_tuning_goes_on_where_it_was_interrupted(few, tmp_path):
    expected = fine_tuning(few)
    fit(expected, TWO_STAGES, Course())
    checkpoint, interrupted = Checkpoint(tmp_path / "state.pt"), fine_tuning(few)
    with pytest.raises(Interrupted):
        fit(interrupted, TWO_STAGES, Course(checkpoint=checkpoint, interruption=AskedAtStep(6)))
    resumed = fine_tuning(few)
    fit(resumed, TWO_STAGES, Course(checkpoint=checkpoint))
    assert all(
        torch.equal(value, expected.module.state_dict()[name]) for name, value in resumed.module.state_dict().items()
    )


def test_two_hosts_fine_tune_the_model_of_one(few, tmp_path):
    arguments = ("--epochs", 2, "--learning_rate", 1e-3, "--unfreeze", 2)
    alone = Host(few, tmp_path / "alone", *arguments)
    for host in [alone, *start_hosts([few, few], tmp_path / "two", *arguments)]:
        code, output = host.end()
        assert code == 0, output
    one, two = (torch.load(tmp_path / name / "model.pth", weights_only=True) for name in ("alone", "two"))
    for name, value in one.items():
        assert torch.allclose(value, two[name], atol=1e-5), name
