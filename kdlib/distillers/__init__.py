"""Distillation methods by name, by family: logits, features, contrast, one-for-all (OFA).

`METHODS` is the one registry. To add a method, write a function below `@register("name")`.
"""

from kdlib.distillers import contrast, features, logits, ofa
from kdlib.distillers.base import (
    METHODS,
    Batch,
    Combination,
    Distiller,
    Outputs,
    Pairs,
    Setup,
    create,
    needs_teacher,
    options_of,
    parts_of,
    register,
)

__all__ = [
    "METHODS",
    "Batch",
    "Combination",
    "Distiller",
    "Outputs",
    "Pairs",
    "Setup",
    "contrast",
    "create",
    "features",
    "logits",
    "needs_teacher",
    "ofa",
    "options_of",
    "parts_of",
    "register",
]
