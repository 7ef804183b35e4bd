"""FastReID's trainer with the datasets, evaluators and prototypes of the plugin; setup and evaluation of a run."""

from __future__ import annotations

import logging
import math
import os
import re
import sys
from collections import Counter, OrderedDict
from collections.abc import Mapping, Sequence

import cerberus_plugin

import torch
from fastreid.config import CfgNode, get_cfg
from fastreid.data.build import build_reid_test_loader
from fastreid.data.datasets.bases import ImageDataset
from fastreid.engine import DefaultTrainer, default_setup, hooks
from fastreid.evaluation import inference_on_dataset
from fastreid.utils import comm
from fastreid.utils.env import seed_all_rng
from torch import nn

from .. import host
from ..attributes import GROUPS, MISSING, AttributeSchema
from ..config import add_cerberus_config, check_model_keys, merge_file
from ..data.build import (
    build_test_set,
    build_train_loader,
    build_training_data,
    check_schema,
    check_test_set,
    resident_or_host,
)
from ..data.loader import AttributeDataset
from ..data.splits import HELD_OUT
from ..evaluation import manifest, model_card, report
from ..evaluation.by_value import ByValue
from ..evaluation.clothes_task import ClothesTask
from ..evaluation.evaluators import Task, TaskEvaluator
from ..evaluation.tasks import DirectionTask, ReIDTask, attribute_tasks, check_task_options
from ..metrics import aps, par
from ..metrics.outfits import SETTINGS
from ..modeling import precision
from ..modeling.build import (
    groups_of,
    load_model,
    needs_labels,
    needs_prototypes,
    reader_of,
    weight_settings,
    with_precision,
    with_settings,
)
from ..modeling.cameras import pass_cameras
from ..modeling.checkpoint_tables import begin_from_other_weights
from ..utils import environment
from ..utils.commands import replace_unprintable
from ..utils.distributed import synchronise_batch_norm, unwrapped
from ..utils.files import write_text
from .hooks import (
    AgreeOnStatistics,
    BeforeEvaluations,
    Evaluations,
    FrozenLayers,
    ReadScalarsLate,
    SeedEpochs,
    TrainingClock,
    TrainingIdentities,
    WeightAverage,
    WeightSettings,
    frozen_layers,
)
from .label_tables import fill_tables, measure_scales, with_attributes

logger = logging.getLogger("fastreid.cerberus")

TestSets = Mapping[str, tuple[AttributeDataset, int]]  # by name: images, queries first, and the number of queries


