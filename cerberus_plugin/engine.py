"""The host's trainer with the plugin's data sets, evaluators and prototypes; set-up and evaluation for train_net.py."""

from __future__ import annotations

import logging
import os
from collections import OrderedDict

import torch
from fastreid.config import CfgNode, get_cfg
from fastreid.data import build as host_build
from fastreid.data.datasets import DATASET_REGISTRY
from fastreid.data.transforms import build_transforms
from fastreid.engine import DefaultTrainer, default_setup, hooks
from fastreid.evaluation import inference_on_dataset
from fastreid.utils import comm
from fastreid.utils.checkpoint import Checkpointer
from fastreid.utils.env import seed_all_rng
from torch import Tensor, nn

from . import host, report
from .attributes import GROUPS, SCHEMAS, Annotations, SIDTable
from .config import add_cerberus_config
from .data.loader import AttributeDataset
from .evaluators import ReIDTask, TaskEvaluator, attribute_tasks
from .inference import AttributeReader
from .modeling.prototypes import margins_from_counts, schema_fingerprint

logger = logging.getLogger("fastreid.cerberus")


class CerberusTrainer(DefaultTrainer):
    """The host's trainer; a model without attributes (BoT, AGW, SBS, MGN) trains through it as well."""

    def __init__(self, cfg: CfgNode) -> None:
        train_set = build_train_set(cfg)
        host.check_config(cfg, len(train_set))
        os.makedirs(cfg.OUTPUT_DIR or ".", exist_ok=True)  # `setup` has made it, a notebook has not
        super().__init__(with_semantic_ids(cfg, train_set))
        prototypes = getattr(unwrapped(self.model), "prototypes", None)
        if prototypes is not None:
            fill_prototypes(prototypes, self.cfg, train_set)

    @classmethod
    def build_train_loader(cls, cfg: CfgNode):
        return host_build.build_reid_train_loader(cfg, train_set=build_train_set(cfg))

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str):
        dataset = build_dataset(cfg, dataset_name)
        if comm.is_main_process():
            dataset.show_test()
        labelled = hasattr(dataset, "labels_of")
        test_set = AttributeDataset(dataset.query + dataset.gallery, build_transforms(cfg, is_train=False),
                                    relabel=False, labels_of=dataset.labels_of if labelled else None,
                                    annotations=[dataset.annotations] if labelled else [],
                                    on_unreadable=cfg.DATALOADER.ON_UNREADABLE)
        return host_build.build_reid_test_loader(test_set, test_batch_size=cfg.TEST.IMS_PER_BATCH,
                                                 num_query=len(dataset.query), num_workers=cfg.DATALOADER.NUM_WORKERS)

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str, output_dir: str | None = None,
                        model: nn.Module | None = None):
        """reID for every model; PAR and APS for one that reads attributes, on a data set that has them."""
        loader, num_query = cls.build_test_loader(cfg, dataset_name)
        tasks = [ReIDTask(cfg)]
        reader = reader_of(model)
        if reader is not None and loader.dataset.annotations:
            (annotations,) = loader.dataset.annotations
            check_schema(reader, annotations, dataset_name)
            tasks += attribute_tasks(reader, annotations, cfg)
        return loader, TaskEvaluator(num_query, tasks, cfg.MODEL.DEVICE)

    @classmethod
    def test(cls, cfg: CfgNode, model: nn.Module) -> OrderedDict:
        """Figures of each test data set; the bare dict where there is one, as the host returns them."""
        results = OrderedDict()
        for name in cfg.DATASETS.TESTS:
            loader, evaluator = cls.build_evaluator(cfg, name, model=model)
            results[name] = inference_on_dataset(model, loader, evaluator, flip_test=cfg.TEST.FLIP.ENABLED)
            if comm.is_main_process():
                floor = report.read_floor(cfg.OUTPUT_DIR, name)
                logger.info(f"Results on {name}:\n{report.results_table(results[name], floor)}")
        return results[cfg.DATASETS.TESTS[0]] if len(results) == 1 else results

    def train(self):
        """Run training; write the results, as a table and as JSON, beside the checkpoint."""
        if self.cfg.TEST.UNTRAINED_FLOOR and self.start_epoch == 0:
            logger.info("Evaluating the untrained model, the floor of the result table")
            floor = self.test(self.cfg, self.model)
            if comm.is_main_process():
                report.write_floor(self.cfg, floor)
        results = super().train()
        num_unreadable = int(self.data_loader.dataset.num_unreadable)
        if num_unreadable:
            logger.warning(f"{num_unreadable} times a training image could not be read and was replaced")
        if comm.is_main_process():
            report.write_results(self.cfg, results)
        return results

    def build_hooks(self) -> list:
        built = super().build_hooks()
        for hook in built:
            if isinstance(hook, hooks.PeriodicWriter):
                hook._period = self.cfg.LOG_PERIOD  # the host fixes 200 iterations: minutes of silence on a CPU
        return built


