"""Galleries: images are embedded once, stored in an index folder, and searched by image, by attributes, or by both."""

from ...attributes.attribute_model import Answer
from .build import Pace
from .index import GalleryIndex, Summary
from .parts import Damaged
from .query import Hit, Prefilter, Query

__all__ = ["Answer", "Damaged", "GalleryIndex", "Hit", "Pace", "Prefilter", "Query", "Summary"]
