"""The three modes of inference: image to images (reID), image to attributes (PAR), attributes to images (APS)."""

from .filtering import AcceleratedGallery as AcceleratedGallery
from .filtering import AttributeFilter as AttributeFilter
from .filtering import Predictions as Predictions
from .probabilities import ProbabilityReader as ProbabilityReader
from .promise import choose_threshold as choose_threshold
from .promise import critical_thresholds as critical_thresholds
from .promise import identities_needed as identities_needed
from .prototypes import PARTIAL as PARTIAL
from .prototypes import READINGS as READINGS
from .prototypes import PrototypeReader as PrototypeReader
from .prototypes import blocks as blocks
from .prototypes import of_groups as of_groups
from .reader import AttributeReader as AttributeReader
from .reader import ConfidentReader as ConfidentReader
from .reader import PersonReader as PersonReader
from .similarity import chunks as chunks
from .similarity import image_scores as image_scores
