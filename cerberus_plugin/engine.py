"""The host's trainer with the plugin's data sets, evaluators and prototypes; set-up and evaluation for train_net.py."""

from __future__ import annotations

import logging
import math
import os
from collections import OrderedDict
from collections.abc import Mapping, Sequence

import torch
from fastreid.config import CfgNode, get_cfg
from fastreid.data.build import build_reid_test_loader, build_reid_train_loader
from fastreid.engine import DefaultTrainer, default_setup, hooks
from fastreid.evaluation import DatasetEvaluator, inference_on_dataset
from fastreid.utils import comm
from fastreid.utils.env import seed_all_rng
from torch import nn

from . import acceleration, host, machine, manifest, report
from .assembly import (
    build_dataset,
    build_test_set,
    build_train_set,
    check_schema,
    fill_tables,
    load_model,
    measure_scales,
    needs_labels,
    reader_of,
    resident_or_host,
    unwrapped,
    with_attributes,
    with_precision,
)
from .clothes_task import ClothesTask
from .config import add_cerberus_config
from .data.held_out import HELD_OUT
from .evaluators import Task, TaskEvaluator
from .hooks import AgreeOnStatistics, BeforeEvaluations, Evaluations, TrainingClock, WeightAverage, WithoutAverage
from .metrics.outfits import SETTINGS
from .processes import synchronise_batch_norm
from .tasks import DirectionTask, ReIDTask, attribute_tasks, check_task_options

logger = logging.getLogger("fastreid.cerberus")