class CerberusTrainer(DefaultTrainer):
    """FastReID's trainer for models with and without attributes (BoT, AGW, SBS, MGN).

    Args:
        cfg: configuration, frozen.

    Attributes:
        data: training data of the run.
        test_sets: test sets of the run.
    """

    def __init__(self, cfg: CfgNode) -> None:
        host.use_device(cfg.MODEL.DEVICE)
        torch.backends.cudnn.benchmark = cfg.CUDNN_BENCHMARK  # FastReID does this only in `default_setup`
        check_model_keys(cfg)
        precision.check_autocast(cfg.SOLVER.AUTOCAST, cfg.TEST.AUTOCAST, cfg.SOLVER.AMP.ENABLED)
        self.data = build_training_data(cfg, needs_prototypes(cfg))
        # Check before the first step what would otherwise fail at the first evaluation, after several epochs.
        host.check_config(cfg, len(self.data.dataset))
        check_task_options(cfg, self.data.schema.group_names if self.data.schema else GROUPS)
        check_identities(cfg, self.data.dataset)
        check_cameras(cfg, self.data.dataset)
        os.makedirs(cfg.OUTPUT_DIR or ".", exist_ok=True)  # notebooks do not call `setup`, which creates it
        cfg = _settled(cfg)
        cfg = with_attributes(cfg, self.data)
        self.test_sets = build_test_sets(cfg, self.data.schema if needs_labels(cfg) else None, self.data.held_out,
                                         self.data.datasets)
        super().__init__(cfg)
        fill_tables(self.model, self.cfg, self.data)

    @classmethod
    def build_model(cls, cfg: CfgNode) -> nn.Module:
        """Build the model with the settings for SyncBN, compilation and precision."""
        model = super().build_model(cfg)
        if cfg.MODEL.SYNC_BN:
            model = synchronise_batch_norm(model)
        missing = cfg.MODEL.COMPILE and precision.missing_for_compilation(model)
        if missing:
            logger.info(f"MODEL.COMPILE: {missing}; training runs uncompiled")
        elif cfg.MODEL.COMPILE:
            precision.compile_model(model, **precision.compiler_options(cfg.MODEL.COMPILE_MODE, model.device))
        pass_cameras(model)
        return with_precision(model, cfg)

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: nn.Module):
        """Build FastReID's optimizer with flat buffers.

        Returns:
            the optimizer, and the flat buffers.

        Raises:
            ValueError: for keys that would have no effect.
        """
        check_optimizer_keys(cfg, model)
        host_cfg = cfg.clone()
        host_cfg.defrost()
        if cfg.MODEL.FREEZE_LAYERS:
            # FastReID matches the names as regular expressions at the start of parameter names, and counts its own
            # steps from 0, also in a resumed run. These expressions match whole names, and `FrozenLayers` ends the
            # freezing.
            host_cfg.MODEL.FREEZE_LAYERS = [f"{re.escape(path)}\\." for path in frozen_layers(
                model, cfg.MODEL.FREEZE_LAYERS)]
            host_cfg.SOLVER.FREEZE_ITERS = sys.maxsize
        optimizer, params = super().build_optimizer(host_cfg, model)
        if cfg.MODEL.CHANNELS_LAST:
            precision.store_channels_last(optimizer, model)
        precision.fuse(optimizer, cfg.SOLVER.FUSED, cfg.SOLVER.CLIP_GRADIENTS.ENABLED)
        # The gradient scaler reads the flat buffer.
        if torch.device(cfg.MODEL.DEVICE).type == "cuda" and not cfg.SOLVER.AMP.ENABLED:
            host.gather_gradients(optimizer, model.parameters())
        host.checkpoints.refuse_other_optimizers(optimizer, model, cfg.SOLVER.OPT)
        return optimizer, params

    def build_train_loader(self, cfg: CfgNode):
        """Build the loader of the run, or one for PreciseBN, which FastReID can run on another dataset."""
        if not hasattr(self, "cfg"):  # FastReID first builds the loader of the run
            return build_train_loader(cfg, self.data.dataset)
        same = tuple(cfg.DATASETS.NAMES) == tuple(self.cfg.DATASETS.NAMES)
        return build_train_loader(cfg, self.data.dataset.under(self.data.dataset.transform) if same else None)

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str, test_set: tuple[AttributeDataset, int] | None = None):
        """Build the loader of a test set.

        Args:
            cfg: configuration.
            dataset_name: name of the test set.
            test_set: built from the configuration if None.

        Returns:
            the loader, and the number of queries.
        """
        test_set, num_query = test_set or build_test_set(cfg, dataset_name)
        loader, num_query = build_reid_test_loader(test_set, test_batch_size=cfg.TEST.IMS_PER_BATCH,
                                                   num_query=num_query, num_workers=cfg.DATALOADER.NUM_WORKERS)
        return resident_or_host(loader, cfg), num_query

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str, output_dir: str | None = None,
                        model: nn.Module | None = None, tasks: Sequence[Task] | None = None,
                        test_set: tuple[AttributeDataset, int] | None = None):
        """Build the loader and the evaluator of a test set.

        Args:
            cfg: configuration.
            dataset_name: name of the test set.
            output_dir: not used.
            model: evaluated model; without it, only reID is evaluated.
            tasks: tasks to evaluate. If None: reID, reID by outfits if the dataset has outfits, and PAR and APS if the
                model predicts attributes of the dataset.
            test_set: built from the configuration if None.
        """
        reader = reader_of(model)
        test_set = test_set or build_test_set(cfg, dataset_name, reader.schema if reader else None)
        loader, num_query = cls.build_test_loader(cfg, dataset_name, test_set)
        attributes = reader is not None and any((labels != MISSING).any() for own in loader.dataset.annotations
                                                for labels in own.test.values())
        if attributes:
            check_schema(reader.schema, loader.dataset.annotations[0], dataset_name)
        identified = loader.dataset.identified
        by_value = ByValue(reader.schema) if attributes and tasks is None else None
        if tasks is None and not identified:
            if not attributes:
                raise ValueError(f"DATASETS.TESTS: the identities of '{dataset_name}' are unknown, so reID cannot be "
                                 "evaluated, and this model predicts none of its attributes. Add a column 'person', or "
                                 "evaluate a model with some of these attributes.")
            tasks = attribute_tasks(reader, cfg, identified, by_value)
            logger.info(f"{dataset_name}: the identities are unknown, so only PAR is evaluated; reID and APS need "
                        "identities")
        elif tasks is None:
            groups = groups_of(model) or GROUPS
            directions = [DirectionTask(groups)] if cfg.MODEL.META_ARCHITECTURE == "Cerberus" else []
            reid = ReIDTask(cfg, all_groups=groups, by_value=by_value)
            tasks = [reid, *directions, *(attribute_tasks(reader, cfg, by_value=by_value) if attributes else [])]
            if loader.dataset.settings:
                tasks.insert(1, ClothesTask(reid.ranker, loader.dataset.settings))
        finish = getattr(unwrapped(model), "finish_embeddings", None)
        return loader, TaskEvaluator(num_query, tasks, device=cfg.MODEL.DEVICE, finish=finish,
                                     identified=identified, by_value=by_value)

    @classmethod
    def test(cls, cfg: CfgNode, model: nn.Module) -> OrderedDict:
        """Evaluate all test sets; return metrics by name, or for a single test set its metrics, as FastReID does."""
        return as_the_host(cls.run_tests(cfg, model)[0])

    @classmethod
    def run_tests(cls, cfg: CfgNode, model: nn.Module,
                  test_sets: TestSets | None = None) -> tuple[dict, dict, dict]:
        """Evaluate all test sets.

        Args:
            cfg: configuration.
            model: evaluated model.
            test_sets: test sets by name; missing ones are built from the configuration.

        Returns:
            by name of the test set: metrics, and on the main process its record for the manifest (`manifest.of_test`)
            and, for datasets with attributes, metrics by attribute value (`ByValue.record`).
        """
        results, accounts, by_value = OrderedDict(), {}, {}
        for name in cfg.DATASETS.TESTS:
            loader, evaluator = cls.build_evaluator(cfg, name, model=model, test_set=(test_sets or {}).get(name))
            results[name] = inference_on_dataset(model, loader, evaluator, flip_test=cfg.TEST.FLIP.ENABLED)
            if comm.is_main_process():
                if isinstance(evaluator, TaskEvaluator):  # other evaluators may not count their images
                    accounts[name] = manifest.of_test(loader.dataset, evaluator.num_query, evaluator.num_left_out)
                    if evaluator.by_value is not None:
                        by_value[name] = evaluator.by_value.record
                floor = report.read_floor(cfg.OUTPUT_DIR).get(name)
                logger.info(f"Results on {name}:\n{report.results_table(results[name], floor)}")
        return results, accounts, by_value

    def resume_or_load(self, resume: bool = True):
        """Resume the run of the output folder, or load the tensors of MODEL.WEIGHTS that fit the model.

        A run is resumed only with its complete state. Margins are always those of the configuration.

        Args:
            resume: resume if there is a checkpoint in the output folder.

        Raises:
            ValueError: if the checkpoint to resume belongs to another model, optimizer, training set or setting of
                SOLVER.EMA, or if no tensor of MODEL.WEIGHTS fits.
        """
        own = resume and self.checkpointer.has_checkpoint()
        path = self.checkpointer.get_checkpoint_file() if own else self.cfg.MODEL.WEIGHTS
        if comm.is_main_process():
            host.checkpoints.remove_partial_files(self.cfg.OUTPUT_DIR)
        evaluations = self.checkpointer.checkpointables["evaluations"]
        evaluations.figures = {}
        settings = self._step_settings()
        begin_from_other_weights(unwrapped(self.model), not own)
        watch = unwrapped(self.model).register_load_state_dict_post_hook(
            lambda model, keys: _check_loaded(model, keys.missing_keys, path, own))
        if own:
            self.checkpointer.checkpointables["clock"].seconds = math.nan  # unless the checkpoint contains it
        try:
            # FastReID's method does not return the other entries of the checkpoint, so its steps are repeated here.
            rest = self.checkpointer.resume_or_load(self.cfg.MODEL.WEIGHTS, resume=resume)
            if own:
                self.start_epoch = rest.get("epoch", -1) + 1
                self._check_average(rest)
            precision.check_moments(self.optimizer, self.cfg.MODEL.CHANNELS_LAST)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
        finally:
            watch.remove()
        kept = [f"{name} {value} (not {settings.get(name)})" for name, value in self._step_settings().items()
                if settings.get(name) != value]
        if kept:  # loaded with the state; keys of SOLVER have no effect on a resumed run
            logger.warning(f"{path}: the run continues with its original settings, not with those of the "
                           f"configuration: {', '.join(kept)}")
        solver = self.cfg.SOLVER  # loading replaced this setting
        precision.fuse(self.optimizer, solver.FUSED, solver.CLIP_GRADIENTS.ENABLED)
        fill_tables(self.model, self.cfg, self.data)
        test = self.cfg.TEST
        if own and test.BEST_EPOCH and self.start_epoch >= test.EVAL_PERIOD and not evaluations.figures:
            logger.warning(f"{path}: contains no results of evaluated epochs; TEST.BEST_EPOCH uses later epochs only")

    def _check_average(self, rest: Mapping) -> None:
        """Check that the checkpoint and this run agree on whether weights are averaged.

        Args:
            rest: entries of the checkpoint that no part of this run has loaded.
        """
        if not self.cfg.SOLVER.EMA and "average" in rest:
            raise ValueError("the checkpoint's weights are an average, and its optimizer's moments belong to the raw "
                             "weights; this run has SOLVER.EMA 0: resume with the original SOLVER.EMA")
        if self.cfg.SOLVER.EMA and not self.checkpointer.checkpointables["average"].beside:
            raise ValueError(f"the checkpoint has no average of the weights, this run has SOLVER.EMA "
                             f"{self.cfg.SOLVER.EMA}; resume with SOLVER.EMA 0, the original value")

    def _step_settings(self) -> dict[str, object]:
        """Return the settings of the optimizer and the schedules that a checkpoint replaces, by name."""
        groups = {f"{key} of group {i}": group[key] for i, group in enumerate(self.optimizer.param_groups)
                  for key in ("initial_lr", "weight_decay", "momentum", "nesterov", "betas") if key in group}
        schedules = {f"{key} of {name}": value for name, schedule in self.scheduler.items()
                     for key, value in schedule.state_dict().items()
                     if key in ("milestones", "gamma", "T_max", "eta_min", "warmup_factor", "warmup_iters")}
        return groups | schedules

    def train(self):
        """Train, evaluate, and write the results to the output folder as a table and as JSON."""
        evaluations = self.checkpointer.checkpointables["evaluations"]
        self.epoch = self.start_epoch  # FastReID's hooks read it even if there are no epochs left
        if self.start_epoch >= self.max_epoch:
            logger.info(f"Already trained for {self.max_epoch} epochs: evaluating")
            results = self._test()
            evaluations.remember(self.start_epoch, report.by_dataset(self.cfg.DATASETS.TESTS, results))
        else:
            if self.start_epoch == 0:
                self._evaluate_untrained()
            results = super().train()
            self._warn_about_the_run()
        if comm.is_main_process():
            clock = self.checkpointer.checkpointables["clock"]
            made = manifest.manifest(self.cfg, results, self.accounts, self.model, self.data.dataset,
                                     self.checkpointer.get_checkpoint_file())
            write_results(self.cfg, results, clock, evaluations.figures, made, self.by_value)
        return results

    def _test(self) -> OrderedDict:
        """Evaluate the test sets of the run and store the results for FastReID."""
        results, self.accounts, self.by_value = self.run_tests(self.cfg, self.model, self.test_sets)
        self._last_eval_results = as_the_host(results)
        return self._last_eval_results

    def build_hooks(self) -> list:
        """Return FastReID's hooks with those of the plugin, in the order of their calls."""
        clock, evaluations = TrainingClock(), Evaluations(self.cfg.DATASETS.TESTS)
        self.checkpointer.checkpointables |= {"clock": clock, "evaluations": evaluations,
                                              "identities": TrainingIdentities(self.data.dataset.pids),
                                              "settings": WeightSettings(weight_settings(self.cfg))}
        if self.grad_scaler is not None:
            self.checkpointer.checkpointables["grad_scaler"] = self.grad_scaler
        built = [SeedEpochs(), clock, *super().build_hooks()]
        if self.cfg.SOLVER.EMA:
            built.insert(0, WeightAverage(unwrapped(self.model), self.cfg.SOLVER.EMA))
            self.checkpointer.checkpointables["average"] = built[0]
        if unwrapped(self.model).device.type == "cuda" and precision.is_fused(self.optimizer):
            late = self._trainer.late_scalars = host.LateScalars(self._trainer)
            built.insert(0, ReadScalarsLate(late, self.cfg.LOG_PERIOD))
        place = next(i for i, hook in enumerate(built) if isinstance(hook, hooks.EvalHook))
        measure = BeforeEvaluations(lambda: measure_scales(self.model, self.cfg, self.data),
                                    (self.cfg.TEST.EVAL_PERIOD, self.cfg.SOLVER.CHECKPOINT_PERIOD))
        evaluate = hooks.EvalHook(self.cfg.TEST.EVAL_PERIOD, self._test)
        built[place:place + 1] = [AgreeOnStatistics(), measure, evaluate, evaluations]
        for i, hook in enumerate(built):
            if isinstance(hook, hooks.LayerFreeze):
                model = unwrapped(self.model)
                built[i] = FrozenLayers(model, self.optimizer, frozen_layers(model, hook.freeze_layers),
                                        hook.freeze_iters)
            if isinstance(hook, hooks.PeriodicWriter):
                hook._period = self.cfg.LOG_PERIOD  # FastReID always uses 200 iterations, which take minutes on a CPU
        return built

    def _evaluate_untrained(self) -> None:
        """Remove the baseline of an earlier run in the folder; with TEST.UNTRAINED_FLOOR, evaluate a new one."""
        if comm.is_main_process():
            report.write_floor(self.cfg.OUTPUT_DIR, {})
            report.write_starting_weights(self.cfg.OUTPUT_DIR, host.starting_weights(self.cfg))
        if self.cfg.TEST.UNTRAINED_FLOOR:
            logger.info("Evaluating the untrained model as a baseline for the result table; warnings during this "
                        "evaluation do not concern the training")
            floor, *_ = self.run_tests(self.cfg, self.model, self.test_sets)
            if comm.is_main_process():
                report.write_floor(self.cfg.OUTPUT_DIR, floor)

    def _warn_about_the_run(self) -> None:
        num_unreadable = int(self.data.dataset.num_unreadable)
        if num_unreadable:
            logger.warning(f"{num_unreadable} times a training image could not be read and was replaced")
        latest = {name: value for name, (value, _) in self.storage.latest().items()}
        if latest.get("alignment/crop_ratio") == 1:
            none = latest["alignment/fallback"]  # share of the images
            logger.warning("Alignment cropped nothing in the last logged batch: the first and the last row exceeded "
                           f"MODEL.CERBERUS.SIGMA {self.cfg.MODEL.CERBERUS.SIGMA} in {1 - none:.0%} of the images, and "
                           f"no row in {none:.0%}. SIGMA does not fit the scale of this backbone's maps; see "
                           "alignment/* in metrics.json")


