"""The function by which this package replaces functions and classes of FastReID."""

import functools
import inspect
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any


def original(adapted: Any) -> Any:
    """Return FastReID's own function or class that an adapted one replaces; return any other object unchanged."""
    return vars(adapted).get("host_original", adapted) if hasattr(adapted, "__dict__") else adapted


def replace(owner: ModuleType | type, name: str, build: Callable[[Any], Any]) -> None:
    """Rebind `owner.name` to `build(original)`, where `original` is always FastReID's own function or class.

    If `owner` is a module, the name is also rebound in every module that has already imported it: `from x import f`
    copies the reference, so `fastreid.engine.defaults`, for example, would keep the old function.

    Args:
        owner: module or class of FastReID.
        name: attribute of `owner`.
        build: takes the original and returns its replacement.
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