class CerberusTrainer(DefaultTrainer):
    """The host's trainer; a model without attributes (BoT, AGW, SBS, MGN) trains through it as well."""

    def __init__(self, cfg: CfgNode) -> None:
        host.use_device(cfg.MODEL.DEVICE)
        acceleration.check_autocast(cfg.SOLVER.AUTOCAST, cfg.TEST.AUTOCAST, cfg.SOLVER.AMP.ENABLED)
        train_set = build_train_set(cfg)
        # What would only come up at the first evaluation, epochs from now, is checked before the first step.
        host.check_config(cfg, len(train_set))
        check_task_options(cfg)
        os.makedirs(cfg.OUTPUT_DIR or ".", exist_ok=True)  # `setup` has made it, a notebook has not
        cfg = with_attributes(cfg, train_set)
        if needs_labels(cfg):
            check_tests(cfg, train_set.annotations[0].schema.name)
        super().__init__(cfg)
        fill_tables(self.model, self.cfg, self.data_loader.dataset)

    @classmethod
    def build_model(cls, cfg: CfgNode) -> nn.Module:
        model = super().build_model(cfg)
        if cfg.MODEL.SYNC_BN:
            model = synchronise_batch_norm(model)
        missing = cfg.MODEL.COMPILE and acceleration.missing_for_compilation(model)
        if missing:
            logger.info(f"MODEL.COMPILE: {missing}; training runs uncompiled")
        elif cfg.MODEL.COMPILE:
            acceleration.compile_model(model)
        return with_precision(model, cfg)

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: nn.Module):
        optimizer, params = super().build_optimizer(cfg, model)
        if cfg.MODEL.CHANNELS_LAST:
            acceleration.store_channels_last(optimizer, model)
        acceleration.fuse(optimizer, cfg.SOLVER.FUSED)
        return optimizer, params

    @classmethod
    def build_train_loader(cls, cfg: CfgNode):
        return resident_or_host(build_reid_train_loader(cfg, train_set=build_train_set(cfg)), cfg)

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str):
        test_set, num_query = build_test_set(cfg, dataset_name)
        loader, num_query = build_reid_test_loader(test_set, test_batch_size=cfg.TEST.IMS_PER_BATCH,
                                                   num_query=num_query, num_workers=cfg.DATALOADER.NUM_WORKERS)
        return resident_or_host(loader, cfg), num_query

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str, output_dir: str | None = None,
                        model: nn.Module | None = None, tasks: Sequence[Task] | None = None):
        """The given tasks; or reID, its settings by outfits where the data set has any, PAR and APS for attributes."""
        loader, num_query = cls.build_test_loader(cfg, dataset_name)
        reader = reader_of(model)
        attributes = reader is not None and bool(loader.dataset.annotations)
        if attributes:
            check_schema(reader.schema.name, loader.dataset.annotations[0], dataset_name)
        if tasks is None:
            groups = [DirectionTask()] if cfg.MODEL.META_ARCHITECTURE == "Cerberus" else []
            tasks = [ReIDTask(cfg), *groups, *(attribute_tasks(reader, cfg) if attributes else [])]
            if loader.dataset.settings:
                tasks.insert(1, ClothesTask(ReIDTask(cfg).ranker, loader.dataset.settings))
        finish = getattr(unwrapped(model), "finish_embeddings", None)
        return loader, TaskEvaluator(num_query, tasks, device=cfg.MODEL.DEVICE, finish=finish)

    @classmethod
    def test(cls, cfg: CfgNode, model: nn.Module) -> OrderedDict:
        """Figures of each test data set; the bare dict where there is one, as the host returns them."""
        results = OrderedDict()
        for name in cfg.DATASETS.TESTS:
            loader, evaluator = cls.build_evaluator(cfg, name, model=model)
            results[name] = inference_on_dataset(model, loader, evaluator, flip_test=cfg.TEST.FLIP.ENABLED)
            if comm.is_main_process():
                results[name] = with_account(results[name], loader, evaluator)
                floor = report.read_floor(cfg.OUTPUT_DIR).get(name)
                logger.info(f"Results on {name}:\n{report.results_table(results[name], floor)}")
        return results[cfg.DATASETS.TESTS[0]] if len(results) == 1 else results

    def resume_or_load(self, resume: bool = True):
        """As the host's; margins stay those of the configuration, whatever the checkpoint was trained with."""
        path = self.checkpointer.get_checkpoint_file() if resume else self.cfg.MODEL.WEIGHTS
        own = resume and self.checkpointer.has_checkpoint()
        evaluations = self.checkpointer.checkpointables["evaluations"]
        evaluations.figures = {}
        if not self.cfg.SOLVER.EMA:
            self.checkpointer.checkpointables["average"] = WithoutAverage()
        if getattr(unwrapped(self.model), "class_labels", None) is not None:
            unwrapped(self.model).class_labels.beginning = not own
        if own:
            self.checkpointer.checkpointables["clock"].seconds = math.nan  # unless the checkpoint tells
        try:
            super().resume_or_load(resume)
        except ValueError as error:
            raise ValueError(f"{path or self.cfg.MODEL.WEIGHTS}: {error}") from error
        finally:
            if not self.cfg.SOLVER.EMA:
                del self.checkpointer.checkpointables["average"]  # checkpoints name it only where there is one
        acceleration.check_moments(self.optimizer, self.cfg.MODEL.CHANNELS_LAST)
        acceleration.fuse(self.optimizer, self.cfg.SOLVER.FUSED)  # the checkpoint brought its own setting
        fill_tables(self.model, self.cfg, self.data_loader.dataset)
        test = self.cfg.TEST
        if own and test.BEST_EPOCH and self.start_epoch >= test.EVAL_PERIOD and not evaluations.figures:
            logger.warning(f"{path}: holds no figures of evaluated epochs; TEST.BEST_EPOCH is of those from here on")

    def train(self):
        """Run training; write the results, as a table and as JSON, beside the checkpoint."""
        evaluations = self.checkpointer.checkpointables["evaluations"]
        self.epoch = self.start_epoch  # the host's hooks read it after a loop that may have nothing to do
        if self.start_epoch >= self.max_epoch:
            logger.info(f"Already trained for {self.max_epoch} epochs: evaluating")
            results = self.test(self.cfg, self.model)
            evaluations.remember(self.start_epoch, report.by_dataset(self.cfg.DATASETS.TESTS, results))
        else:
            if self.start_epoch == 0:
                self._evaluate_floor()
            results = super().train()
            self._warn_about_the_run()
        if comm.is_main_process():
            seconds = self.checkpointer.checkpointables["clock"].seconds
            made = manifest.manifest(self.cfg, results, self.model, self.data_loader.dataset,
                                     self.checkpointer.get_checkpoint_file())
            write_results(self.cfg, results, seconds, evaluations.figures, made)
        return results

    def build_hooks(self) -> list:
        clock, evaluations = TrainingClock(), Evaluations(self.cfg.DATASETS.TESTS)
        self.checkpointer.checkpointables |= {"clock": clock, "evaluations": evaluations}
        built = [clock, *super().build_hooks()]
        if self.cfg.SOLVER.EMA:
            built.insert(0, WeightAverage(unwrapped(self.model), self.cfg.SOLVER.EMA))
            self.checkpointer.checkpointables["average"] = built[0]
        place = next(i for i, hook in enumerate(built) if isinstance(hook, hooks.EvalHook))
        measure = BeforeEvaluations(lambda: measure_scales(self.model, self.cfg, self.data_loader.dataset),
                                    (self.cfg.TEST.EVAL_PERIOD, self.cfg.SOLVER.CHECKPOINT_PERIOD))
        built[place:place + 1] = [AgreeOnStatistics(), measure, built[place], evaluations]
        for hook in built:
            if isinstance(hook, hooks.PeriodicWriter):
                hook._period = self.cfg.LOG_PERIOD  # the host fixes 200 iterations: minutes of silence on a CPU
        return built

    def _evaluate_floor(self) -> None:
        """The figures before the first step, or no figures: those of an earlier run in the folder are not ours."""
        if comm.is_main_process():
            report.write_floor(self.cfg.OUTPUT_DIR, {})
        if self.cfg.TEST.UNTRAINED_FLOOR:
            logger.info("Evaluating the model before the first step, the floor of the result table")
            floor = report.by_dataset(self.cfg.DATASETS.TESTS, self.test(self.cfg, self.model))
            if comm.is_main_process():
                report.write_floor(self.cfg.OUTPUT_DIR, floor)

    def _warn_about_the_run(self) -> None:
        num_unreadable = int(self.data_loader.dataset.num_unreadable)
        if num_unreadable:
            logger.warning(f"{num_unreadable} times a training image could not be read and was replaced")
        latest = {name: value for name, (value, _) in self.storage.latest().items()}
        if latest.get("alignment/crop_ratio") == 1:
            logger.warning(f"Alignment cropped nothing in the last batch that was looked at (no row in "
                           f"{latest['alignment/fallback']:.0%} of the images exceeded MODEL.CERBERUS.SIGMA "
                           f"{self.cfg.MODEL.CERBERUS.SIGMA}, every row in the others): SIGMA does not fit the scale "
                           "of this backbone's maps; see alignment/* in metrics.json")


