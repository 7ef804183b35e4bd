"""The backbone's tensors in a weight file, without the outer keys and prefixes that training code adds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

# The first of these keys is opened: self-distillation saves a teacher and a student, and the teacher is the published
# model.
OUTER = ("teacher", "state_dict", "model", "model_state", "model_state_dict", "module")
# Prefixes of every name: of DataParallel, of torch.compile, and of the ResNeXt weights that FastReID links to.
WRAPPERS = ("module.", "_orig_mod.", "encoder.")
# Prefixes of the backbone's names; heads, projections and text encoders have other prefixes.
BACKBONES = ("backbone.", "encoder_q.", "image_encoder.", "visual.", "base.")


@dataclass(frozen=True)
class Contents:
    """Tensors of a backbone by name.

    Args:
        tensors: by name, without prefix.
        outer: keys that were opened, outermost first.
        prefix: prefix of the backbone's names in the file; "" for none.
        beside: names of the tensors without this prefix, such as those of heads.
        file_name: without its folder.
    """

    tensors: Mapping[str, Tensor]
    outer: tuple[str, ...] = ()
    prefix: str = ""
    beside: tuple[str, ...] = ()
    file_name: str = ""

    def has(self, *names: str) -> bool:
        """Whether all these tensors are present."""
        return all(name in self.tensors for name in names)


def opened(content: Any, file_name: str = "") -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Extract the tensors of a whole model from the content of a file.

    Args:
        content: the loaded object, usually nested mappings.
        file_name: for error messages.

    Returns:
        tensors by name, without the prefixes in `WRAPPERS`, and the outer keys that were opened.

    Raises:
        ValueError: if there are no named tensors.

    Examples:
        >>> tensors, outer = opened({"state_dict": {"module.conv1.weight": Tensor([1.0])}, "epoch": 3})
        >>> list(tensors), outer
        (['conv1.weight'], ('state_dict',))
    """
    outer: list[str] = []
    while isinstance(content, Mapping):
        key = next((key for key in OUTER if isinstance(content.get(key), Mapping)), None)
        if key is None:
            break
        outer.append(key)
        content = content[key]
    named = content if isinstance(content, Mapping) else {}
    tensors = {str(name): value for name, value in named.items() if isinstance(value, Tensor)}
    if not tensors:
        found = f"keys {[str(key) for key in named][:5]}" if named else type(content).__name__
        raise ValueError(f"{file_name}: contains no named tensors, only {found}; save the model's state dict: "
                         "torch.save(model.state_dict(), path)")
    for wrapper in WRAPPERS:
        if all(name.startswith(wrapper) for name in tensors):
            tensors = {name.removeprefix(wrapper): value for name, value in tensors.items()}
    return tensors, tuple(outer)


def unwrap(content: Any, file_name: str = "") -> Contents:
    """Extract the tensors of the backbone: arguments and errors as `opened`, without the prefixes in `BACKBONES`."""
    tensors, outer = opened(content, file_name)
    prefix = next((prefix for prefix in BACKBONES if any(name.startswith(prefix) for name in tensors)), "")
    beside = tuple(name for name in tensors if not name.startswith(prefix))
    tensors = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
    return Contents(tensors, outer, prefix, beside, file_name)