def setup(args) -> CfgNode:
    """Configuration from the command line, the host's logging and output folder, device and seed."""
    cfg = get_cfg()
    add_cerberus_config(cfg)
    cfg.merge_from_file(args.config_file)
    cfg.merge_from_list(args.opts)
    if cfg.MODEL.DEVICE.startswith("cuda") and not torch.cuda.is_available():
        raise SystemExit("MODEL.DEVICE is 'cuda' but torch finds no GPU; append `MODEL.DEVICE cpu` to the command.")
    if cfg.MODEL.DEVICE == "cpu":
        cfg.SOLVER.AMP.ENABLED = False  # the host's mixed precision is for GPUs
    cfg.freeze()
    default_setup(cfg, args)
    host.use_device(cfg.MODEL.DEVICE)
    seed = cfg.SEED if cfg.SEED >= 0 else int.from_bytes(os.urandom(3), "big")
    seed_all_rng(seed + comm.get_rank())
    logger.info(f"FastReID {host.version()}, torch {torch.__version__}, seed {seed}")
    return cfg


def evaluate(cfg: CfgNode) -> OrderedDict:
    """Evaluate MODEL.WEIGHTS on DATASETS.TESTS and write the results (--eval-only)."""
    model = load_model(cfg)
    results = CerberusTrainer.test(cfg, model)
    if comm.is_main_process():
        report.write_results(cfg, results)
    return results


def load_model(cfg: CfgNode) -> nn.Module:
    """The model of a configuration with the weights of MODEL.WEIGHTS, in evaluation mode."""
    if not os.path.isfile(cfg.MODEL.WEIGHTS):
        raise FileNotFoundError(f"MODEL.WEIGHTS '{cfg.MODEL.WEIGHTS}' is not a file; name a checkpoint of this model "
                                "(model_final.pth or model_best.pth of a run folder).")
    model = CerberusTrainer.build_model(with_checkpoint_sizes(cfg))
    Checkpointer(model).load(cfg.MODEL.WEIGHTS)
    return model.eval()


def build_dataset(cfg: CfgNode, name: str):
    """A data set of the host's registry, under FASTREID_DATASETS."""
    options = {"allow_subset": True} if cfg.DATASETS.ALLOW_SUBSET else {}
    return DATASET_REGISTRY.get(name)(root=host_build._root, combineall=cfg.DATASETS.COMBINEALL, **options)


def build_train_set(cfg: CfgNode) -> AttributeDataset:
    """Training images of all DATASETS.NAMES; labelled where every one of them is, by one schema."""
    datasets = [build_dataset(cfg, name) for name in cfg.DATASETS.NAMES]
    items = [item for dataset in datasets for item in dataset.train]
    labels_of = None
    if all(hasattr(dataset, "labels_of") for dataset in datasets):
        names = {dataset.schema.name for dataset in datasets}
        if len(names) > 1:
            raise ValueError(f"DATASETS.NAMES {cfg.DATASETS.NAMES} mix the attribute schemas "
                             f"{', '.join(sorted(names))}; train on data sets of one schema.")
        owner = {pid: dataset for dataset in datasets for _, pid, _ in dataset.train}

        def labels_of(pid) -> Tensor:
            return owner[pid].labels_of(pid)

    return AttributeDataset(items, build_transforms(cfg, is_train=True), labels_of=labels_of,
                            annotations=[dataset.annotations for dataset in datasets] if labels_of else [],
                            on_unreadable=cfg.DATALOADER.ON_UNREADABLE)


def needs_prototypes(cfg: CfgNode) -> bool:
    node = cfg.MODEL.CERBERUS
    return cfg.MODEL.META_ARCHITECTURE == "Cerberus" and bool(node.LAMBDA_SEM or node.LAMBDA_REG)


def build_sid_table(cfg: CfgNode, train_set: AttributeDataset) -> SIDTable:
    """Semantic IDs of the training identities that have images, in the space that the configuration names."""
    annotations: list[Annotations] = train_set.annotations
    test = torch.cat([torch.stack(list(a.test.values())) for a in annotations])
    return SIDTable.build(annotations[0].schema, train_set.class_labels(), test, cfg.MODEL.CERBERUS.SID_SPACE)