def _settled(cfg: CfgNode) -> CfgNode:
    """Set the keys that the pretrained weights require, log them, and save the configuration; return it frozen."""
    cfg, notes = host.settle(cfg)
    cfg.freeze()
    for note in notes:
        logger.info(note)
    if comm.is_main_process() and cfg.OUTPUT_DIR:
        write_text(os.path.join(cfg.OUTPUT_DIR, "config.yaml"), cfg.dump())
    return cfg


def _check_loaded(model: nn.Module, missing: Sequence[str], path: str, own: bool) -> None:
    """Raise ValueError if tensors are missing in a resumed run, or if none fits; otherwise log the missing ones."""
    missing = [name for name in missing if not name.endswith("num_batches_tracked")]
    total = sum(not name.endswith("num_batches_tracked") for name in model.state_dict())
    if own and missing:
        raise ValueError(f"'{missing[0]}' is missing or has another size than in this model, and so do "
                         f"{len(missing) - 1} more of {total} tensors. Resume with the data and the config.yaml of the "
                         "run; to start another run with these weights, set MODEL.WEIGHTS and another OUTPUT_DIR.")
    if len(missing) == total:
        raise ValueError(f"none of its tensors fits one of the model's {total}; MODEL.WEIGHTS takes a checkpoint of "
                         "the same kind of model, MODEL.BACKBONE.PRETRAIN_PATH the weights of a backbone")
    if missing:
        counts = Counter(name.rpartition(".")[0] for name in missing)
        named = ", ".join(f"{name} ({count})" for name, count in counts.items())
        logger.warning(f"{path}: {total - len(missing)} of {total} tensors loaded. Initialised, or set from the "
                       f"training set: {named}")