def setup(args) -> CfgNode:
    """Configuration from the command line, the host's logging and output folder, device and seed."""
    cfg = read_config(args)
    if args.eval_only:
        cfg.OUTPUT_DIR = os.path.join(cfg.OUTPUT_DIR, "evaluation")  # the run keeps its config.yaml and its results
    if args.resume and os.path.isfile(os.path.join(cfg.OUTPUT_DIR, "last_checkpoint")):
        cfg.MODEL.BACKBONE.PRETRAIN = False  # its weights are overwritten, and may be gone by now
    return start(cfg, args)


def start(cfg: CfgNode, args) -> CfgNode:
    """The host's logging and output folder, and the seed, drawn where there is none; the configuration, frozen."""
    if cfg.DATASETS.LEAVE_OUT_SIDS and cfg.SEED < 0 and cfg.DATASETS.LEAVE_OUT_SEED < 0:
        raise SystemExit("DATASETS.LEAVE_OUT_SEED is -1, to draw by SEED, but SEED is -1 too: a run that is resumed "
                         "would leave out others. Set one of them to a number from 0.")
    if cfg.SEED < 0:
        cfg.SEED = int.from_bytes(os.urandom(3), "big")
    cfg.freeze()
    default_setup(cfg, args)
    seed_all_rng(cfg.SEED + comm.get_rank())
    logger.info(f"FastReID {host.version()}, torch {torch.__version__}, seed {cfg.SEED} in place of a generated one")
    return cfg


