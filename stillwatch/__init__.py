"""Stillwatch: distil a heavy vision model into a small watchful one, and put it on a camera."""

from stillwatch.errors import UserError
from stillwatch.recipe import Recipe
from stillwatch.run import Run

__all__ = ["Recipe", "Run", "UserError", "__version__"]
__version__ = "0.1.0"