def setup(args) -> CfgNode:
    """Read the configuration from the command line, and set up logging, output folder, device and seed.

    Args:
        args: options of FastReID's command line.

    Returns:
        the configuration, frozen.

    Raises:
        FileNotFoundError: if there is no such configuration file.
        ValueError: for keys that do not exist, or values that this machine does not support.
    """
    replace_unprintable()
    cfg = read_config(args)
    if args.eval_only:
        cfg.OUTPUT_DIR = os.path.join(cfg.OUTPUT_DIR, "evaluation")  # do not overwrite the files of the run
    began_with = None
    if args.resume and os.path.isfile(os.path.join(cfg.OUTPUT_DIR, "last_checkpoint")):
        cfg.MODEL.BACKBONE.PRETRAIN = False  # they would be overwritten, and the file may not exist any more
        run = _config_of_run(cfg.OUTPUT_DIR)
        began_with = comm.all_gather(run.SEED if run and run.SEED >= 0 else None)[0]
        if cfg.SEED < 0 and began_with is not None:
            cfg.SEED = began_with
        if run:
            cfg = with_settings(cfg, weight_settings(run), os.path.join(cfg.OUTPUT_DIR, "config.yaml"))
    cfg = start(cfg, args)
    if began_with not in (None, cfg.SEED):
        logger.warning(f"{cfg.OUTPUT_DIR}: the run started with SEED {began_with} and continues with SEED {cfg.SEED}; "
                       f"it will not equal an uninterrupted run; for that, resume with SEED {began_with} or -1")
    return cfg