def read_config(args) -> CfgNode:
    """Configuration of --config-file and the options after it, for the device that there is."""
    if not os.path.isfile(args.config_file):
        raise SystemExit(f"--config-file '{args.config_file}' is not a file; for example "
                         "configs/Market1501/cerberus_R50.yml")
    cfg = get_cfg()
    add_cerberus_config(cfg)
    try:
        cfg.merge_from_file(args.config_file)
        cfg.merge_from_list(args.opts)
    except (AssertionError, KeyError) as error:  # yacs' own for what it does not know
        raise SystemExit(f"{error}. The plugin's keys are in cerberus_plugin/config.py; switches such as --eval-only "
                         "go before KEY value.") from error
    if cfg.MODEL.DEVICE.startswith("cuda") and not torch.cuda.is_available():
        raise SystemExit("MODEL.DEVICE is 'cuda' but torch finds no GPU; append `MODEL.DEVICE cpu` to the command.")
    if cfg.MODEL.DEVICE == "cpu" and comm.get_world_size() > 1 and torch.cuda.is_available():
        raise SystemExit("MODEL.DEVICE is 'cpu', but these processes have met to train on GPUs; hide them: "
                         "CUDA_VISIBLE_DEVICES= (empty) before the command.")
    if cfg.MODEL.DEVICE == "cpu":
        cfg.SOLVER.AMP.ENABLED = False  # the host's mixed precision is for GPUs
    return cfg


def evaluate(cfg: CfgNode) -> OrderedDict:
    """Evaluate MODEL.WEIGHTS on DATASETS.TESTS and write the results, beside the floor of the run they are from."""
    host.use_device(cfg.MODEL.DEVICE)
    check_task_options(cfg)
    if cfg.TEST.BEST_EPOCH:
        logger.info("TEST.BEST_EPOCH: an evaluation alone has one epoch; the best stands in the run's own results.txt")
    if os.path.basename(cfg.MODEL.WEIGHTS) == "model_best.pth":
        logger.warning("model_best.pth was chosen by its figures on a test set: they are no estimate of how it does on "
                       "other data; model_final.pth is the last epoch")
    model = load_model(cfg)
    if getattr(model, "prototypes", None) is not None and model.prototypes.scales is None:
        logger.info(f"{cfg.MODEL.WEIGHTS}: has neither learned nor measured cosine scales; probabilities use "
                    f"TEST.PAR.COSINE_SCALE {cfg.TEST.PAR.COSINE_SCALE:g}")
    if comm.is_main_process():
        report.write_floor(cfg.OUTPUT_DIR, report.read_floor(os.path.dirname(cfg.MODEL.WEIGHTS)))
    results = CerberusTrainer.test(cfg, model)
    if comm.is_main_process():
        made = manifest.manifest(cfg, results, model, checkpoint=cfg.MODEL.WEIGHTS)
        write_results(cfg, results, made=made)
    return results


def with_account(figures: Mapping[str, float], loader, evaluator: DatasetEvaluator) -> Mapping[str, float]:
    """Figures with the account of the images they are of; as they are where the evaluator is not the plugin's."""
    if not isinstance(evaluator, TaskEvaluator):
        return figures
    tested = manifest.of_test(loader.dataset, evaluator.num_query, evaluator.num_left_out)
    return manifest.Figures.of(figures, tested)


