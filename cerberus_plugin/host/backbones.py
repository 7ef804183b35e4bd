"""Backbones of the host that find their own files wherever a program is started, and do not inherit from each other."""

import copy
import os

from .patching import original


def read_sizes_of_regnets() -> None:
    """Build RegNet and EfficientNet from the sizes that come with the host.

    The host reads their files by a path below the folder of its own sources (modeling/backbones/regnet/regnet.py:517),
    and merges each into one configuration for all: a RegNetX that is built after a RegNetY keeps its squeeze and
    excitation, which RegNetX's own file does not name.
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
    object.__setattr__(cfg, "merge_from_file", merge_from_file)  # yacs takes names for keys
