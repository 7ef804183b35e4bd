"""The configuration keys of the plugin, the keys of MODEL that each model uses, and reading of configuration files."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import yaml
from fastreid.config import CfgNode as CN
from fastreid.config import get_cfg
from fastreid.config.config import BASE_KEY

# Keys that are set from the dataset or from a checkpoint, not in configuration files.
FILLED = ("MODEL.HEADS.NUM_CLASSES", "MODEL.NUM_OUTFITS", "MODEL.APR.SCHEMA", "MODEL.CERBERUS.SCHEMA",
          "MODEL.CERBERUS.NUM_SIDS")

MAX_BYTES = 2**20  # maximum size of a configuration file; a training run writes about 6 KB

# Keys of MODEL that a model of the plugin uses; a section includes all of its keys. `_EVERY_MODEL` lists those of all
# models. A key that is in none of these lists has no effect, and `check_model_keys` raises an error for it. Sections
# with the name of a model (MODEL.CERBERUS, MODEL.APR, MODEL.CSSC) are not checked.
_EVERY_MODEL = ("META_ARCHITECTURE", "DEVICE", "WEIGHTS", "FREEZE_LAYERS", "PIXEL_MEAN", "PIXEL_STD", "CHANNELS_LAST",
                "COMPILE", "COMPILE_MODE", "SYNC_BN", "HEADS.NORM", "HEADS.NUM_CLASSES")
_APR = ("HEADS.NAME", "HEADS.EMBEDDING_DIM", "HEADS.WITH_BNNECK", "HEADS.POOL_LAYER")
_IDENTITY = ("HEADS.CLS_LAYER", "HEADS.SCALE", "HEADS.MARGIN", "HEADS.NECK_FEAT", "LOSSES.NAME", "LOSSES.CE",
             "LOSSES.TRI", "LOSSES.CIRCLE", "LOSSES.COSFACE")
MODEL_KEYS = {
    "Cerberus": ("NUM_OUTFITS", "HEADS.NAME", "HEADS.EMBEDDING_DIM", "LOSSES.CE.EPSILON"),
    "CSSC": ("LOSSES.CE.EPSILON", "LOSSES.TRI.MARGIN"),
    "IDE": _APR + _IDENTITY,
    "ARN": ("NUM_OUTFITS", *_APR),
    "APR": ("NUM_OUTFITS", *_APR, *_IDENTITY),
}
# Keys of MODEL.BACKBONE that each supported backbone uses; keys of other backbones are not checked.
PRETRAINED = ("PRETRAIN", "PRETRAIN_PATH", "PRETRAIN_SOURCE", "PRETRAIN_PARTIAL")
_BACKBONE = ("NAME", "DEPTH", "FEAT_DIM", "CUT", *PRETRAINED)
_CONVOLUTIONS = (*_BACKBONE, "NORM")
_RESNET = (*_CONVOLUTIONS, "LAST_STRIDE")
BACKBONE_KEYS = {
    "build_resnet_backbone": (*_RESNET, "WITH_IBN", "WITH_SE", "WITH_NL", "STEM_POOL"),
    "build_resnext_backbone": (*_RESNET, "WITH_IBN", "WITH_NL"),
    "build_resnest_backbone": _RESNET,
    "build_osnet_backbone": (*_CONVOLUTIONS, "WITH_IBN"),
    "build_mobilenetv2_backbone": _CONVOLUTIONS,
    "build_mobilenetv3_backbone": _CONVOLUTIONS,
    "build_shufflenetv2_backbone": _CONVOLUTIONS,
    "build_effnet_backbone": _RESNET,
    "build_regnet_backbone": _RESNET,
    "build_repvgg_backbone": _RESNET,
    # Not SIE_COE, the weight of camera embeddings: FastReID's builder does not pass cameras to its transformer.
    "build_vit_backbone": (*_BACKBONE, "STRIDE_SIZE", "DROP_PATH_RATIO", "DROP_RATIO", "ATT_DROP_RATE"),
    "build_timm_backbone": (*_BACKBONE, "STRIDE_SIZE", "DROP_PATH_RATIO", "EXTRA_TOKENS", "CONV_STEM",
                            "SEMANTIC_WEIGHT", "WINDOW_SIZE", "SIE_CAMERAS", "SIE_COE"),
}
# Defaults of earlier versions, which are written in the config.yaml of their runs.
EARLIER_DEFAULTS = {"MODEL.BACKBONE.STEM_POOL": "ceil"}
# Supported values of MODEL.LOSSES.NAME, with the section that each of them uses.
LOSSES = {"CrossEntropyLoss": "CE", "TripletLoss": "TRI", "CircleLoss": "CIRCLE", "Cosface": "COSFACE"}


def configuration(name: str) -> Path:
    """Return the path of a configuration file of the package, such as "Market1501/bot_R50.yml".

    The files are those of the repository, or those installed with the package.

    Examples:
        >>> configuration("Market1501/bot_R50.yml").is_file()
        True
    """
    package = Path(__file__).parent
    return next(folder for folder in (package / "configs", package.parent / "configs") if folder.is_dir()) / name


def read_run_config(path: str | Path) -> CN:
    """Read the config.yaml of a training run.

    A run writes all keys. If keys of FastReID are missing, the file is truncated, and their defaults would change the
    model. Keys of the plugin can be missing in files of earlier versions.

    Raises:
        ValueError: if the file cannot be read or is incomplete.
    """
    host, cfg = get_cfg(), get_cfg()
    add_cerberus_config(cfg)
    written = merge_file(cfg, path)
    given = flat(written)
    absent = [key for key, value in flat(host).items() if given.get(key) is None and value is not None]
    if absent:
        raise ValueError(f"{path}: has no value for {', '.join(absent[:3])}"
                         f"{f' and {len(absent) - 3} other keys' if len(absent) > 3 else ''}, which every training run "
                         "writes; the file is truncated or damaged. Restore it from a copy, or train again")
    return cfg


def merge_file(cfg: CN, path: str | Path) -> CN:
    """Merge a configuration file into `cfg`.

    Returns:
        the keys and values of the file and of its `_BASE_` files.

    Raises:
        ValueError: if the file is not valid YAML, or has unknown keys or values of the wrong type; with its path.
    """
    try:
        _check_files(Path(path))
        written = CN(CN.load_yaml_with_base(str(path)))
        cfg.merge_from_other_cfg(written)
        return written
    except OSError:
        raise
    except Exception as error:  # exceptions of yacs, PyYAML and FastReID have no common base class
        text = " ".join(str(error).strip("'\"").split())
        raise ValueError(f"{path}: cannot be read as configuration ({type(error).__name__}: {text:.300}). It is "
                         "damaged, truncated, or written by another version of this package with other keys. Correct "
                         "or remove these lines (cerberus_plugin/config.py lists the keys of the plugin), use the "
                         "version that wrote the file, or train again") from error


def _check_files(path: Path, above: tuple[Path, ...] = ()) -> None:
    """Raise ValueError if a file or one of its `_BASE_` files is too large or includes itself.

    Args:
        above: the files that include this one.
    """
    if path.resolve() in above:
        raise ValueError(f"{BASE_KEY} includes {path} recursively")
    if not path.is_file():
        return
    if path.stat().st_size > MAX_BYTES:
        raise ValueError(f"{path} has more than {MAX_BYTES} bytes")
    values = yaml.safe_load(path.read_text())
    if not isinstance(values, dict):
        raise ValueError(f"{path} contains {type(values).__name__}, expected KEY: VALUE")
    bases = values.get(BASE_KEY, [])
    for base in bases if isinstance(bases, list) else [bases]:
        _check_files(path.parent / Path(base).expanduser(), (*above, path.resolve()))


def add_cerberus_config(cfg: CN) -> None:
    """Add all keys of the plugin to a FastReID configuration, with their defaults.

    Each key is documented in the source: meaning, unit, and the symbol in the paper. Equations, tables and figures are
    those of the Cerberus paper.

    Examples:
        >>> cfg = get_cfg()
        >>> add_cerberus_config(cfg)
        >>> cfg.MODEL.CERBERUS.SIGMA
        5.0
    """
    node = cfg.MODEL.CERBERUS = CN()

    # SCHEMA and NUM_SIDS are set by the trainer from the dataset, or from the checkpoint with --eval-only. Do not set
    # them in a file.
    node.SCHEMA = ""  # name of the attribute schema
    node.NUM_SIDS = []  # number of semantic IDs of each group (head, upper, lower, identity, carrying): |S^G|

    # Number of outfits of the training identities if outfits are labelled, otherwise 0. Set in the same way as
    # MODEL.CERBERUS.SCHEMA; do not set it in a file.
    cfg.MODEL.NUM_OUTFITS = 0

    # The semantic IDs that have a prototype: "observed": those of training identities; "union": those of training and
    # test identities, as counted in the paper; "product": all possible combinations of values, so that changing one
    # attribute of a semantic ID gives another semantic ID.
    node.SID_SPACE = "product"

    # Alignment: crop the local map to the rows with a maximum norm greater than SIGMA, before part pooling.
    node.ALIGN = True
    node.SIGMA = 5.0  # sigma, the threshold of the norm; the paper tests 2, 5, 7 and 10
    # Unit of SIGMA: 0 for absolute norms; otherwise this quantile of the norms of an image's map. With 0.5, SIGMA 1 is
    # the median norm. The same SIGMA can then be used for backbones with different scales of their maps.
    node.SIGMA_QUANTILE = 0.0
    node.SQUARED_NORM = False  # compare SIGMA with the squared norm, the alternative interpretation of the paper
    node.STRIP_OVERLAP = 0.0  # extension of a strip into its neighbours, relative to its height; 0: equal thirds

    cfg.register_deprecated_key("MODEL.CERBERUS.FC_BIAS")  # in older runs; see CerberusHead

    # Prototypes p_k: "free": one learnable vector per semantic ID, as in the paper; "composed": p_k = b + V^T A_k, the
    # sum of a base vector of the group and one vector for each bit of the semantic ID. LAMBDA_REG then has no effect.
    node.PROTOTYPES = "free"

    # Margin m of the semantic guidance loss, Eq. 3: "adaptive": ln(ALPHA * N_g / N + BETA), Eq. 4; "constant":
    # MARGIN_CONSTANT for all semantic IDs.
    node.MARGIN = "adaptive"
    node.MARGIN_CONSTANT = 0.6  # Table 8 of the paper: 0 and 0.6
    node.ALPHA = 0.4  # alpha of Eq. 4
    node.BETA = 1.8  # beta of Eq. 4

    # Weights of the losses, Eq. 2. If LAMBDA_SEM and SOFTMAX are 0, prototypes are not trained with images, so
    # that PAR and APS are not available; if LAMBDA_REG is 0 as well, the model has no prototypes. The label smoothing
    # of the identity classifiers is FastReID's MODEL.LOSSES.CE.EPSILON (0 in the paper).
    node.LAMBDA_ID = 1.0  # lambda_id, weight of the identity and triplet losses, Eq. 5
    node.LAMBDA_SEM = 5.0  # lambda_sem, weight of the semantic guidance loss, Eq. 3
    node.LAMBDA_REG = 0.001  # lambda_reg, weight of the prototype regularisation, Eq. 6 to 8

    # Number of classes of the identity classifiers per batch: the identities of the batch and random others (partial
    # softmax, for training sets with tens of thousands of identities). 0: all identities, as in the paper.
    node.SAMPLED_IDENTITIES = 0

    # Initialisation of prototypes and residual vectors (Table 7): he_normal, he_uniform, xavier_normal,
    # xavier_uniform, normal_0.01, normal_0.1, normal_1, normal_10 (standard deviation).
    node.INIT = "he_normal"

    # The following keys, up to SPLIT, are extensions that are not in the paper. All are disabled by default and then do
    # not change model, losses or checkpoint. SOFTMAX adds a cross-entropy over the prototypes of a group that have
    # training identities to the hinge of Eq. 3, or replaces the hinge if LAMBDA_SEM is 0.
    node.SOFTMAX = 0.0  # weight of the cross-entropy; 0: disabled
    node.SOFTMAX_SCALE = 16.0  # factor of the cosines in its logits
    # Use the logits s_G * cosine + log(N_k / N): the prior of a semantic ID is its share of training identities, the
    # scale of each group is learned, starting from SOFTMAX_SCALE. With DATASETS.HOLD_OUT, predictions use scales that
    # are fitted for each column on the held-out identities.
    node.SOFTMAX_PRIOR = False
    # Temperature of the weights of images in the softmax: exp(cosine / AGREEMENT) with the cosine to the other images
    # of the person in the batch, so that attributes that are not visible in an image have less influence. 0: equal
    # weights.
    node.AGREEMENT = 0.0
    # Pooling of the strips and of the global map: "mean" as in the paper; "max"; "gem", the generalised mean with one
    # learnable exponent per branch, initially 3.
    node.POOL = "mean"
    # Compute the triplet loss from the representations before batch normalisation; other losses and inference use those
    # after it.
    node.SPLIT = False

    # IDE, ARN and APR. Their identity losses are configured by FastReID's MODEL.LOSSES.
    apr = cfg.MODEL.APR = CN()
    apr.SCHEMA = ""  # name of the attribute schema, set like MODEL.CERBERUS.SCHEMA
    apr.LAMBDA = 0.9  # lambda of APR, the weight of the identity losses; that of the mean attribute loss is 1 - LAMBDA
    # Attribute scores that are an input of APR's identity classifier: "probabilities": of all classes of all
    # attributes; "positive": of the second class of attributes with two classes, and of all classes of the others;
    # "highest": of the most probable class of each attribute.
    apr.SCORES = "probabilities"
    apr.ARM = True  # apply the attribute re-weighting module to these scores; False for the ablation
    apr.BLOCK_DIM = 0  # size of a block FC-BN-dropout-ReLU after pooling, 512 in a variant of the paper; 0: no block
    apr.DROPOUT = 0.0  # dropout probability of the block, or of the pooled feature (0.9 in version 1 of the paper)

    # CSSC. Label smoothing and margin are FastReID's MODEL.LOSSES.CE.EPSILON and TRI.MARGIN, 0.1 and 0.3 in the paper.
    cssc = cfg.MODEL.CSSC = CN()
    cssc.TRIPLET_EPOCH = 36  # the first epoch with triplet losses, counted from 1
    cssc.FLIP_SUM = True  # add the features of the image and the flipped image; replaces FastReID's TEST.FLIP

    # Interpolation for resizing images in training and inference: "bicubic", as in FastReID, or "bilinear".
    # DATALOADER.RESIDENT only supports bicubic.
    cfg.INPUT.INTERPOLATION = "bicubic"
    cfg.INPUT.REA.SCALE = [0.02, 0.33]  # random erasing: range of the erased share of the image area
    cfg.INPUT.REA.RATIO = [0.3, 3.3]  # random erasing: range of the ratio of height to width of the erased area

    # Max pooling after the first convolution of build_resnet_backbone: "ceil": without padding, as in FastReID;
    # "padding": as in torchvision; "auto": as in the training of the pretrained weights, that is "padding" for
    # torchvision, timm, IBN-Net, CION and LUPerson, and "ceil" for checkpoints of FastReID and training from scratch.
    # FastReID's published results use "ceil".
    cfg.MODEL.BACKBONE.STEM_POOL = "auto"
    # Source of the file MODEL.BACKBONE.PRETRAIN_PATH, see docs/pretrained.md; "": detect it from the tensor names.
    cfg.MODEL.BACKBONE.PRETRAIN_SOURCE = ""
    cfg.MODEL.BACKBONE.PRETRAIN_PARTIAL = False  # accept files with fewer than 95 % of the tensors of the backbone
    # The following keys, up to WINDOW_SIZE, are options of build_timm_backbone, set automatically if weights need them.
    cfg.MODEL.BACKBONE.EXTRA_TOKENS = 0  # number of tokens in addition to the class token, 3 for PASS
    cfg.MODEL.BACKBONE.CONV_STEM = False  # convolutional stem of TransReID-SSL and CION
    cfg.MODEL.BACKBONE.SEMANTIC_WEIGHT = -1.0  # semantic weight of SOLIDER's Swin, 0.2 for reID; -1: disabled
    cfg.MODEL.BACKBONE.WINDOW_SIZE = 0  # window size of timm's Swin in tokens, 8 for CION; 0: timm's default
    # Camera embeddings (SIE of TransReID) for timm's vision transformers: number of cameras of the training set, 6 for
    # Market-1501 and 8 for DukeMTMC-reID; 0: none. Tokens of images with unknown cameras, such as in searches, get the
    # mean embedding. The weight is FastReID's MODEL.BACKBONE.SIE_COE, lambda = 3.0 in TransReID.
    cfg.MODEL.BACKBONE.SIE_CAMERAS = 0

    # Cerberus and CSSC: name of the last module of the trunk, after which the branches begin, such as layer3.0 of a
    # ResNet or blocks.8 of a vision transformer. For an unknown name the error lists the available modules. "": for
    # Cerberus the first block with maps of 1/16 of the height of the image (layer3.0), or two thirds of the blocks of a
    # vision transformer; for CSSC the module before the last blocks of equal width.
    cfg.MODEL.BACKBONE.CUT = ""

    # Images that cannot be read: "stop": raise an error with the file name; "skip": training uses another image of the
    # same person; evaluation, rank lists and plots omit the image. Each file is logged, and their number at the end.
    cfg.DATALOADER.ON_UNREADABLE = "stop"

    # Store the images on the device as uint8, and resize, pad, crop, flip and erase whole batches there. FastReID's
    # loader is used if they do not fit, or a transform has no batched implementation (logged). NUM_WORKERS then has no
    # effect.
    cfg.DATALOADER.RESIDENT = False
    cfg.DATALOADER.RESIDENT_GIB = 8.0  # memory limit in GiB for all datasets of a process; at most half of the free one

    # Accept annotations of identities without images in the folder, for subsets of a dataset.
    cfg.DATASETS.ALLOW_SUBSET = False

    # For folders in DATASETS.NAMES and TESTS without a table: regular expression that is searched in the path of an
    # image below the folder, with the named group person, and optionally camera, time and outfit.
    cfg.DATASETS.NAME_PATTERN = ""

    # Map the attributes of all datasets to a common ontology: "common": the one of the package, with attributes of
    # Market-1501, DukeMTMC-reID, PA-100K, PETA and UPAR; or the path of a YAML file, see docs/several_sets.md.
    cfg.DATASETS.ONTOLOGY = ""

    # For a custom dataset: a file in the format of split.csv that replaces the split of the dataset.
    cfg.DATASETS.SPLIT_FILE = ""

    # Number of randomly selected training identities that are excluded from training. DATASETS.TESTS "held-out"
    # evaluates on them.
    cfg.DATASETS.HOLD_OUT = 0
    cfg.DATASETS.HOLD_OUT_SEED = 0  # seed of the selection

    # Number of randomly selected semantic IDs, common to training and test identities, whose identities are excluded
    # from training: the experiment on unseen semantic IDs (Fig. 7b of the paper). A selection of 2 is the beginning of
    # a selection of 4.
    cfg.DATASETS.LEAVE_OUT_SIDS = 0
    cfg.DATASETS.LEAVE_OUT_SEED = 0  # seed of the selection; -1: use SEED, so that each seed has another selection
    # Only select semantic IDs with at most this share of the training identities; a frequent one would remove up to
    # half of them.
    cfg.DATASETS.LEAVE_OUT_SHARE = 1.0
    # Random control: exclude the same number of randomly selected identities instead.
    cfg.DATASETS.LEAVE_OUT_AT_RANDOM = False

    # Cerberus: names of the groups that are compared, such as ["head", "identity"] if clothes may have changed; empty:
    # all groups. `python -m cerberus_plugin.experiments.groups RUN` evaluates all subsets.
    cfg.TEST.GROUPS = []

    # Method of TEST.RERANK.ENABLED: "paper": the published k-reciprocal re-ranking, for both metrics; "fastreid": the
    # variant of FastReID, in which K1 includes the image itself and distances are not divided by their maximum; only
    # for cosine.
    cfg.TEST.RERANK.VARIANT = "paper"

    # Cerberus: method of recognition and search. "nearest": the nearest prototype of each group, and mean cosines, as
    # in the paper; "probability": the sum of the probabilities of the semantic IDs with a value, and log-probabilities.
    # Evaluations also report the other method in separate rows.
    cfg.TEST.READING = "nearest"

    # Recognition: predict the best semantic ID with a colour, never "no listed colour", which is always wrong by the
    # official rule.
    cfg.TEST.PAR = CN()
    cfg.TEST.PAR.FORCE_COLOUR = False
    cfg.TEST.PAR.QUERY_IDENTITIES_ONLY = False  # DukeMTMC: evaluate 702 instead of 1,110 identities

    # Cerberus: the probabilities of semantic IDs are the softmax of s * cosine + TAU * log(prior), with one scale s per
    # column. The prior is the share of the training identities.
    cfg.TEST.PAR.COSINE_SCALE = 16.0  # scale s if the checkpoint has neither learned nor measured ones
    cfg.TEST.PAR.TAU = 1.0  # weight of the logarithm of the prior; 0: no prior
    cfg.TEST.PAR.UNSEEN_PRIOR = 0.5  # number of identities assumed for a semantic ID without training identities

    # Protocol of attribute search. "asmr": rank all test images; "sal": exclude the images of the identity and camera
    # that represent the query; the queries are the categories of the query images, as in SAL's code (307 for DukeMTMC);
    # "sal-all": the same ranking, but the queries are the categories of all test images, as in "asmr" (387 for
    # DukeMTMC). For Market-1501 there are 484 queries in all protocols.
    cfg.TEST.APS = CN()
    cfg.TEST.APS.PROTOCOL = "asmr"
    cfg.TEST.APS.PARTIAL = "mean"  # score of a partially described group: "mean" or "max" over matching semantic IDs
    cfg.TEST.APS.GROUPS = []  # additional searches with partial descriptions, such as ["upper", "upper+lower"]

    # PAR and APS: replace prototypes without training identities by those that minimise the regulariser with all other
    # vectors fixed. Not useful without LAMBDA_REG, because residual vectors are then not trained.
    cfg.TEST.APS.SYNTHESISE = False

    # SOLVER.AUTOCAST, TEST.AUTOCAST, MODEL.CHANNELS_LAST, MODEL.COMPILE and SOLVER.FUSED only affect speed, not the
    # algorithm; see benchmarks/README.md for measurements. Precision of forward passes: "bfloat16"; or "" for
    # FastReID's (float32, or float16 with SOLVER.AMP and a gradient scaler). On hardware without bfloat16, float32 is
    # used. On a GPU, evaluation in float32 does not use TF32; training does if torch permits it for cuDNN, which is the
    # default.
    cfg.SOLVER.AUTOCAST = ""  # precision of training
    cfg.TEST.AUTOCAST = ""  # precision of evaluation: "", "bfloat16" or "float16"; see SOLVER.AUTOCAST
    cfg.MODEL.CHANNELS_LAST = False  # channels-last memory format of images, maps and weights
    cfg.MODEL.COMPILE = False  # torch.compile for training; the first step takes about a minute
    # Mode of MODEL.COMPILE: "default"; or "reduce-overhead": run a step on a GPU as CUDA graphs, with more memory.
    cfg.MODEL.COMPILE_MODE = "default"
    cfg.SOLVER.FUSED = False  # fused implementation of the optimiser, if SOLVER.OPT has one

    # Decay of an exponential moving average of the weights, updated after each step, such as 0.999; 0: disabled. For
    # all models. Evaluation, and the key "model" of checkpoints, use the average; training continues with the raw
    # weights, which are stored in addition. After t steps the decay is at most (1 + t) / (10 + t). Batch statistics are
    # those of the raw weights.
    cfg.SOLVER.EMA = 0.0

    # Compute batch statistics over all processes of a distributed training instead of each process separately.
    cfg.MODEL.SYNC_BN = False

    # Evaluate the untrained model before the first step, as a baseline in the table of results.
    cfg.TEST.UNTRAINED_FLOOR = False

    # Add two rows to the results of the last epoch, both selected on the test set: the evaluated epoch with the highest
    # "metric", the mean of mAP and Rank-1 (under cloth-changing if outfits are known); and the highest mAP and the
    # highest Rank-1, possibly of different epochs, as reported by the code of CSSC. results.json always contains the
    # results of all evaluated epochs.
    cfg.TEST.BEST_EPOCH = False

    cfg.LOG_PERIOD = 200  # iterations between two progress lines of the log
    cfg.SEED = -1  # seed of all random generators; negative: choose a random seed and log it


def check_model_keys(cfg: CN) -> None:
    """Check that no key of MODEL differs from its default without having an effect on the training of the model.

    Models of FastReID are not checked. Inference does not call this function, so that older runs can be used.

    Raises:
        ValueError: if there are such keys; with their values and defaults.
    """
    name, losses = cfg.MODEL.META_ARCHITECTURE, cfg.MODEL.LOSSES
    if name not in MODEL_KEYS:
        return
    read, unused = _read_keys(cfg)
    if "LOSSES.NAME" in read and not set(losses.NAME) <= set(LOSSES):
        raise ValueError(f"MODEL.LOSSES.NAME is {list(losses.NAME)}, expected any of {', '.join(LOSSES)}")
    if "LOSSES.NAME" not in read and "LOSSES.CE.EPSILON" in read and not 0 <= losses.CE.EPSILON <= 1:
        raise ValueError(f"MODEL.LOSSES.CE.EPSILON is {losses.CE.EPSILON}, expected 0 to 1: {name} does not support "
                         "adaptive label smoothing")
    own = {key.removeprefix("MODEL."): value for key, value in changed(cfg).items() if key.startswith("MODEL.")}
    wrong = [f"MODEL.{key} is {value!r} (default: {defaults().get(f'MODEL.{key}')!r})" for key, value in own.items()
             if is_among(key, unused) or not is_among(key, read)]
    if wrong:
        known = ", ".join(key for key in read if key.startswith(("HEADS", "LOSSES")) and key not in unused)
        raise ValueError(f"keys without effect on {name} in this configuration: {'; '.join(wrong)}. Remove them, or "
                         f"set them to their default. Of MODEL.HEADS and MODEL.LOSSES this model uses {known}.")


def _read_keys(cfg: CN) -> tuple[list[str], list[str]]:
    """Keys and sections of MODEL that the model uses, and those of them that have no effect due to other keys."""
    model = cfg.MODEL
    read = [*_EVERY_MODEL, *MODEL_KEYS[model.META_ARCHITECTURE], "CERBERUS", "APR", "CSSC"]
    if model.BACKBONE.NAME in BACKBONE_KEYS:
        read += [f"BACKBONE.{key}" for key in BACKBONE_KEYS[model.BACKBONE.NAME]]
    else:
        read.append("BACKBONE")
    if model.META_ARCHITECTURE == "Cerberus" and model.HEADS.NAME != "CerberusHead":
        read.append("HEADS")  # a custom head can use any key
    unused = [] if model.META_ARCHITECTURE in ("Cerberus", "CSSC") else ["BACKBONE.CUT"]
    if not model.BACKBONE.SIE_CAMERAS:
        unused.append("BACKBONE.SIE_COE")
    if "HEADS.WITH_BNNECK" in read and not model.HEADS.WITH_BNNECK and not model.APR.BLOCK_DIM:
        unused.append("HEADS.NORM")
    if "LOSSES.NAME" not in read:
        return read, unused
    unused += [f"LOSSES.{section}" for name, section in LOSSES.items() if name not in model.LOSSES.NAME]
    if set(model.LOSSES.NAME) <= {"CrossEntropyLoss"}:
        unused.append("HEADS.NECK_FEAT")  # selects the feature for the other losses
    if model.LOSSES.CE.EPSILON >= 0:
        unused.append("LOSSES.CE.ALPHA")  # for adaptive label smoothing
    if model.HEADS.CLS_LAYER == "Linear":
        unused.append("HEADS.MARGIN")
    return read, unused


def is_among(key: str, sections: Sequence[str]) -> bool:
    """Return whether a dotted key is one of the keys or sections, or belongs to one of the sections.

    Examples:
        >>> is_among("LOSSES.CE.EPSILON", ["LOSSES.CE"]), is_among("LOSSES.CELL", ["LOSSES.CE"])
        (True, False)
    """
    return any(f"{key}.".startswith(f"{section}.") for section in sections)


def flat(values: Mapping, separator: str = ".", prefix: str = "") -> dict[str, Any]:
    """Return the values of a configuration or another nested mapping by dotted key; tuples are converted to lists.

    Args:
        values: nested mapping.
        separator: text between the parts of a key.
        prefix: prefix of all keys.

    Examples:
        >>> flat({"MODEL": {"DEVICE": "cpu"}, "SEED": 1})
        {'MODEL.DEVICE': 'cpu', 'SEED': 1}
    """
    found: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            found |= flat(value, separator, f"{prefix}{key}{separator}")
        else:
            found[f"{prefix}{key}"] = list(value) if isinstance(value, tuple) else value
    return found


def with_values(cfg: CN, values: Mapping[str, Any]) -> CN:
    """Return a frozen copy of a configuration with other values, given by dotted key.

    Examples:
        >>> with_values(get_cfg(), {"TEST.METRIC": "euclidean"}).TEST.METRIC
        'euclidean'
    """
    copy = cfg.clone()
    copy.defrost()
    for key, value in values.items():
        *sections, last = key.split(".")
        functools.reduce(getattr, sections, copy)[last] = value
    copy.freeze()
    return copy


@functools.cache
def defaults() -> Mapping[str, Any]:
    """Return the defaults of FastReID and of the plugin by dotted key.

    Examples:
        >>> defaults()["MODEL.CERBERUS.LAMBDA_SEM"]
        5.0
    """
    cfg = get_cfg()
    add_cerberus_config(cfg)
    return MappingProxyType(flat(cfg))


def changed(cfg: Mapping) -> dict[str, Any]:
    """Return the values of a configuration that differ from the defaults, by dotted key.

    Keys without a default are included. Defaults of earlier versions (`EARLIER_DEFAULTS`) are not.

    Examples:
        >>> changed({"MODEL": {"CERBERUS": {"SIGMA": 2.0, "ALIGN": True}}})
        {'MODEL.CERBERUS.SIGMA': 2.0}
    """
    usual = defaults()
    return {key: value for key, value in flat(cfg).items()
            if key not in usual or usual[key] != value and EARLIER_DEFAULTS.get(key) != value}
