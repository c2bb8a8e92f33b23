"""Time of augmented batches: beside a training step, and beside a pipeline of single images.

    python tests/benchmarks/bench_data.py [--device cuda] [--images N] [--workers N]

All ratios are of medians over interleaved rounds of one run: crop and flip of 32 x 32 colour images
in batches of 256, ResNet-20, the same augmentation by torchvision in a DataLoader. One thread.
"""

import argparse
import functools
import os
import statistics
import time

import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from kdlib import data, models, training

BATCH, SIDE = 256, 32
BOTH = v2.Compose([v2.RandomCrop(SIDE, padding=4), v2.RandomHorizontalFlip()])
ONE = v2.Compose([BOTH, v2.ToDtype(torch.float32, scale=True)])


class Single(Dataset):
    """Bytes of images, augmented one by one as torchvision's examples do it."""

    def __init__(self, images: torch.Tensor, labels: torch.Tensor):
        self.images, self.labels = images, labels

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        return ONE(self.images[index]), self.labels[index]


def made(count: int, device: torch.device) -> tuple[data.Split, Single]:
    stream = data.generator(0)
    images = torch.randint(256, (count, 3, SIDE, SIDE), generator=stream, dtype=torch.uint8)
    labels = torch.randint(10, (count,), generator=stream)
    return data.Split(images.float().div_(255), labels).to(device), Single(images, labels)


def seconds(job, device: torch.device) -> float:
    start = time.perf_counter()
    job()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def medians(jobs: dict, rounds: int, device: torch.device) -> dict[str, float]:
    """{name: median seconds}, in turns, so that all jobs meet the same load; one round more goes
    before, because the first call of a kernel is slow."""
    times: dict[str, list[float]] = {name: [] for name in jobs}
    for number in range(rounds + 1):
        for name, job in jobs.items():
            found = seconds(job, device)
            if number:
                times[name].append(found)
    return {name: statistics.median(found) for name, found in times.items()}


def epoch_of_batches(train: data.Split, augment=None) -> None:
    """What `fit` asks for, without a network."""
    for _ in training.image_batches(train, BATCH, 10, augment)(1, data.generator(0)):
        pass


def epoch_of_steps(train: data.Split, network: torch.nn.Module) -> None:
    """Forward, backward and update, on batches as they lie there."""
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    for images, labels in zip(train.images.split(BATCH), train.labels.split(BATCH)):
        optimizer.zero_grad(set_to_none=True)
        F.cross_entropy(network(images), labels).backward()
        optimizer.step()


def epoch_of_loader(single: Single, workers: int, device: torch.device) -> None:
    loader = DataLoader(
        single,
        BATCH,
        shuffle=True,
        num_workers=workers,
        drop_last=True,
        pin_memory=device.type == "cuda",
    )
    for images, labels in loader:
        images.to(device, non_blocking=True)
        labels.to(device, non_blocking=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu", help="cpu, cuda or mps")
    parser.add_argument(
        "--images", type=int, help="of an epoch; default: 50,000, or 1,024 on a CPU"
    )
    parser.add_argument(
        "--workers", type=int, default=os.cpu_count() or 1, help="of the DataLoader"
    )
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    device = data.device_of(options.device)
    torch.set_num_threads(1)
    count = options.images or (1024 if device.type == "cpu" else 50_000)
    count -= count % BATCH
    train, single = made(count, device)
    network = training.build(lambda: models.ResNet(20, in_channels=3), 0).to(
        device, memory_format=models.ResNet.memory_format
    )
    loader = functools.partial(epoch_of_loader, single, device=device)
    found = medians(
        {
            "plain": lambda: epoch_of_batches(train),
            "augmented": lambda: epoch_of_batches(train, data.standard),
            "jittered": lambda: epoch_of_batches(train, data.chain(data.standard, data.jitter)),
            "steps": lambda: epoch_of_steps(train, network.train()),
            "loader": lambda: loader(workers=0),
            "loader with workers": lambda: loader(workers=options.workers),
        },
        options.rounds,
        device,
    )
    steps, ours = found["steps"], found["augmented"]
    print(f"{count} images on {device}, batches of {BATCH}, median of {options.rounds} rounds")
    print(f"  steps of ResNet-20                {1e3 * steps:9.1f} ms")
    for name, title in {
        "plain": "shuffled batches",
        "augmented": "with crop and flip",
        "jittered": "and jitter",
    }.items():
        share = 100 * found[name] / steps
        print(f"  {title:33s} {1e3 * found[name]:9.1f} ms, {share:5.1f} % of the steps")
    for name, title in {
        "loader": "DataLoader, no worker",
        "loader with workers": f"DataLoader, {options.workers} workers",
    }.items():
        share, times = 100 * found[name] / steps, found[name] / ours
        print(
            f"  {title:33s} {1e3 * found[name]:9.1f} ms, {share:5.1f} % of the steps, "
            f"{times:4.0f} times ours"
        )


if __name__ == "__main__":
    main()
