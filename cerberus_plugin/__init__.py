"""Attribute-based person re-identification as a FastReID plugin: reID, attributes (PAR) and search by attributes (APS).

Importing the package adapts FastReID to this Python and torch (`host`) and registers the plugin's parts in the
host's registries: the meta-architectures Cerberus, IDE, ARN, APR and CSSC, their heads, and the data sets with
attributes or outfits.
"""

from . import host  # isort: skip  first: the host's own imports fail without it
from .metrics.ranking import evaluate_rank

host.use_ranking(evaluate_rank)

# Imported for their registration.
from .data import clothes, datasets  # noqa: E402, F401
from .modeling import apr, cerberus, cssc, representation  # noqa: E402, F401

# isort: split
from .attributes import SIDTable  # noqa: E402
from .config import add_cerberus_config  # noqa: E402
from .engine import CerberusTrainer  # noqa: E402
from .evaluators import TaskEvaluator  # noqa: E402
from .predictor import CerberusPredictor  # noqa: E402
from .tasks import APSTask, PARTask, ReIDTask  # noqa: E402

__version__ = "0.1.0"
__all__ = ["APSTask", "CerberusPredictor", "CerberusTrainer", "PARTask", "ReIDTask", "SIDTable", "TaskEvaluator",
           "add_cerberus_config"]
