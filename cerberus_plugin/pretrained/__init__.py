"""Pretrained weight files: recognise the publisher, rename the tensors, load them, and list the settings they need."""

from .backbones import backbone_of as backbone_of
from .contents import Contents as Contents
from .contents import opened as opened
from .contents import unwrap as unwrap
from .fitting import Fit as Fit
from .fitting import fit as fit
from .fitting import names_of as names_of
from .sources import NORMALISATIONS as NORMALISATIONS
from .sources import RESNET as RESNET
from .sources import SOURCES as SOURCES
from .sources import Source as Source
from .sources import recognise as recognise
