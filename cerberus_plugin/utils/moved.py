"""Old names of modules. For one version, imports and `python -m` work with them and give a `DeprecationWarning`."""

import sys
import warnings
from importlib import import_module
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType

ROOT = __name__.split(".")[0]
# Old name -> new name, both relative to the package; several new names for a module that was split.
MOVED: dict[str, str | tuple[str, ...]] = {
    "acceleration": "modeling.precision",
    "assembly": ("data.build", "engine.label_tables", "config", "utils.distributed", "modeling.build"),
    "calibrated": "search.calibration.run_calibration", "calibration": "search.calibration",
    "clothes_task": "evaluation.clothes_task", "encoding": "search.export.torch_encoder",
    "evaluators": "evaluation.evaluators", "export": "search.export.onnx",
    "files": ("utils.files", "utils.commands"),
    "gallery": "search.gallery", "gathered": ("evaluation.embeddings", "data.loader"), "hooks": "engine.hooks",
    "losses": "modeling.losses", "machine": "utils.environment", "manifest": ("evaluation.manifest", "utils.files"),
    "portable": "search.portable", "processes": "utils.distributed", "report": ("evaluation.report", "utils.files"),
    "tasks": ("evaluation.tasks", "data.build"), "visualise": "experiments.figures.rank_list", "web": "search.web",
    "attributes.sids": "attributes.semantic_ids", "calibration.withholding": "search.calibration.abstention",
    "data.drawing": "synthetic.figure", "data.drawn_clothes": "synthetic.clothes",
    "data.drawn_folder": "synthetic.folder", "data.faces": "synthetic.faces", "data.held_out": "data.splits",
    "data.left_out": "data.splits", "data.pen": "synthetic.pen", "data.people": "synthetic.people",
    "data.places": "synthetic.places", "data.scene": "synthetic.scene", "data.synthetic": "synthetic.dataset",
    "data.wardrobe": "synthetic.wardrobe", "experiments.spread": "evaluation.spread",
    "gallery.filling": "search.gallery.build", "gallery.querying": "search.gallery.query",
    "gallery.reading": "search.gallery.image_reader",
    "gallery.sheet": "search.gallery.contact_sheet", "gallery.walking": "search.gallery.folder",
    "inference.filtering": "inference.filtered_search", "inference.promise": "inference.conformal",
    "inference.prototypes": "inference.prototype_reader", "inference.similarity": "inference.reader",
    "inference.temperatures": "inference.probabilities", "manifest.__main__": "experiments.manifest_diff",
    "manifest.making": ("evaluation.manifest", "utils.files"), "manifest.reading": "experiments.manifest_diff",
    "modeling.prototypes": "modeling.sid_prototypes", "modeling.representation": "modeling.heads",
    "modeling.tables": "modeling.checkpoint_tables", "portable.images": "utils.images",
    "portable.marginals": "attributes.marginals", "portable.vocabulary": "attributes.attribute_model",
    "web.asking": "search.web.search_state",
    "web.guard": "search.web.security", "web.turns": "search.web.limiter",
}


def new_name_of(name: str) -> str | tuple[str, ...] | None:
    """Return the new name of a moved module or of a submodule of a moved package, or None for other modules.

    A module that was split has several new names.

    Examples:
        >>> new_name_of("cerberus_plugin.gallery.querying")
        'cerberus_plugin.search.gallery.query'
    """
    root, _, name = name.partition(".")
    if root == ROOT:
        parts = name.split(".")
        for k in range(len(parts), 0, -1):
            if new := MOVED.get(".".join(parts[:k])):
                if isinstance(new, tuple):
                    return tuple(f"{ROOT}.{each}" for each in new) if k == len(parts) else None
                return ".".join([ROOT, new, *parts[k:]])
    return None


class OldNames:
    """Finder and loader of modules by their old names."""

    def find_spec(self, name: str, path=None, target=None) -> ModuleSpec | None:
        new = new_name_of(name)
        if new is None or find_spec(new if isinstance(new, str) else new[0]) is None:
            return None
        return ModuleSpec(name, self, is_package=isinstance(new, tuple))

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return None

    def exec_module(self, module: ModuleType) -> None:
        """Register the new module under the old name; for a split module, one that looks names up in its parts."""
        new = new_name_of(module.__name__)
        warnings.warn(_message(module.__name__, new), DeprecationWarning, stacklevel=2)
        if isinstance(new, str):
            sys.modules[module.__name__] = import_module(new)
            return

        def look_up(attribute: str):
            for each in map(import_module, new):
                if attribute in vars(each):
                    return vars(each)[attribute]
            raise AttributeError(f"module {module.__name__!r} has no attribute {attribute!r}")

        module.__getattr__ = look_up

    def get_code(self, name: str):
        """Return the code that `python -m` runs for an old name."""
        new = new_name_of(name)
        return compile("import runpy, warnings\n"
                       f"warnings.warn({_message(name, new)!r}, DeprecationWarning)\n"
                       f"runpy.run_module({new!r}, run_name='__main__', alter_sys=True)\n", name, "exec")


def _message(old: str, new: str | tuple[str, ...]) -> str:
    new = new if isinstance(new, str) else " and ".join(new)
    return f"{old} has moved to {new}; the old name will be removed in the next version"


def install() -> None:
    """Register the finder of old names, ahead of Python's own, which would load a second copy of a moved module."""
    if not any(isinstance(finder, OldNames) for finder in sys.meta_path):
        sys.meta_path.insert(0, OldNames())
