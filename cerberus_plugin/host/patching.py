"""The one way this package rebinds a name of the host."""

import functools
import inspect
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any


def original(adapted: Any) -> Any:
    """The host's own function or class behind an adapted one; anything else is returned as it is."""
    return vars(adapted).get("host_original", adapted) if hasattr(adapted, "__dict__") else adapted


def replace(owner: ModuleType | type, name: str, build: Callable[[Any], Any]) -> None:
    """Rebind `owner.name` to `build(original)`, always starting from the host's original.

    For a module's name, every module that has already imported it under the same name is rebound too:
    `from x import f` copies the reference, so `fastreid.engine.defaults` would keep the old function.
    """
    current = getattr(owner, name)
    host_original = original(current)
    adapted = build(host_original)
    if not inspect.isclass(adapted):
        adapted = functools.wraps(host_original)(adapted)
    adapted.host_original = host_original
    setattr(owner, name, adapted)
    if isinstance(owner, ModuleType):
        for module in list(sys.modules.values()):
            namespace = getattr(module, "__dict__", {})
            if namespace.get(name) is current:
                setattr(module, name, adapted)
