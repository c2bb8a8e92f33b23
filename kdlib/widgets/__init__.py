"""Pictures that a reader moves: each runs in the browser, and stands still where it cannot."""

from kdlib.widgets.drawing import draw
from kdlib.widgets.pulling import pull
from kdlib.widgets.scrubbing import Film, film, scrub
from kdlib.widgets.softening import soften

__all__ = ["soften", "draw", "pull", "film", "scrub", "Film"]
