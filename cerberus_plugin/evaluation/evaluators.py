"""One forward pass over query and gallery images for all tasks: gather embeddings and labels, then run each task.

A task is a callable that takes `Gathered` and returns metrics by name (`tasks.py`).
"""

from __future__ import annotations

import itertools
import logging
from collections import OrderedDict
from collections.abc import Callable, Sequence

import torch
from fastreid.evaluation.evaluator import DatasetEvaluator
from fastreid.utils import comm
from torch import Tensor

from ..data.loader import LEFT_OUT_PID
from ..utils.environment import free_bytes
from .by_value import ByValue
from .embeddings import Gathered

logger = logging.getLogger("fastreid.cerberus")

Task = Callable[[Gathered], dict[str, float]]

WAITING_BYTES = 2**26  # embeddings that stay on a GPU until they are copied to the CPU together


class TaskEvaluator(DatasetEvaluator):
    """Gather the embeddings and labels of all processes, then run each task on the main process.

    Args:
        num_query: number of query images, which are the first images of the loader.
        tasks: tasks to run.
        device: where the tasks compute. The embeddings are gathered on the CPU, and copied to `device` if they fit.
        finish: function that a model applies to its embeddings after FastReID has averaged them over the flip test.
        identified: whether the images have identities; if not, there may be no query images.
        by_value: metrics by attribute value, which the tasks fill; None to omit them.
    """

    def __init__(self, num_query: int, tasks: Sequence[Task], device: torch.device | str = "cpu",
                 finish: Callable[[Tensor], Tensor] | None = None, identified: bool = True,
                 by_value: ByValue | None = None) -> None:
        self.num_query = num_query
        self._tasks = tasks
        self._device = device
        self._finish = finish
        self._identified = identified
        self.by_value = by_value
        self.reset()

    def reset(self) -> None:
        self._batches: list[dict] = []  # on the CPU
        self._on_device: list[dict] = []  # the last ones, `WAITING_BYTES` or less
        self.num_left_out = 0  # images that could not be read; set by `evaluate`

    def process(self, inputs: dict, outputs: Tensor) -> None:
        embeddings = outputs.float()
        embeddings = self._finish(embeddings) if self._finish else embeddings
        batch = {"embeddings": embeddings, "pids": inputs["targets"], "camids": inputs["camids"]}
        batch |= {key: inputs[key] for key in ("attributes", "outfits") if key in inputs}
        if embeddings.device.type == "cpu":
            self._batches.append({key: value.cpu() for key, value in batch.items()})
            return
        # A copy of each batch to the CPU would wait for the model. Outputs are cloned since a model that runs as a CUDA
        # graph writes all of them to the same memory.
        self._on_device.append(batch | {"embeddings": embeddings.clone()})
        if sum(waiting["embeddings"].nbytes for waiting in self._on_device) > WAITING_BYTES:
            self._to_cpu()

    def _to_cpu(self) -> None:
        waiting, self._on_device = self._on_device, []
        if waiting:
            self._batches.append({key: torch.cat([batch[key] for batch in waiting]).cpu() for key in waiting[0]})

    def evaluate(self) -> OrderedDict[str, float]:
        self._to_cpu()
        batches = self._batches
        if comm.get_world_size() > 1:
            comm.synchronize()
            batches = list(itertools.chain(*comm.gather(batches, dst=0)))
            if not comm.is_main_process():
                return OrderedDict()
        results: OrderedDict[str, float] = OrderedDict()
        gathered = self._join(batches)
        for task in self._tasks:
            results.update(task(gathered))
        return results

    def _join(self, batches: list[dict]) -> Gathered:
        if not batches:
            raise ValueError("evaluation: the test loader has no images; check DATASETS.TESTS")
        columns = {key: torch.cat([batch[key] for batch in batches]) for key in batches[0]}
        embeddings = columns["embeddings"]
        if _fits(embeddings, self._device):
            embeddings = embeddings.to(self._device)
        else:
            logger.info(f"embeddings of {embeddings.nbytes / 2**30:.1f} GiB exceed half of the free memory of "
                        f"{self._device}: they stay on the CPU, and the tasks process them in chunks")
        gathered = Gathered(embeddings, columns["pids"], columns["camids"], columns.get("attributes"), self.num_query,
                            self._device, columns.get("outfits"))
        bad = sum(int((~rows.isfinite().all(dim=1)).sum()) for rows in embeddings.split(4096))
        if bad:
            raise ValueError(f"evaluation: {bad} of {len(gathered.pids)} embeddings are not finite; the weights are "
                             "damaged or training diverged")
        left_out = gathered.pids == LEFT_OUT_PID
        self.num_left_out = int(left_out.sum())
        if self.num_left_out:
            logger.warning(f"{self.num_left_out} of {len(left_out)} test images could not be read and are excluded")
            gathered = gathered.rows(~left_out)
        if not self._identified <= gathered.num_query < len(gathered.pids):
            raise ValueError(f"evaluation: {gathered.num_query} query and {len(gathered.pids) - gathered.num_query} "
                             "gallery images; both must have at least one")
        return gathered


def _fits(embeddings: Tensor, device: torch.device | str) -> bool:
    """Whether the embeddings fit into half of a CUDA device's free memory; the other half is for the tasks."""
    if torch.device(device).type != "cuda":
        return True
    return embeddings.nbytes <= free_bytes(device) / 2
