"""The finished network as one file that runs without the code that built it.

`export` writes a `.pt2` file (torch.export): the graph of the forward pass in evaluation mode, the
weights, and what a caller must know of its input. PyTorch alone runs it, also from C++.

Load only files that you wrote, or that come from someone who may run programs on your machine:
`torch.export.load` unpickles parts of the file, so that a stranger's file can do anything. Nothing
of this module looks at what a file would execute.
"""

from __future__ import annotations

import copy
import io
import json
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kdlib import inputs
from kdlib.data import Split
from kdlib.engine.files import write_atomically
from kdlib.stages import predict

FACTS = "kdlib.json"  # inside the file


class Exported(nn.Module):
    """A network from a file: images [n, *input_shape] -> logits [n, num_classes], any n >= 1.

    It is in evaluation mode for good, on the CPU, and has no stages to tap.
    """

    def __init__(self, network: nn.Module, input_shape: tuple[int, ...], num_classes: int) -> None:
        super().__init__()
        self.network, self.input_shape, self.num_classes = network, input_shape, num_classes
        self.training = False

    def forward(self, images: Tensor) -> Tensor:
        inputs.tensor("images", images, finite=False)
        if tuple(images.shape[1:]) != self.input_shape:
            raise ValueError(
                f"images must be [n, {', '.join(map(str, self.input_shape))}], the shape that the "
                f"network was exported with, got {list(images.shape)}"
            )
        return self.network(images)

    def train(self, mode: bool = True) -> Exported:
        """The mode stays: dropout and batch norm are written out for evaluation."""
        return self


@torch.inference_mode(False)
@torch.no_grad()
def export(model: nn.Module, example: Tensor, path: str | Path) -> Path:
    """Write `model` as it is in evaluation mode to `path`, for batches of any size.

    The file is written whole or not at all; the model stays as it was. Beside the network it holds
    JSON: the shape of one image, its type, the number of classes, the name of the class of the
    network and PyTorch's version. Other releases of PyTorch may not read it.

    Args:
        model: images [n, ...] -> logits [n, classes], on any device; the file's is on the CPU.
        example: images [n, ...] as the network reads them, n >= 1; only the first one is used.
        path: ends with ".pt2".

    Raises:
        TypeError: something else than a network, or one that returns something else than logits.
        ValueError: another ending, an image that the network cannot read, or a network that cannot
            be exported: its `forward` depends on the values of the images or on the number of them
            in a way that a fixed graph cannot hold.
        OSError: the file cannot be written.
    """
    path = _pt2(path)
    inputs.instance("model", model, nn.Module)
    image = inputs.tensor("example", example)[:1].detach().cpu()
    network = copy.deepcopy(model).cpu().to(memory_format=torch.contiguous_format).eval()
    classes = predict(network, image).shape[1]
    pair = torch.cat([image, image])  # from one image torch would conclude that it is always one
    try:
        batch = torch.export.Dim("batch", min=1)
        program = torch.export.export(network, (pair,), dynamic_shapes=({0: batch},))
    except Exception as error:  # of many kinds, from the tracer or from the network
        raise ValueError(
            f"model must be one that torch.export can follow, but {type(model).__name__} is not: "
            f"{_first_line(error)}. Usual reasons: len(images) instead of images.shape[0], an `if` "
            "that looks at values, a call to NumPy"
        ) from error
    facts = {
        "input_shape": list(image.shape[1:]),
        "dtype": str(image.dtype).removeprefix("torch."),
        "num_classes": classes,
        "network": type(model).__name__,
        "torch": torch.__version__,
    }
    content = io.BytesIO()
    torch.export.save(program, content, extra_files={FACTS: json.dumps(facts)})
    return write_atomically(path, content.getvalue())


def load(path: str | Path) -> Exported:
    """The network that `export` wrote. Never load a file of a stranger: see the module.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not one of `export`, or it is damaged.
    """
    path = _pt2(path)
    facts = _facts(path)
    try:
        program = torch.export.load(path)
        network = program.module()
    except Exception as error:
        raise ValueError(
            f"path must lead to a whole file of this release of PyTorch ({torch.__version__}), but "
            f"{path}, of release {facts['torch']}, cannot be read: {_first_line(error)}"
        ) from error
    return Exported(network, tuple(facts["input_shape"]), facts["num_classes"])


def check(model: nn.Module, path: str | Path, split: Split) -> dict[str, float]:
    """Compare a file with the network that it was made of, on all images of `split`.

    Returns:
        "largest_difference" of a logit (about 1e-5 is rounding), "accuracy" of the file and
        "original_accuracy" of the network, both in percent.

    Raises:
        ValueError, TypeError, FileNotFoundError: as in `load`; a split that the network cannot
            read; another number of classes.
    """
    split = Split.of(split)
    found = predict(load(path), split.images.cpu())
    logits = predict(inputs.instance("model", model, nn.Module), split.images).cpu()
    if logits.shape != found.shape:
        raise ValueError(
            f"model must give the {found.shape[1]} classes of the file, got {logits.shape[1]}"
        )
    labels = inputs.classes("split.labels", split.labels, logits.shape[1], ndim=1).cpu()

    def accuracy(answers: Tensor) -> float:
        return 100 * (answers.argmax(1) == labels).float().mean().item()

    return {
        "largest_difference": (found - logits).abs().max().item(),
        "accuracy": accuracy(found),
        "original_accuracy": accuracy(logits),
    }


def _pt2(path: str | Path) -> Path:
    found = Path(inputs.instance("path", path, (str, Path)))
    if found.suffix != ".pt2":
        raise ValueError(f"path must end with .pt2, got {found}")
    return found


def _facts(path: Path) -> dict[str, Any]:
    """What `export` noted in the file; read without executing anything of it."""
    try:
        with zipfile.ZipFile(path) as archive:
            name = next(n for n in archive.namelist() if n.endswith(f"/{FACTS}"))
            return json.loads(archive.read(name))
    except (zipfile.BadZipFile, StopIteration, ValueError) as error:
        raise ValueError(f"path must lead to a file of kdlib.export, got {path}") from error


def _first_line(error: Exception) -> str:
    lines = (line.strip(" .") for line in str(error).splitlines())
    return next(filter(None, lines), repr(error))
