"""Configuration files with several base files."""

import os
from collections.abc import Mapping
from typing import Any

import yaml

from .patching import replace


def accept_several_bases() -> None:
    """Accept a list of files for `_BASE_`, where later files override earlier ones.

    FastReID accepts one file (config/config.py:83).
    """
    from fastreid.config.config import BASE_KEY, CfgNode

    def build(host_load):
        def load_yaml_with_base(filename: str, allow_unsafe: bool = False) -> dict:
            with open(filename, encoding="utf-8") as file:
                written = {} if allow_unsafe else yaml.safe_load(file)
            if not isinstance(written, dict) or not isinstance(written.get(BASE_KEY), list):
                return host_load(filename, allow_unsafe)
            folder, merged = os.path.dirname(filename), {}
            for base in written.pop(BASE_KEY):
                _merge(CfgNode.load_yaml_with_base(os.path.join(folder, base)), merged)
            _merge(written, merged)
            return merged

        return load_yaml_with_base

    replace(CfgNode, "load_yaml_with_base", build)


def _merge(values: Mapping[str, Any], into: dict[str, Any]) -> None:
    for key, value in values.items():
        if isinstance(value, dict) and isinstance(into.get(key), dict):
            _merge(value, into[key])
        else:
            into[key] = value
