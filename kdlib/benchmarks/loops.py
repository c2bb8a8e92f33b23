"""Training loops to compare the kit's with: the ones of papers' repositories, and a student's."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset
from torchvision import transforms

from kdlib import data
from kdlib.benchmarks.clock import RATE

ALPHA, TEMPERATURE = 0.9, 4.0


class Pictures(Dataset):
    """Bytes of images that become pictures, and are augmented one by one."""

    def __init__(self, count: int, augment: bool = True, classes: int = 100) -> None:
        stream = np.random.default_rng(0)
        self.bytes = stream.integers(256, size=(count, 32, 32, 3), dtype=np.uint8)
        self.labels = stream.integers(classes, size=count)
        random = [transforms.RandomCrop(32, padding=4), transforms.RandomHorizontalFlip()]
        self.transform = transforms.Compose(
            [
                *(random if augment else []),
                transforms.ToTensor(),
                transforms.Normalize((0.507, 0.487, 0.441), (0.268, 0.257, 0.276)),
            ]
        )

    def __len__(self) -> int:
        return len(self.bytes)

    def __getitem__(self, index: int) -> tuple[Tensor, int, int]:
        return self.transform(Image.fromarray(self.bytes[index])), int(self.labels[index]), index


def published(
    teacher: nn.Module,
    student: nn.Module,
    pictures: Pictures,
    device: torch.device,
    *,
    batch_size: int,
    workers: int,
) -> Iterator[None]:
    """KD as public repositories of distillation train it; each item is a step.

    Written after what RepDistiller's loop does in a step: pictures from a DataLoader, moved batch
    by batch, the teacher run each time, loss and accuracies read back for the meters.
    """
    teacher, student = teacher.to(device), student.to(device)
    optimizer = torch.optim.SGD(student.parameters(), lr=0.05 * RATE, momentum=0.9)
    optimizer.param_groups[0]["weight_decay"] = 5e-4
    loader = DataLoader(pictures, batch_size, shuffle=True, num_workers=workers, drop_last=True)
    losses, hits = [0.0, 0], [0.0, 0.0]
    while True:
        student.train()
        teacher.eval()
        for images, target, _ in loader:
            images, target = images.float().to(device), target.to(device)
            logits = student(images)
            with torch.no_grad():
                lesson = teacher(images)
            loss = (1 - ALPHA) * F.cross_entropy(logits, target) + ALPHA * divergence(
                logits, lesson
            )
            best = logits.topk(5, 1).indices.eq(target[:, None])
            losses = [losses[0] + loss.item() * len(images), losses[1] + len(images)]
            hits = [hits[0] + best[:, :1].sum().item(), hits[1] + best.sum().item()]
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            yield


def own(
    teacher: nn.Module, student: nn.Module, train: data.Split, *, batch_size: int
) -> Iterator[None]:
    """KD as a student of the course would write it on tensors; each item is a step."""
    optimizer = torch.optim.AdamW(student.parameters(), lr=2e-3 * RATE)
    loader = DataLoader(TensorDataset(*train), batch_size, shuffle=True, drop_last=True)
    teacher.eval()
    while True:
        student.train()
        for images, target in loader:
            logits = student(images)
            with torch.no_grad():
                lesson = teacher(images)
            loss = (1 - ALPHA) * F.cross_entropy(logits, target) + ALPHA * divergence(
                logits, lesson
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            yield


def divergence(logits: Tensor, lesson: Tensor) -> Tensor:
    """T² KL(p ‖ q), batch mean."""
    q, p = F.log_softmax(logits / TEMPERATURE, 1), F.softmax(lesson / TEMPERATURE, 1)
    return TEMPERATURE**2 * F.kl_div(q, p, reduction="batchmean")
