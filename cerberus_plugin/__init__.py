"""Attribute-based person re-identification as a FastReID plugin: reID, attributes (PAR) and search by attributes (APS).

Importing the package adapts FastReID to the installed versions of Python and torch (`cerberus_plugin.host`) and adds
the plugin's components to FastReID's registries: the meta-architectures Cerberus, IDE, ARN, APR and CSSC, their heads,
and the datasets with attributes or outfits. Without torch, the import skips both steps;
`cerberus_plugin.search.portable` needs neither torch nor FastReID. In a process of the `cerberus` command, both steps
wait until a subcommand needs torch, because most subcommands do not.
"""

import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import PurePath

from .utils import moved

__version__ = "0.2.0"
__all__ = ["APSTask", "CerberusPredictor", "CerberusTrainer", "PARTask", "ReIDTask", "SIDTable", "TaskEvaluator",
           "add_cerberus_config"]

moved.install()


def use_torch() -> None:
    """Adapt FastReID, register the plugin's components and define the public names. Idempotent."""
    from . import host  # isort: skip  first: importing FastReID fails without it
    from .data.listing import list_market_images
    from .metrics.ranking import evaluate_rank

    host.use_ranking(evaluate_rank)
    host.use_listing(list_market_images)

    # These imports register datasets, meta-architectures and heads.
    from .data import clothes, datasets  # noqa: F401
    from .modeling import apr, cerberus, cssc, fully_connected, heads  # noqa: F401

    # isort: split
    from .attributes import SIDTable
    from .config import add_cerberus_config
    from .engine.trainer import CerberusTrainer
    from .evaluation.evaluators import TaskEvaluator
    from .evaluation.tasks import APSTask, PARTask, ReIDTask
    from .predictor import CerberusPredictor

    public = (APSTask, CerberusPredictor, CerberusTrainer, PARTask, ReIDTask, SIDTable, TaskEvaluator,
              add_cerberus_config)
    globals().update({each.__name__: each for each in public})


def _is_command() -> bool:
    """Whether this process runs the `cerberus` command, by its script or by `python -m cerberus_plugin.cli`."""
    started = (getattr(sys, "argv", None) or [""])[0]
    return PurePath(started).stem == "cerberus" or (started == "-m" and f"{__name__}.cli" in sys.orig_argv)


def __getattr__(name: str):
    if name in moved.MOVED:
        return import_module(f"{__name__}.{name}")
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if find_spec("torch") is None:
        raise ImportError(f"cerberus_plugin.{name} needs torch, which is not installed: pip install torch torchvision. "
                          "Exported models run without it: cerberus_plugin.search.portable")
    use_torch()
    return globals()[name]


if find_spec("torch") is not None and not _is_command():
    use_torch()
