"""Fixes of RegNet and EfficientNet: their size files are found from any folder and do not affect each other."""

import copy
import os

from .patching import original


def read_sizes_of_regnets() -> None:
    """Build RegNet and EfficientNet from the size files in FastReID's package.

    FastReID opens these files by a path relative to its source folder (modeling/backbones/regnet/regnet.py:517), so it
    finds them only if the program runs there. It also merges every file into one shared configuration: a RegNetX that
    is built after a RegNetY would keep squeeze-and-excitation, which the file of RegNetX does not set.
    """
    import fastreid
    from fastreid.modeling.backbones.regnet.config import cfg

    above = os.path.dirname(os.path.dirname(fastreid.__file__))
    host_merge = original(cfg.merge_from_file)
    defaults = getattr(cfg.merge_from_file, "defaults", None) or copy.deepcopy(dict(cfg))

    def merge_from_file(file_name: str) -> None:
        for section, values in defaults.items():
            cfg[section] = copy.deepcopy(values)
        host_merge(file_name if os.path.isfile(file_name) else os.path.join(above, file_name))

    merge_from_file.host_original, merge_from_file.defaults = host_merge, defaults
    object.__setattr__(cfg, "merge_from_file", merge_from_file)  # setattr of yacs would add a key