def _config_of_run(folder: str) -> CfgNode | None:
    """Read the configuration of a run folder; return None if that is not possible."""
    cfg = get_cfg()
    add_cerberus_config(cfg)
    try:
        merge_file(cfg, os.path.join(folder, "config.yaml"))
    except (OSError, ValueError) as error:
        print(f"WARNING: {error}", file=sys.stderr)  # the log is not set up yet
        return None
    return cfg


def start(cfg: CfgNode, args) -> CfgNode:
    """Set up logging, the output folder and the seed.

    Args:
        cfg: configuration; a negative SEED is replaced by a random one.
        args: options of FastReID's command line.

    Returns:
        the configuration, frozen.

    Raises:
        ValueError: if excluded semantic IDs are to be chosen with a SEED that is not set.
    """
    if cfg.DATASETS.LEAVE_OUT_SIDS and cfg.SEED < 0 and cfg.DATASETS.LEAVE_OUT_SEED < 0:
        raise ValueError("DATASETS.LEAVE_OUT_SEED is -1, which means SEED, but SEED is -1 too: a resumed run would "
                         "exclude other semantic IDs. Set one of them to 0 or more.")
    if cfg.SEED < 0:
        cfg.SEED = comm.all_gather(int.from_bytes(os.urandom(3), "big"))[0]  # one for all processes
    cfg.freeze()
    default_setup(cfg, args)
    seed_all_rng(cfg.SEED + comm.get_rank())
    logger.info(f"FastReID {host.version()}, torch {torch.__version__}, seed {cfg.SEED} (replaces the random "
                "seed that FastReID generated)")
    return cfg


