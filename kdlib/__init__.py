"""Knowledge distillation, small enough to read: losses, methods, training, evidence.

Import the parts you need, for example ``from kdlib import losses, training``. Importing ``kdlib``
alone loads nothing else, so the command line answers at once.
"""

__version__ = "0.1.0"
