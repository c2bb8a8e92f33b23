"""Pytest reads this file whenever it runs a notebook of this folder, from any working directory."""

from pathlib import Path


def pytest_configure(config):
    """Mask measured numbers (those after the sign ≈) when outputs are compared."""
    if config.option.nbval_sanitize_with is None:
        masks = Path(__file__).resolve().parents[1] / "tests" / "nbval_sanitize.cfg"
        config.option.nbval_sanitize_with = str(masks)
