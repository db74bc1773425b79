"""Whatever computes the features, they are the backbone's own."""

import numpy
import pytest
import torch
from torch import nn
from torch.nn import functional

from opslib.vision import runtimes
from opslib.vision.backbones import Backbone, build_backbone
from opslib.vision.runtimes import build_runtime
from opslib.vision.transforms import TransformSpec, normalised

CPU = torch.device("cpu")


def pixels(size, photos=3):
    return numpy.random.default_rng(1).integers(0, 256, (photos, size, size, 3), dtype=numpy.uint8)


def eager(backbone, batch):
    with torch.inference_mode():
        return backbone.module(normalised(torch.from_numpy(batch), backbone.transform))


@pytest.fixture(scope="module")
def backbone():
    return build_backbone("efficientnet_lite0")


@pytest.mark.parametrize("fastest", [True, False])
def test_features_equal_those_of_eager_torch(backbone, monkeypatch, fastest):
    if not fastest:  # a box where OpenVINO is not installed
        monkeypatch.setattr(runtimes.importlib.util, "find_spec", lambda name: None)
    runtime = build_runtime(backbone, CPU, workers=1)
    assert runtime.name == ("openvino" if fastest else "torch")
    batch = pixels(backbone.transform.size)
    computed = torch.cat([runtime.compute(batch[row : row + 1]) for row in range(len(batch))])
    expected = eager(backbone, batch)
    assert computed.shape == expected.shape
    assert computed.dtype == torch.float32
    assert torch.allclose(computed, expected, atol=1e-3)
    assert functional.cosine_similarity(computed, expected).min() >= 0.9999


def test_results_of_a_worker_do_not_overwrite_each_other(backbone):
    runtime = build_runtime(backbone, CPU, workers=1)
    first, second = pixels(backbone.transform.size, 2)[:, None]
    row = runtime.compute(first)
    kept = row.clone()
    runtime.compute(second)
    assert torch.equal(row, kept)


class Unexportable(nn.Module):
    """Its output depends on a value, which a trace cannot see: the exported network gives something else."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 4)

    def forward(self, photos):
        means = photos.mean(dim=(2, 3))
        return self.layer(means) if photos.abs().sum() == 0 else -self.layer(means)


def test_network_that_another_runtime_gets_wrong_runs_in_torch():
    view = TransformSpec(size=8)
    backbone = Backbone("odd", Unexportable().eval().requires_grad_(False), 4, view)
    runtime = build_runtime(backbone, CPU, workers=1)
    assert runtime.name == "torch"
    assert torch.allclose(runtime.compute(pixels(8)), eager(backbone, pixels(8)), atol=1e-5)


class Attentive(nn.Module):
    """A layer that torch computes in one operation of its own, as those of a ViT."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.layer = nn.Linear(3, 4)

    def forward(self, photos):
        rows = self.layer(photos.flatten(2).transpose(1, 2))
        return self.attention(rows, rows, rows, need_weights=False)[0].mean(dim=1)


class Untraceable(Unexportable):
    """It raises what is no error of the exporter, as EVA-02 does while it is traced."""

    def forward(self, photos):
        if torch.jit.is_tracing():
            raise TypeError("argument 'is_causal' must be bool, not Tensor")
        return self.layer(photos.mean(dim=(2, 3)))


@pytest.mark.parametrize(("network", "name"), [(Attentive, "openvino"), (Untraceable, "torch")])
def test_attention_is_exported_and_what_cannot_be_traced_runs_in_torch(capfd, network, name):
    backbone = Backbone("odd", network().eval().requires_grad_(False), 4, TransformSpec(size=8))
    before = torch.backends.mha.get_fastpath_enabled()
    runtime = build_runtime(backbone, CPU, workers=1)
    assert runtime.name == name
    batch = pixels(8, 1)
    assert torch.allclose(runtime.compute(batch), eager(backbone, batch), atol=1e-5)
    assert torch.backends.mha.get_fastpath_enabled() == before
    assert capfd.readouterr().out == ""  # torch prints the whole network when it fails
