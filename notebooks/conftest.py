"""Pytest reads this file whenever it runs a notebook of this folder, from any working directory."""

import os
from pathlib import Path

import nbval.kernel

from kdlib.engine import environment, kernels

collect_ignore_glob = ["*.executed.ipynb"]  # what `kdlib run --save` left beside a notebook


class OwnKernels(nbval.kernel.NbvalKernelspecManager):
    """With `--nbval-current-env` a kernel is this interpreter with this kit, on one thread."""

    def get_kernel_spec(self, kernel_name):
        if kernel_name == nbval.kernel.CURRENT_ENV_KERNEL_NAME:
            return kernels.spec()
        return super().get_kernel_spec(kernel_name)


def pytest_configure(config):
    """Mask measured numbers (those after the sign ≈) when outputs are compared."""
    os.environ.update(environment.quiet_environment())
    nbval.kernel.NbvalKernelspecManager = OwnKernels
    if config.option.nbval_sanitize_with is None:
        masks = Path(__file__).resolve().parents[1] / "tests" / "nbval_sanitize.cfg"
        config.option.nbval_sanitize_with = str(masks)
