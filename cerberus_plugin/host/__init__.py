"""Makes FastReID 1.4.0 run on current Python and PyTorch. Import it before fastreid.data, fastreid.engine or a model.

Importing the package applies every adaptation once. No installed file is changed: names in FastReID's modules are
rebound to wrappers around its own functions. `original` returns the function that a wrapper replaces.

References such as engine/hooks.py:382 are to the source of FastReID 1.4.0. Modules of fastreid are imported inside
functions, because some of them can be imported only after `imports.prepare()`.
"""

import importlib.metadata

from . import backbones, bases, checkpoints, data, evaluation, imports, launching, pretrained, training, waits, weights
from .checks import check_config as check_config
from .data import use_device as use_device
from .data import use_listing as use_listing
from .evaluation import use_ranking as use_ranking
from .patching import original as original
from .pretrained import SETTINGS as SETTINGS
from .pretrained import read_pretrained as read_pretrained
from .pretrained import settle as settle
from .pretrained import starting_weights as starting_weights
from .training import gather_gradients as gather_gradients
from .waits import LateScalars as LateScalars
from .weights import read_tensors as read_tensors


def version() -> str:
    """Return the installed FastReID release. (`fastreid.__version__` is "1.3" in the wheel of release 1.4.0.)"""
    return importlib.metadata.version("fastreid")


def adapt() -> None:
    """Apply every adaptation. A second call changes nothing."""
    imports.prepare()
    bases.accept_several_bases()
    data.replace_loader()
    data.refuse_endless_samplers()
    data.accept_affine()
    data.read_transform_keys()
    data.read_pixels_quietly()
    launching.join_or_launch()
    launching.wrap_models_on_cpu()
    training.keep_flat_gradients()
    training.compute_losses_in_float32()
    training.name_bad_losses()
    training.print_an_iteration_once()
    waits.read_scalars_late()
    waits.count_losses_on_the_device()
    waits.choose_triplet_loss_on_the_device()
    waits.scale_circles_by_mask()
    waits.know_targets()
    waits.count_no_batches()
    checkpoints.write_whole_files()
    checkpoints.remember_best()
    checkpoints.refuse_other_files()
    backbones.read_sizes_of_regnets()
    pretrained.load_pretrained()
    weights.load_tensors_alone()
    evaluation.skip_compilation()
    evaluation.rerank_on_cpu()
    evaluation.normalise_out_of_place()


adapt()
