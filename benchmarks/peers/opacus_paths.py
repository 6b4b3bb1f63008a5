"""Opacus' two ways to clip per example, against the same PyTorch model without privacy.

``.venv-peers/bin/python benchmarks/peers/opacus_paths.py PATH MODEL BATCH``, with benchmarks/ in PYTHONPATH.
"""

from __future__ import annotations

import warnings

import measurement
import torch
from measurement import EXAMPLES, L2_NORM_CLIP, LEARNING_RATE, NOISE_MULTIPLIER
from opacus import PrivacyEngine
from torch import nn

_MODES = {"Opacus hooks": "hooks", "Opacus ghost": "ghost"}


def document_mlp() -> nn.Module:
    """784-128-10 with dropout 0.2."""
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 128), nn.ReLU(), nn.Dropout(0.2), nn.Linear(128, 10))


def tutorial_cnn() -> nn.Module:
    """The convolutional network of TensorFlow Privacy's tutorial; Keras' "same" is a padding of 3 here."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 8, stride=2, padding=3), nn.ReLU(), nn.MaxPool2d(2, 1),
        nn.Conv2d(16, 32, 4, stride=2), nn.ReLU(), nn.MaxPool2d(2, 1),
        nn.Flatten(), nn.Linear(512, 32), nn.ReLU(), nn.Linear(32, 10),
    )  # fmt: skip


class TorchPath:
    """A training loop on tensors in memory, shuffled; ``mode`` is Opacus', or None for no privacy.

    No DataLoader on either side: collating examples one by one takes longer than the step.
    """

    def __init__(self, model: nn.Module, examples, labels, batch: int, mode: str | None):
        self.examples, self.labels, self.batch = examples, labels, batch
        self.weights = sum(parameter.numel() for parameter in model.parameters())
        optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE)
        criterion = nn.CrossEntropyLoss()
        if mode is not None:
            data = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(examples, labels), batch_size=batch)
            model, optimizer, *criteria, _ = PrivacyEngine().make_private(
                module=model, optimizer=optimizer, criterion=criterion, data_loader=data, poisson_sampling=False,
                noise_multiplier=NOISE_MULTIPLIER, max_grad_norm=L2_NORM_CLIP, grad_sample_mode=mode,
            )  # fmt: skip
            criterion = criteria[0] if criteria else criterion
        self.model, self.optimizer, self.criterion = model, optimizer, criterion

    def fit(self, steps: int) -> None:
        for step in range(steps):
            start = step * self.batch % (len(self.examples) - self.batch + 1)
            if start == 0:
                order = torch.randperm(len(self.examples))
            rows = order[start : start + self.batch]
            self._step(self.examples[rows], self.labels[rows])

    def bare(self, steps: int) -> None:
        for _ in range(steps):
            self._step(self.examples[: self.batch], self.labels[: self.batch])

    def _step(self, examples, labels):
        self.optimizer.zero_grad(set_to_none=True)
        self.criterion(self.model(examples), labels).backward()
        self.optimizer.step()


def main() -> None:
    """Measure the path that the command line names."""
    warnings.simplefilter("ignore")
    arguments = measurement.parse_arguments(["pytorch", *_MODES])
    torch.manual_seed(0)
    examples, labels = torch.rand(EXAMPLES, 1, 28, 28), torch.randint(0, 10, (EXAMPLES,))
    build = {"document_mlp": document_mlp, "tutorial_cnn": tutorial_cnn}[arguments.model]

    def path(mode):
        return TorchPath(build(), examples, labels, arguments.batch, mode)

    alone = arguments.alone or arguments.path == "pytorch"
    measurement.measure(lambda: path(_MODES.get(arguments.path)), None if alone else lambda: path(None), arguments)


if __name__ == "__main__":
    main()