def read_config(args) -> CfgNode:
    """Read the configuration of --config-file and the options after it, and check the device.

    Args:
        args: options of FastReID's command line.

    Raises:
        FileNotFoundError: if there is no such configuration file.
        ValueError: for keys that do not exist, or values that this machine does not support.
    """
    if not os.path.isfile(args.config_file):
        raise FileNotFoundError(f"--config-file '{args.config_file}' is not a file; for example "
                                "configs/Market1501/cerberus_R50.yml")
    cfg = get_cfg()
    add_cerberus_config(cfg)
    try:
        merge_file(cfg, args.config_file)
        cfg.merge_from_list(args.opts)
    except (AssertionError, KeyError, ValueError) as error:  # raised by yacs for unknown keys
        switches = any(str(option).startswith("--") for option in args.opts)
        raise ValueError(f"{error}. The plugin's keys are in cerberus_plugin/config.py"
                         + ("; give options such as --eval-only before KEY VALUE." if switches else ".")) from error
    if cfg.MODEL.DEVICE.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError("MODEL.DEVICE is 'cuda' but torch finds no GPU; append `MODEL.DEVICE cpu` to the command.")
    if cfg.MODEL.DEVICE == "cpu" and comm.get_world_size() > 1 and torch.cuda.is_available():
        raise ValueError("MODEL.DEVICE is 'cpu', but these processes were started for GPUs; hide the GPUs: "
                         "set CUDA_VISIBLE_DEVICES= (empty) before the command.")
    if comm.get_world_size() > 1 and torch.device(cfg.MODEL.DEVICE).index is not None:
        raise ValueError(f"MODEL.DEVICE is '{cfg.MODEL.DEVICE}', but each of {comm.get_world_size()} processes uses "
                         "a different GPU: set MODEL.DEVICE to 'cuda'.")
    if cfg.MODEL.DEVICE == "cpu":
        cfg.SOLVER.AMP.ENABLED = False  # FastReID's mixed precision needs a GPU
    return cfg


def evaluate(cfg: CfgNode, model: nn.Module | None = None, test_sets: TestSets | None = None) -> OrderedDict:
    """Evaluate MODEL.WEIGHTS on DATASETS.TESTS, and write the results with the baseline of their training run.

    Args:
        cfg: configuration.
        model: model with these weights; loaded if None.
        test_sets: test sets by name; built from the configuration if None.

    Returns:
        metrics by test set, or the metrics of a single test set.
    """
    host.use_device(cfg.MODEL.DEVICE)
    if cfg.TEST.BEST_EPOCH:
        logger.info("TEST.BEST_EPOCH has no effect on the evaluation of one checkpoint; results.txt of the run has the "
                    "best epoch")
    if os.path.basename(cfg.MODEL.WEIGHTS) == "model_best.pth":
        logger.warning("model_best.pth was selected by its results on a test set, which therefore do not estimate "
                       "those on other data; model_final.pth is the last epoch")
    model = load_model(cfg) if model is None else model
    reader = reader_of(model)
    check_task_options(cfg, groups_of(model) or (reader.schema.group_names if reader else GROUPS))
    test_sets = test_sets or build_test_sets(cfg, reader.schema if reader else None)
    prototypes = getattr(model, "prototypes", None)
    if reader and prototypes is not None and prototypes.column_scales(reader.schema) is None:
        logger.info(f"{cfg.MODEL.WEIGHTS}: contains neither learned nor fitted cosine scales; probabilities use "
                    f"TEST.PAR.COSINE_SCALE {cfg.TEST.PAR.COSINE_SCALE:g}")
    if comm.is_main_process():
        run_folder = os.path.dirname(cfg.MODEL.WEIGHTS)
        report.write_floor(cfg.OUTPUT_DIR, report.read_floor(run_folder))
        report.write_starting_weights(cfg.OUTPUT_DIR, report.read_starting_weights(run_folder))
    results, accounts, by_value = CerberusTrainer.run_tests(cfg, model, test_sets)
    results = as_the_host(results)
    if comm.is_main_process():
        made = manifest.manifest(cfg, results, accounts, model, checkpoint=cfg.MODEL.WEIGHTS)
        write_results(cfg, results, made=made, by_value=by_value)
    return results


