"""What figures were taken on and by: counts and hashes of images, labels, configuration and checkpoint.

Every record of results has one under "manifest"; `python -m cerberus_plugin.manifest RUN [RUN2]` shows it.
"""

from .making import Figures as Figures
from .making import config_sha256 as config_sha256
from .making import file_sha256 as file_sha256
from .making import manifest as manifest
from .making import of_test as of_test
from .making import of_training as of_training
from .making import ranking_rules as ranking_rules
