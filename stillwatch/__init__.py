"""Stillwatch: distil a heavy vision model into a small watchful one, and put it on a camera."""

from stillwatch.recipe import Mistake, Recipe
from stillwatch.run import Run

__all__ = ["Mistake", "Recipe", "Run", "__version__"]
__version__ = "0.1.0"