def with_semantic_ids(cfg: CfgNode, train_set: AttributeDataset) -> CfgNode:
    """Count semantic IDs into the configuration, as the host does identities, and save it again."""
    if not needs_prototypes(cfg):
        return cfg
    if not train_set.annotations:
        raise ValueError(f"DATASETS.NAMES {cfg.DATASETS.NAMES} have no attributes, which Cerberus learns from; use "
                         "Market1501Attributes or DukeMTMCAttributes, or set MODEL.CERBERUS.LAMBDA_SEM and LAMBDA_REG "
                         "to 0.0.")
    table = build_sid_table(cfg, train_set)
    logger.info(f"{table}; {len(train_set.pids)} training identities")
    return _with(cfg, train_set.num_classes, table.schema.name, table.sizes, save=True)


def with_checkpoint_sizes(cfg: CfgNode) -> CfgNode:
    """Sizes of a trained model, read from its checkpoint: a paper's config file does not know them."""
    state = torch.load(cfg.MODEL.WEIGHTS, map_location="cpu").get("model", {})
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.BACKBONE.PRETRAIN = False
    if not needs_prototypes(cfg):
        return cfg
    classes = state.get("prototypes.sid_of_class")
    if classes is None:
        raise ValueError(f"{cfg.MODEL.WEIGHTS}: holds no semantic IDs, so it is no checkpoint of Cerberus. Evaluate it "
                         "with the config it was trained with (config.yaml of its run folder).")
    names = {schema_fingerprint(schema.field_names): name for name, schema in SCHEMAS.items()}
    schema = names.get(int(state["prototypes.schema"]))
    if schema is None:
        raise ValueError(f"{cfg.MODEL.WEIGHTS}: was trained on an attribute set this version does not know; known: "
                         f"{', '.join(SCHEMAS)}")
    return _with(cfg, len(classes), schema, [len(state[f"prototypes.rows.{group}"]) for group in GROUPS])


def fill_prototypes(prototypes: nn.Module, cfg: CfgNode, train_set: AttributeDataset) -> None:
    """Tables and margins of the training set into the model's buffers, and as JSON beside the checkpoints."""
    node = cfg.MODEL.CERBERUS
    if node.MARGIN not in ("adaptive", "constant"):
        raise ValueError(f"MODEL.CERBERUS.MARGIN is '{node.MARGIN}', expected 'adaptive' or 'constant'")
    table = build_sid_table(cfg, train_set)
    constant = node.MARGIN_CONSTANT if node.MARGIN == "constant" else None
    margins = margins_from_counts(table.counts, len(train_set.pids), node.ALPHA, node.BETA, constant)
    prototypes.fill(table, table.lookup(train_set.class_labels()), margins)
    if comm.is_main_process() and cfg.OUTPUT_DIR:
        report.write_json(os.path.join(cfg.OUTPUT_DIR, "semantic_ids.json"), table.to_json())


def reader_of(model: nn.Module | None) -> AttributeReader | None:
    """What reads attributes off a model's embeddings: its method `attribute_reader`, for a model that has one."""
    model = unwrapped(model)
    return model.attribute_reader() if hasattr(model, "attribute_reader") else None


def check_schema(reader, annotations: Annotations, dataset_name: str) -> None:
    if reader.schema.name != annotations.schema.name:
        raise ValueError(f"DATASETS.TESTS: {dataset_name} has the attributes of {annotations.schema.name}, the model "
                         f"those of {reader.schema.name}; its prototypes cannot read them. Test it on a data set with "
                         "its own attributes, or on the host's data set of the same name for reID alone.")


def unwrapped(model: nn.Module | None) -> nn.Module | None:
    """Without the wrapper of distributed training."""
    return getattr(model, "module", model)


def _with(cfg: CfgNode, num_classes: int, schema: str, sizes, save: bool = False) -> CfgNode:
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.HEADS.NUM_CLASSES = num_classes
    cfg.MODEL.CERBERUS.SCHEMA = schema
    cfg.MODEL.CERBERUS.NUM_SIDS = [int(size) for size in sizes]
    cfg.freeze()
    if save and comm.is_main_process() and cfg.OUTPUT_DIR:
        report.write_text(os.path.join(cfg.OUTPUT_DIR, "config.yaml"), cfg.dump())
    return cfg