def as_the_host(results: OrderedDict) -> OrderedDict:
    """Return results in the form of FastReID.

    Args:
        results: metrics by test set.

    Returns:
        the metrics if there is one test set; otherwise `results`.

    Examples:
        >>> as_the_host(OrderedDict(Market1501={"mAP": 80.0}))
        {'mAP': 80.0}
    """
    return next(iter(results.values())) if len(results) == 1 else results


def check_identities(cfg: CfgNode, train_set: AttributeDataset) -> None:
    """Check that the training set has identities if the model learns identities.

    Args:
        cfg: configuration.
        train_set: training images.

    Raises:
        ValueError: if it has none.
    """
    name = cfg.MODEL.META_ARCHITECTURE
    if train_set.identified or name == "ARN" or name == "Cerberus" and needs_prototypes(cfg):
        return
    why = ("its LAMBDA_SEM, LAMBDA_REG and SOFTMAX are 0" if name == "Cerberus" else "it learns identities")
    raise ValueError(f"DATASETS.NAMES {cfg.DATASETS.NAMES}: the identities are unknown, because there is no column "
                     f"'person', and {name} cannot be trained on attributes only ({why}). Train Cerberus with "
                     "its prototypes (configs/Market1501/cerberus_R50.yml) or ARN (configs/Market1501/arn_R50.yml), or "
                     "add the column.")


def check_cameras(cfg: CfgNode, train_set: AttributeDataset) -> None:
    """Check that MODEL.BACKBONE.SIE_CAMERAS is 0 or the number of known cameras of the training set.

    Args:
        cfg: configuration.
        train_set: training images.

    Raises:
        ValueError: if it is another number.
    """
    given = cfg.MODEL.BACKBONE.SIE_CAMERAS
    if not given:
        return
    found = len(train_set.cameras)
    if given != found:
        raise ValueError(f"MODEL.BACKBONE.SIE_CAMERAS is {given}, but the training images of DATASETS.NAMES "
                         f"{list(cfg.DATASETS.NAMES)} are from {found} known cameras; set it to "
                         f"{found if found > 1 else '0 (off): camera embeddings need at least 2 cameras'}")


def check_optimizer_keys(cfg: CfgNode, model: nn.Module) -> None:
    """Check for keys of the optimizer that would have no effect on this model.

    Args:
        cfg: configuration.
        model: model to be trained.

    Raises:
        ValueError: with the key.
    """
    layers, iterations = list(cfg.MODEL.FREEZE_LAYERS), cfg.SOLVER.FREEZE_ITERS
    if bool(layers) != (iterations > 0):
        raise ValueError(f"MODEL.FREEZE_LAYERS is {layers} and SOLVER.FREEZE_ITERS {iterations}, so nothing would be "
                         "frozen. Set both, or MODEL.FREEZE_LAYERS [] and SOLVER.FREEZE_ITERS 0 to freeze nothing.")
    if cfg.SOLVER.HEADS_LR_FACTOR != 1 and not hasattr(model, "heads"):
        raise ValueError(f"SOLVER.HEADS_LR_FACTOR is {cfg.SOLVER.HEADS_LR_FACTOR}, but FastReID applies it only to a "
                         f"module with the name heads, and {type(model).__name__} has none. Set it to 1.0.")


def build_test_sets(cfg: CfgNode, schema: AttributeSchema | None,
                    held_out: tuple[AttributeDataset, int] | None = None,
                    datasets: Mapping[str, ImageDataset] | None = None) -> TestSets:
    """Build and check the test sets of DATASETS.TESTS.

    Args:
        cfg: configuration.
        schema: schema of the model's attributes; None for a model without attributes.
        held_out: see `TrainingData`; read again if None.
        datasets: see `TrainingData`; read again if None.

    Raises:
        ValueError: see `check_test_set`.
    """
    test_sets = {}
    for name in cfg.DATASETS.TESTS:
        test_sets[name] = held_out if name == HELD_OUT and held_out else build_test_set(
            cfg, name, schema, datasets)
        check_test_set(cfg, name, test_sets[name])
    return test_sets


