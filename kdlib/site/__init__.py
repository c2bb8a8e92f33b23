"""The course as static HTML: one folder that opens from disk, without a network."""

from kdlib.site.building import LIMIT, build
from kdlib.site.folder import check, write

__all__ = ["LIMIT", "build", "check", "write"]
