"""The classifier: a frozen backbone and the small head that is trained."""

import torch
from torch import nn

HIDDEN_FEATURES = 128
"""Width of the head's hidden layer."""


def build_head(features: int, classes: int) -> nn.Sequential:
    """Build the head: Linear(features, 128), ReLU, Linear(128, classes)."""
    return nn.Sequential(nn.Linear(features, HIDDEN_FEATURES), nn.ReLU(), nn.Linear(HIDDEN_FEATURES, classes))


class Classifier(nn.Module):
    """Photos of shape (N, 3, size, size) in, raw scores of shape (N, classes) out.

    The backbone stays in evaluation mode whatever `train()` says: its BatchNorm statistics are ImageNet's, and moving
    them with a few photos would change the features under the head.
    """

    def __init__(self, backbone: nn.Module, head: nn.Module) -> None:
        """Freeze the backbone and put the head on top."""
        super().__init__()
        self.backbone = backbone.requires_grad_(False)
        self.head = head
        self.train(self.training)

    def train(self, mode: bool = True) -> "Classifier":
        """Set the mode of the head; the backbone stays in evaluation mode."""
        super().train(mode)
        self.backbone.eval()
        return self

    def forward(self, photos: torch.Tensor) -> torch.Tensor:
        """Return the raw scores (logits) of a batch."""
        return self.head(self.backbone(photos))