def write_results(cfg: CfgNode, results, clock: TrainingClock | None = None,
                  evaluations: Mapping[str, Mapping[int, Mapping]] | None = None,
                  made: Mapping | None = None, by_value: Mapping[str, Mapping] | None = None) -> None:
    """Write results.txt, results.json and model_card.md with the data needed for comparisons with other results.

    Args:
        cfg: configuration.
        results: metrics, as returned by `CerberusTrainer.test`.
        clock: training time, NaN if unknown; None for the evaluation of a checkpoint.
        evaluations: metrics by test dataset and epoch; None for the evaluation of a checkpoint.
        made: record of data and model, see `manifest.manifest`.
        by_value: metrics by attribute value of each test dataset, see `ByValue.record`.
    """
    test = cfg.TEST
    training = None if clock is None else {"seconds": clock.seconds, "epochs": cfg.SOLVER.MAX_EPOCH, "seed": cfg.SEED,
                                           "processes": comm.get_world_size(), "resumed after epochs": clock.resumed}
    record = {
        "protocol": {
            "reid": {"ap": "rectangle", "same camera": "ignored", "metric": test.METRIC, "groups": list(test.GROUPS),
                     "flip": flips(cfg), **manifest.ranking_rules(cfg)},
            "par": {"force colour": test.PAR.FORCE_COLOUR, "query identities only": test.PAR.QUERY_IDENTITIES_ONLY,
                    "yes/no labels": par.LABELS},
            "aps": {"protocol": test.APS.PROTOCOL, "queries": aps.QUERIES[test.APS.PROTOCOL],
                    "pool": "query and gallery", "ap": "rectangle",
                    "ap that the protocol's paper publishes": aps.PUBLISHED_AP[test.APS.PROTOCOL]},
        },
        "weights": os.path.basename(cfg.MODEL.WEIGHTS) if clock is None else
                   "last epoch, averaged over steps" if cfg.SOLVER.EMA else "last epoch",
        "model": name_of(cfg),
        "backbone": {"name": cfg.MODEL.BACKBONE.NAME, "depth": str(cfg.MODEL.BACKBONE.DEPTH),
                     "pretrained": report.read_starting_weights(cfg.OUTPUT_DIR)},
        "image size": list(cfg.INPUT.SIZE_TEST),
        "training": training,
        "manifest": made,
        "by value": {} if by_value is None else dict(by_value),
        "hardware": environment.hardware(cfg.MODEL.DEVICE),
        "versions": {"cerberus_plugin": cerberus_plugin.__version__, **environment.versions()},
    }
    by_name = report.by_dataset(cfg.DATASETS.TESTS, results)
    if any("cloth-changing/mAP" in figures for figures in by_name.values()):
        changed = any(not math.isnan(figures.get("cloth-changing/mAP", math.nan)) for figures in by_name.values())
        record["protocol"]["outfits"] = {
            "ignored of the own identity, beside the own camera": SETTINGS,
            "metric": "mean of mAP and Rank-1" + (" under cloth-changing" if changed else ", whatever they wear")}
    record["evaluations"] = {name: epochs for name, epochs in (evaluations or {}).items() if name in by_name}
    best = {name: report.best_rows(epochs) for name, epochs in record["evaluations"].items()} if test.BEST_EPOCH else {}
    tables = report.write_results(cfg.OUTPUT_DIR, by_name, record, best)
    model_card.write(cfg.OUTPUT_DIR)
    if best:
        logger.info(f"Results of the last epoch and of the best:\n{tables}")


def name_of(cfg: CfgNode) -> str:
    """Return the name of the model in results, with options of the evaluation that change its predictions."""
    name = cfg.MODEL.META_ARCHITECTURE + (f" by {' and '.join(cfg.TEST.GROUPS)}" if cfg.TEST.GROUPS else "")
    synthesised = cfg.TEST.APS.SYNTHESISE and cfg.MODEL.META_ARCHITECTURE == "Cerberus"
    return f"{name}, unseen prototypes synthesised" if synthesised else name


def flips(cfg: CfgNode) -> bool:
    """Return whether embeddings include flipped images, through flip testing or the model itself."""
    return cfg.TEST.FLIP.ENABLED or (cfg.MODEL.META_ARCHITECTURE == "CSSC" and cfg.MODEL.CSSC.FLIP_SUM)
