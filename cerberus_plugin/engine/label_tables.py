"""What a model keeps of its training set: semantic IDs, labels, margins, cosine scales."""

from __future__ import annotations

import logging
import os

import torch
from fastreid.config import CfgNode
from fastreid.data.transforms import build_transforms
from fastreid.utils import comm
from torch import nn
from torch.utils.data import DataLoader, Subset

from ..attributes import PERSON_GROUPS, SCHEMAS
from ..data.build import TrainingData
from ..data.loader import LEFT_OUT_PID
from ..modeling.build import needs_labels, schema_key, with_sizes
from ..modeling.sid_prototypes import margins_from_counts
from ..search.calibration import fit_scale, right_answers
from ..utils.distributed import unwrapped
from ..utils.files import write_json, write_text

logger = logging.getLogger("fastreid.cerberus")

SCALE_IMAGES = 1000  # that a cosine scale is fitted on, one number a column


def with_attributes(cfg: CfgNode, data: TrainingData) -> CfgNode:
    """Name the attribute set, and count semantic IDs, into the configuration, as the host does identities; save it."""
    train_set, schema, table = data.dataset, data.schema, data.sid_table
    key = ""
    if schema:
        SCHEMAS.setdefault(schema.name, schema)  # the model is built from the name, or from all of it in JSON
        key = schema_key(schema)
    if not needs_labels(cfg):
        other_groups = cfg.MODEL.META_ARCHITECTURE == "Cerberus" and schema and schema.groups != PERSON_GROUPS
        return with_sizes(cfg, cfg.MODEL.HEADS.NUM_CLASSES, key) if other_groups else cfg
    name = cfg.MODEL.META_ARCHITECTURE
    if schema is None:
        without = ("set MODEL.CERBERUS.LAMBDA_SEM, LAMBDA_REG and SOFTMAX to 0.0" if name == "Cerberus"
                   else "train IDE or the host's Baseline")
        raise ValueError(f"DATASETS.NAMES {cfg.DATASETS.NAMES} have no attributes, which {name} learns from; use "
                         f"Market1501Attributes, DukeMTMCAttributes, PRCCAttributes or LTCCAttributes, or {without}.")
    units = len(train_set.labels) if train_set.unit_of or not train_set.identified else 0
    who = f"{len(train_set.pids)} training identities" if train_set.identified else "no identities"
    logger.info(f"{table or schema}; {who}" + (f" with {units} outfits or other sets of labels" if units else ""))
    cfg = with_sizes(cfg, train_set.num_classes, key, table.sizes if table else (), units)
    if comm.is_main_process() and cfg.OUTPUT_DIR:
        write_text(os.path.join(cfg.OUTPUT_DIR, "config.yaml"), cfg.dump())
        if table:
            write_json(os.path.join(cfg.OUTPUT_DIR, "semantic_ids.json"), table.to_json())
    return cfg


def fill_tables(model: nn.Module, cfg: CfgNode, data: TrainingData) -> None:
    """Write what a model keeps of its training set into its buffers."""
    model = unwrapped(model)
    if getattr(model, "prototypes", None) is not None:
        _fill_prototypes(model.prototypes, cfg, data)
    if getattr(model, "class_labels", None) is not None:
        model.class_labels.fill(data.schema, data.dataset.labels)


def _fill_prototypes(prototypes: nn.Module, cfg: CfgNode, data: TrainingData) -> None:
    """Tables of the training set, and margins of the configuration."""
    node = cfg.MODEL.CERBERUS
    if node.MARGIN not in ("adaptive", "constant"):
        raise ValueError(f"MODEL.CERBERUS.MARGIN is '{node.MARGIN}', expected 'adaptive' or 'constant'")
    constant = node.MARGIN_CONSTANT if node.MARGIN == "constant" else None
    margins = margins_from_counts(data.sid_table.counts, node.ALPHA, node.BETA, constant)
    prototypes.fill(data.sid_table, data.dataset.sids, margins)


@torch.no_grad()
def measure_scales(model: nn.Module, cfg: CfgNode, data: TrainingData) -> None:
    """Fit the cosine scale of each column by likelihood and keep it with the prototypes.

    On images of the held-out identities, or of the training identities where none is held out: `SCALE_IMAGES` at most,
    evenly spread, as a test reads them. Scales that training learns are kept where nobody is held out: training images
    lie nearer to their prototypes than those of other people do, so that a scale fitted on them is too large. A column
    in which none of these images is labelled keeps the scale that it was read with.
    """
    model = unwrapped(model)
    prototypes = getattr(model, "prototypes", None)
    if prototypes is None or model.attribute_reader() is None:
        return
    if prototypes.learned_log_scales is not None and data.held_out is None:
        return
    images = data.held_out[0] if data.held_out else data.dataset.under(build_transforms(cfg, is_train=False))
    was_training, step = model.training, max(1, -(-len(images) // SCALE_IMAGES))
    model.eval()
    try:
        rows, labels = [], []
        # A generator of its own: torch's loader draws a seed, and training goes on with the global generator.
        for batch in DataLoader(Subset(images, range(0, len(images), step)), cfg.TEST.IMS_PER_BATCH,
                                generator=torch.Generator()):
            readable = batch["targets"] != LEFT_OUT_PID
            rows.append(model(batch)[readable.to(model.device)].float())
            labels.append(batch["attributes"][readable])
    finally:
        model.train(was_training)
    rows, labels = torch.cat(rows), torch.cat(labels)
    if not len(rows):  # none of them can be read
        return
    reader = model.attribute_reader()
    cosines = [own.cpu() for own in reader.cosines(rows)]
    truth, known = reader.schema.column_truth(labels)
    scales = []
    for m, column in enumerate(reader.schema.columns):
        g, held = reader.marginals.column_groups[m], torch.from_numpy(reader.marginals.held[m])
        own = right_answers(truth[m]) if column.is_colour else truth[m]  # (N, C)
        right = (own.float() @ held.float().T > 0) & known[:, m, None]  # (N, K), the semantic IDs with a true value
        scales.append(fit_scale(cosines[g], right, torch.from_numpy(reader.marginals.log_priors[g]),
                                reader.scales[column.name]))
    prototypes.set_scales(scales)
