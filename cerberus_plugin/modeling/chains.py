"""Find the chain of modules that a network consists of, with one forward pass.

Most convolutional networks, and Swin, pass a feature map from one module to the next and compute nothing between the
modules. Such a network can be split between any two modules of the chain.
"""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple

import torch
from torch import Tensor, nn


class Step(NamedTuple):
    """A module of the chain.

    Args:
        name: path of the module in the network, such as `layer3.0`.
        module: the module.
        shape: shape of its output for one image.
    """

    name: str
    module: nn.Module
    shape: torch.Size


def calls_of(network: nn.Module, size: tuple[int, int]) -> dict[str, list[tuple]]:
    """Record inputs and outputs of all modules in a forward pass of one black image.

    Args:
        network: run in evaluation mode; its mode is restored.
        size: H, W of the image in pixels.

    Returns:
        by the path of the module, in the order in which the calls ended: a list of (input, output), one for each call.
        The input is None unless the module has exactly one positional input.
    """
    calls: dict[str, list[tuple]] = {}
    names = {module: name for name, module in network.named_modules()}

    def record(module, inputs, output):
        calls.setdefault(names[module], []).append((inputs[0] if len(inputs) == 1 else None, output))

    hooks = [module.register_forward_hook(record) for module in names]
    training = network.training
    network.eval()
    try:
        with torch.no_grad():
            network(torch.zeros(1, 3, *size))
    finally:
        network.train(training)
        for hook in hooks:
            hook.remove()
    return calls


def chain_of(network: nn.Module, size: tuple[int, int]) -> list[Step]:
    """List the modules of a network in the order of the forward pass, down to its blocks.

    `nn.Sequential` and stages (modules whose class name ends in "Stage") are replaced by their children.

    Args:
        network: maps images, float (1, 3, H, W), to a tensor.
        size: H, W of the image in pixels.

    Raises:
        ValueError: if the network computes something between its modules.

    Examples:
        >>> network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Sequential(nn.ReLU(), nn.MaxPool2d(2)))
        >>> [(step.name, tuple(step.shape)) for step in chain_of(network, (8, 4))]
        [('0', (1, 4, 8, 4)), ('1.0', (1, 4, 8, 4)), ('1.1', (1, 4, 4, 2))]
    """
    calls = calls_of(network, size)
    links = _links(network, "", calls[""][0], calls)
    if links is None:
        raise ValueError(f"{type(network).__name__} computes something between its modules, so it cannot be split")
    return [step for name in links for step in _flattened(network, name, calls)]


def _called(module: nn.Module, name: str, calls: dict) -> list[str]:
    """Paths of the outermost modules inside `module` that were called."""
    found = []
    for child_name, child in module.named_children():
        path = f"{name}.{child_name}" if name else child_name
        found += [path] if path in calls else _called(child, path, calls)
    return found


def _links(module: nn.Module, name: str, call: tuple, calls: dict) -> list[str] | None:
    """Paths of the modules that lead from the input of `module` to its output; None if they are not a chain."""
    state, end = call
    ended = list(calls)  # in the order in which the calls ended
    links = sorted(_called(module, name, calls), key=ended.index)
    for link in links:
        if len(calls[link]) != 1 or calls[link][0][0] is not state:
            return None
        state = calls[link][0][1]
    return links if links and state is end and isinstance(end, Tensor) else None


def _flattened(network: nn.Module, name: str, calls: dict) -> list[Step]:
    """The steps inside a sequence or stage; any other module is one step."""
    module, call = network.get_submodule(name), calls[name][0]
    if isinstance(module, nn.Sequential) or type(module).__name__.endswith("Stage"):
        links = _links(module, name, call, calls)
        if links is not None:
            return [step for link in links for step in _flattened(network, link, calls)]
    return [Step(name, module, call[1].shape)]


def blocks_of(steps: list[Step]) -> list[int]:
    """Indices of the blocks: the steps of the most frequent class among steps that have child modules."""
    kinds = Counter(type(step.module) for step in steps if any(True for _ in step.module.children()))
    common = {kind for kind, _ in kinds.most_common(1)}
    return [i for i, step in enumerate(steps) if type(step.module) in common]


def runs_of(steps: list[Step], blocks: list[int]) -> list[list[int]]:
    """Group the indices of blocks into runs of consecutive steps with the same output shape.

    Args:
        steps: from `chain_of`.
        blocks: from `blocks_of`.
    """
    runs: list[list[int]] = []
    for i in blocks:
        if runs and runs[-1][-1] == i - 1 and steps[i].shape == steps[i - 1].shape:
            runs[-1].append(i)
        else:
            runs.append([i])
    return runs
