"""Attribute-based person re-identification as a FastReID plugin: reID, attributes (PAR) and search by attributes (APS).

Importing the package adapts FastReID to this Python and torch (`host`) and registers the plugin's parts in the
host's registries: the meta-architectures Cerberus, IDE, ARN, APR and CSSC, their heads, and the data sets with
attributes or outfits. Where torch is not installed it does none of this: `cerberus_plugin.portable` needs neither.
"""

from importlib.util import find_spec

__version__ = "0.1.0"
__all__ = ["APSTask", "CerberusPredictor", "CerberusTrainer", "PARTask", "ReIDTask", "SIDTable", "TaskEvaluator",
           "add_cerberus_config"]

if find_spec("torch") is not None:
    from . import host  # isort: skip  first: the host's own imports fail without it
    from .data.listing import list_market_images
    from .metrics.ranking import evaluate_rank

    host.use_ranking(evaluate_rank)
    host.use_listing(list_market_images)

    # Imported for their registration.
    from .data import clothes, datasets  # noqa: F401
    from .modeling import apr, cerberus, cssc, representation  # noqa: F401

    # isort: split
    from .attributes import SIDTable
    from .config import add_cerberus_config
    from .engine import CerberusTrainer
    from .evaluators import TaskEvaluator
    from .predictor import CerberusPredictor
    from .tasks import APSTask, PARTask, ReIDTask


def __getattr__(name: str):
    if name in __all__:  # bound above, unless torch is missing
        raise ImportError(f"cerberus_plugin.{name} needs torch, which is not installed: pip install torch torchvision. "
                          "Exported models run without it: cerberus_plugin.portable")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
