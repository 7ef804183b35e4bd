"""Networks as a chain of modules: which of them a forward pass goes through, one after the other.

Most convolutional networks, and Swin, hand a map from one module to the next and do nothing in between. Where that
holds, the network may be cut between any two of them. Whether it holds is seen in one forward pass.
"""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple

import torch
from torch import Tensor, nn


class Step(NamedTuple):
    """A module of the chain.

    name: its path in the network, such as `layer3.0`.   shape: of what it gives for one image.
    """

    name: str
    module: nn.Module
    shape: torch.Size


def calls_of(network: nn.Module, size: tuple[int, int]) -> dict[str, list[tuple]]:
    """Input and output of every module in a forward pass of one image of H, W, by the module's path, as they ended."""
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
    """The modules that together are the network, down to its blocks.

    Sequences are taken apart, and so are stages, the modules of a class whose name ends in "Stage".

    Args:
        network: images (1, 3, H, W) to a tensor.   size: H, W.

    Raises:
        ValueError: the network computes something between its modules.
    """
    calls = calls_of(network, size)
    links = _links(network, "", calls[""][0], calls)
    if links is None:
        raise ValueError(f"{type(network).__name__} computes something between its modules, so it cannot be cut there")
    return [step for name in links for step in _taken_apart(network, name, calls)]


def _called(module: nn.Module, name: str, calls: dict) -> list[str]:
    """Names of the modules in this one that were called, without those inside them."""
    found = []
    for child_name, child in module.named_children():
        path = f"{name}.{child_name}" if name else child_name
        found += [path] if path in calls else _called(child, path, calls)
    return found


def _links(module: nn.Module, name: str, call: tuple, calls: dict) -> list[str] | None:
    """Names of the modules that lead from this one's input to its output; None where something is in between."""
    state, end = call
    ended = list(calls)  # in the order in which they did
    links = sorted(_called(module, name, calls), key=ended.index)
    for link in links:
        if len(calls[link]) != 1 or calls[link][0][0] is not state:
            return None
        state = calls[link][0][1]
    return links if links and state is end and isinstance(end, Tensor) else None


def _taken_apart(network: nn.Module, name: str, calls: dict) -> list[Step]:
    module, call = network.get_submodule(name), calls[name][0]
    if isinstance(module, nn.Sequential) or type(module).__name__.endswith("Stage"):
        links = _links(module, name, call, calls)
        if links is not None:
            return [step for link in links for step in _taken_apart(network, link, calls)]
    return [Step(name, module, call[1].shape)]


def blocks_of(steps: list[Step]) -> list[int]:
    """Where the blocks of a network are: the steps of the class that most steps with modules of their own have."""
    kinds = Counter(type(step.module) for step in steps if any(True for _ in step.module.children()))
    common = {kind for kind, _ in kinds.most_common(1)}
    return [i for i, step in enumerate(steps) if type(step.module) in common]


def runs_of(steps: list[Step], blocks: list[int]) -> list[list[int]]:
    """The blocks in runs: side by side, with maps of one size."""
    runs: list[list[int]] = []
    for i in blocks:
        if runs and runs[-1][-1] == i - 1 and steps[i].shape == steps[i - 1].shape:
            runs[-1].append(i)
        else:
            runs.append([i])
    return runs
