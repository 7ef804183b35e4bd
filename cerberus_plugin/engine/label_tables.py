"""Tables of the training set that are stored in a model: semantic IDs, labels, margins and cosine scales."""

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
from ..modeling.cameras import camera_embeddings
from ..modeling.sid_prototypes import margins_from_counts
from ..search.calibration import fit_scale, right_answers
from ..utils.distributed import unwrapped
from ..utils.files import write_json, write_text

logger = logging.getLogger("fastreid.cerberus")

SCALE_IMAGES = 1000  # maximum number of images for fitting the cosine scales, one number per column


def with_attributes(cfg: CfgNode, data: TrainingData) -> CfgNode:
    """Set the keys for the attribute schema and the numbers of identities and semantic IDs, and save the configuration.

    FastReID does the same with the number of identities. The main process writes config.yaml and semantic_ids.json.

    Args:
        cfg: configuration; not changed.
        data: training data.

    Returns:
        the new configuration.

    Raises:
        ValueError: if the model needs attributes and the training set has none.
    """
    train_set, schema, table = data.dataset, data.schema, data.sid_table
    key = ""
    if schema:
        SCHEMAS.setdefault(schema.name, schema)  # the model is built from its name, or from its JSON form
        key = schema_key(schema)
    if not needs_labels(cfg):
        other_groups = cfg.MODEL.META_ARCHITECTURE == "Cerberus" and schema and schema.groups != PERSON_GROUPS
        return with_sizes(cfg, cfg.MODEL.HEADS.NUM_CLASSES, key) if other_groups else cfg
    name = cfg.MODEL.META_ARCHITECTURE
    if schema is None:
        without = ("set MODEL.CERBERUS.LAMBDA_SEM, LAMBDA_REG and SOFTMAX to 0.0" if name == "Cerberus"
                   else "train IDE or FastReID's Baseline")
        raise ValueError(f"DATASETS.NAMES {cfg.DATASETS.NAMES} have no attributes, which {name} needs; use "
                         f"Market1501Attributes, DukeMTMCAttributes, PRCCAttributes or LTCCAttributes, or {without}.")
    units = len(train_set.labels) if train_set.unit_of or not train_set.identified else 0
    who = f"{len(train_set.pids)} training identities" if train_set.identified else "no identities"
    logger.info(f"{table or schema}; {who}" + (f" with {units} outfits or label combinations" if units else ""))
    cfg = with_sizes(cfg, train_set.num_classes, key, table.sizes if table else (), units)
    if comm.is_main_process() and cfg.OUTPUT_DIR:
        write_text(os.path.join(cfg.OUTPUT_DIR, "config.yaml"), cfg.dump())
        if table:
            write_json(os.path.join(cfg.OUTPUT_DIR, "semantic_ids.json"), table.to_json())
    return cfg


def fill_tables(model: nn.Module, cfg: CfgNode, data: TrainingData) -> None:
    """Fill the buffers of a model with the tables of its training set.

    Args:
        model: with or without the wrapper of distributed training.
        cfg: configuration.
        data: training data.
    """
    model = unwrapped(model)
    if getattr(model, "prototypes", None) is not None:
        _fill_prototypes(model.prototypes, cfg, data)
    if getattr(model, "class_labels", None) is not None:
        model.class_labels.fill(data.schema, data.dataset.labels)
    for embedding in camera_embeddings(model):
        embedding.fill(data.dataset.cameras)


def _fill_prototypes(prototypes: nn.Module, cfg: CfgNode, data: TrainingData) -> None:
    """Fill the semantic IDs of the training set and the margins of the configuration."""
    node = cfg.MODEL.CERBERUS
    if node.MARGIN not in ("adaptive", "constant"):
        raise ValueError(f"MODEL.CERBERUS.MARGIN is '{node.MARGIN}', expected 'adaptive' or 'constant'")
    constant = node.MARGIN_CONSTANT if node.MARGIN == "constant" else None
    margins = margins_from_counts(data.sid_table.counts, node.ALPHA, node.BETA, constant)
    prototypes.fill(data.sid_table, data.dataset.sids, margins)


@torch.no_grad()
def measure_scales(model: nn.Module, cfg: CfgNode, data: TrainingData) -> None:
    """Fit the cosine scale of each column by maximum likelihood and store it with the prototypes.

    The scales are fitted on at most `SCALE_IMAGES` evenly spaced images of the held-out identities, or of the training
    identities if there are no held-out ones, with the transforms of a test. Without held-out identities, learned scales
    are not replaced: training images are closer to their prototypes than images of other people, so a scale fitted on
    them is too large. A column without labels in these images keeps its current scale.

    Args:
        model: with or without the wrapper of distributed training.
        cfg: configuration.
        data: training data.
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
        # With a separate generator, torch's loader does not change the global one, which training uses.
        for batch in DataLoader(Subset(images, range(0, len(images), step)), cfg.TEST.IMS_PER_BATCH,
                                generator=torch.Generator()):
            readable = batch["targets"] != LEFT_OUT_PID
            rows.append(model(batch)[readable.to(model.device)].float())
            labels.append(batch["attributes"][readable])
    finally:
        model.train(was_training)
    rows, labels = torch.cat(rows), torch.cat(labels)
    if not len(rows):  # no image can be read
        return
    reader = model.attribute_reader()
    cosines = [own.cpu() for own in reader.cosines(rows)]
    truth, known = reader.schema.column_truth(labels)
    scales = []
    for m, column in enumerate(reader.schema.columns):
        g, held = reader.marginals.column_groups[m], torch.from_numpy(reader.marginals.held[m])
        own = right_answers(truth[m]) if column.is_colour else truth[m]  # (N, C)
        right = (own.float() @ held.float().T > 0) & known[:, m, None]  # (N, K), semantic IDs with a true value
        scales.append(fit_scale(cosines[g], right, torch.from_numpy(reader.marginals.log_priors[g]),
                                reader.scales[column.name]))
    prototypes.set_scales(scales)