def check_tests(cfg: CfgNode, schema: str) -> None:
    """Refuse test data sets whose attributes the model cannot read."""
    for name in cfg.DATASETS.TESTS:
        annotations = None if name == HELD_OUT else getattr(build_dataset(cfg, name), "annotations", None)
        if annotations is not None:
            check_schema(schema, annotations, name)


def write_results(cfg: CfgNode, results, seconds: float | None = None,
                  evaluations: Mapping[str, Mapping[int, Mapping]] | None = None,
                  made: Mapping | None = None) -> None:
    """results.txt and results.json, with what is needed to compare the figures with others'.

    Args:
        seconds: of training, NaN where they are not known; None for an evaluation alone.
        evaluations: figures by test data set and epoch; None for an evaluation alone.
        made: what the figures were taken on and by, `manifest.manifest`.
    """
    test = cfg.TEST
    training = None if seconds is None else {"seconds": seconds, "epochs": cfg.SOLVER.MAX_EPOCH, "seed": cfg.SEED,
                                             "processes": comm.get_world_size()}
    record = {
        "protocol": {
            "reid": {"ap": "rectangle", "same camera": "ignored", "metric": test.METRIC, "groups": list(test.GROUPS),
                     "flip": flips(cfg),
                     "re-ranking": test.RERANK.ENABLED, "query expansion": test.AQE.ENABLED},
            "par": {"force colour": test.PAR.FORCE_COLOUR, "query identities only": test.PAR.QUERY_IDENTITIES_ONLY},
            "aps": {"protocol": test.APS.PROTOCOL, "pool": "query and gallery", "ap": "rectangle"},
        },
        "weights": os.path.basename(cfg.MODEL.WEIGHTS) if seconds is None else
                   "last epoch, averaged over steps" if cfg.SOLVER.EMA else "last epoch",
        "model": name_of(cfg),
        "image size": list(cfg.INPUT.SIZE_TEST),
        "training": training,
        "manifest": made,
        "hardware": machine.hardware(cfg.MODEL.DEVICE),
        "versions": machine.versions(),
    }
    by_name = report.by_dataset(cfg.DATASETS.TESTS, results)
    if any("cloth-changing/mAP" in figures for figures in by_name.values()):
        changed = any(not math.isnan(figures.get("cloth-changing/mAP", math.nan)) for figures in by_name.values())
        record["protocol"]["outfits"] = {
            "ignored of the own identity, beside the own camera": SETTINGS,
            "metric": "mean of mAP and Rank-1" + (" under cloth-changing" if changed else ", whatever they wear")}
    record["evaluations"] = {name: epochs for name, epochs in (evaluations or {}).items() if name in by_name}
    best = {name: report.best_row(epochs) for name, epochs in record["evaluations"].items()} if test.BEST_EPOCH else {}
    tables = report.write_results(cfg.OUTPUT_DIR, by_name, record, best)
    if best:
        logger.info(f"Results of the last epoch and of the best:\n{tables}")


def name_of(cfg: CfgNode) -> str:
    """A model's name, with what an evaluation reads of it where that is not all."""
    name = cfg.MODEL.META_ARCHITECTURE + (f" by {' and '.join(cfg.TEST.GROUPS)}" if cfg.TEST.GROUPS else "")
    synthesised = cfg.TEST.APS.SYNTHESISE and cfg.MODEL.META_ARCHITECTURE == "Cerberus"
    return f"{name}, unseen prototypes synthesised" if synthesised else name


def flips(cfg: CfgNode) -> bool:
    """Whether embeddings are of mirror images as well, by the host's flip test or by the model itself."""
    return cfg.TEST.FLIP.ENABLED or (cfg.MODEL.META_ARCHITECTURE == "CSSC" and cfg.MODEL.CSSC.FLIP_SUM)
