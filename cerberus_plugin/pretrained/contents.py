"""What a file of weights holds, without the outer keys and prefixes that training code leaves around a backbone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

# Of several, the first is opened: self-distillation keeps a teacher beside its student, and releases the teacher.
OUTER = ("teacher", "state_dict", "model", "model_state", "model_state_dict", "module")
# In front of every name: of DataParallel, torch.compile, and the ResNeXt that FastReID links to.
WRAPPERS = ("module.", "_orig_mod.", "encoder.")
# In front of a backbone's names, beside heads, projections and text encoders.
BACKBONES = ("backbone.", "encoder_q.", "image_encoder.", "visual.", "base.")


@dataclass(frozen=True)
class Contents:
    """Tensors of a backbone by name.

    outer: keys that were opened.   prefix: what stood in front of the backbone's names, "" for nothing.
    beside: names of tensors that have no such prefix.   file_name: of the file, without its folder.
    """

    tensors: Mapping[str, Tensor]
    outer: tuple[str, ...] = ()
    prefix: str = ""
    beside: tuple[str, ...] = ()
    file_name: str = ""

    def has(self, *names: str) -> bool:
        return all(name in self.tensors for name in names)


def unwrap(content: Any, file_name: str = "") -> Contents:
    """Open outer keys and strip prefixes.

    Raises:
        ValueError: if there are no tensors by name.
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
        held = f"keys {[str(key) for key in named][:5]}" if named else type(content).__name__
        raise ValueError(f"{file_name}: holds no tensors by name but {held}; save the model's state dict: "
                         "torch.save(model.state_dict(), path)")
    for wrapper in WRAPPERS:
        if all(name.startswith(wrapper) for name in tensors):
            tensors = {name.removeprefix(wrapper): value for name, value in tensors.items()}
    prefix = next((prefix for prefix in BACKBONES if any(name.startswith(prefix) for name in tensors)), "")
    beside = tuple(name for name in tensors if not name.startswith(prefix))
    tensors = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
    return Contents(tensors, tuple(outer), prefix, beside, file_name)
