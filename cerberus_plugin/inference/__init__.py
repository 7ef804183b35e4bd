"""Inference from embeddings: image to images (reID), image to attributes (PAR), attributes to images (APS)."""

from .conformal import choose_threshold as choose_threshold
from .conformal import critical_thresholds as critical_thresholds
from .conformal import identities_needed as identities_needed
from .filtered_search import AcceleratedGallery as AcceleratedGallery
from .filtered_search import AttributeFilter as AttributeFilter
from .filtered_search import Predictions as Predictions
from .probabilities import ProbabilityReader as ProbabilityReader
from .prototype_reader import PARTIAL as PARTIAL
from .prototype_reader import READINGS as READINGS
from .prototype_reader import PrototypeReader as PrototypeReader
from .prototype_reader import blocks as blocks
from .prototype_reader import of_groups as of_groups
from .reader import AttributeReader as AttributeReader
from .reader import ConfidentReader as ConfidentReader
from .reader import PersonReader as PersonReader
from .reader import chunks as chunks
from .reader import image_scores as image_scores
