"""Old names of modules, which work for one version with a `DeprecationWarning`: imports, submodules and `python -m`."""

import sys
import warnings
from importlib import import_module
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType

ROOT = __name__.split(".")[0]
# Old name -> new name, both below the package; the modules that share the content of one that was split.
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
    """New names of an old module, or of one inside an old package; None for any other module."""
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
    """A finder and loader of modules by their old names."""

    def find_spec(self, name: str, path=None, target=None) -> ModuleSpec | None:
        new = new_name_of(name)
        if new is None or find_spec(new if isinstance(new, str) else new[0]) is None:
            return None
        return ModuleSpec(name, self, is_package=isinstance(new, tuple))

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return None

    def exec_module(self, module: ModuleType) -> None:
        """Put the new module under the old name; for a module that was split, one that looks names up in its parts."""
        new = new_name_of(module.__name__)
        warnings.warn(_words(module.__name__, new), DeprecationWarning, stacklevel=2)
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
        """What `python -m` with an old name runs."""
        new = new_name_of(name)
        return compile("import runpy, warnings\n"
                       f"warnings.warn({_words(name, new)!r}, DeprecationWarning)\n"
                       f"runpy.run_module({new!r}, run_name='__main__', alter_sys=True)\n", name, "exec")


def _words(old: str, new: str | tuple[str, ...]) -> str:
    new = new if isinstance(new, str) else " and ".join(new)
    return f"{old} has moved to {new}; the old name will be removed in the next version"


def install() -> None:
    """Let Python find modules by their old names, before its own finders load a second copy from a new folder."""
    if not any(isinstance(finder, OldNames) for finder in sys.meta_path):
        sys.meta_path.insert(0, OldNames())
