"""Configuration keys of the plugin, the keys of MODEL that its models read, and configuration files."""

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

# Keys that are filled from the dataset or from a checkpoint: a paper's configuration file does not know them.
FILLED = ("MODEL.HEADS.NUM_CLASSES", "MODEL.NUM_OUTFITS", "MODEL.APR.SCHEMA", "MODEL.CERBERUS.SCHEMA",
          "MODEL.CERBERUS.NUM_SIDS")

MAX_BYTES = 2**20  # of a configuration file; a training run writes about 6 KB

# Keys of MODEL that a model of the plugin reads, a section standing for all of its keys. Those of every model first;
# what is in none of these lists has no effect on the model, and `check_model_keys` refuses to train with it. A section
# that is named after a model (MODEL.CERBERUS, MODEL.APR, MODEL.CSSC) belongs to that model and is not checked.
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
# Likewise for the backbones that the plugin's models take apart; others are the user's, or FastReID's, to check.
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
    # Without SIE_COE: FastReID's builder gives its transformer no cameras, of which it is the weight.
    "build_vit_backbone": (*_BACKBONE, "STRIDE_SIZE", "DROP_PATH_RATIO", "DROP_RATIO", "ATT_DROP_RATE"),
    "build_timm_backbone": (*_BACKBONE, "STRIDE_SIZE", "DROP_PATH_RATIO", "EXTRA_TOKENS", "CONV_STEM",
                            "SEMANTIC_WEIGHT", "WINDOW_SIZE"),
}
# Defaults of earlier versions, which the files of their runs name.
EARLIER_DEFAULTS = {"MODEL.BACKBONE.STEM_POOL": "ceil"}
# Names that MODEL.LOSSES.NAME may hold, with the section that each of them reads.
LOSSES = {"CrossEntropyLoss": "CE", "TripletLoss": "TRI", "CircleLoss": "CIRCLE", "Cosface": "COSFACE"}


def configuration(name: str) -> Path:
    """A configuration file of the package, such as "Market1501/bot_R50.yml": of the repository, or installed with it.
    """
    package = Path(__file__).parent
    return next(folder for folder in (package / "configs", package.parent / "configs") if folder.is_dir()) / name


def read_run_config(path: str | Path) -> CN:
    """The configuration of a training run, from the config.yaml that it wrote.

    A run writes every key. A file without some of FastReID's keys is cut short, and the defaults in their place would
    change what the model computes. Keys of the plugin may be absent: an earlier version did not have them.

    Raises:
        ValueError: the file cannot be read or is not whole.
    """
    host, cfg = get_cfg(), get_cfg()
    add_cerberus_config(cfg)
    written = merge_file(cfg, path)
    given = flat(written)
    absent = [key for key, value in flat(host).items() if given.get(key) is None and value is not None]
    if absent:
        raise ValueError(f"{path}: has no value for {', '.join(absent[:3])}"
                         f"{f' and {len(absent) - 3} other keys' if len(absent) > 3 else ''}, which every training run "
                         "writes; the file is cut short or damaged. Restore it from a copy, or train again")
    return cfg


def merge_file(cfg: CN, path: str | Path) -> CN:
    """Merge a configuration file into `cfg`; return what the file and those it is based on say.

    Raises:
        ValueError: with the name of the file, if it is no YAML, or has keys or values that `cfg` cannot take.
    """
    try:
        _check_files(Path(path))
        written = CN(CN.load_yaml_with_base(str(path)))
        cfg.merge_from_other_cfg(written)
        return written
    except OSError:
        raise
    except Exception as error:  # of yacs, PyYAML and FastReID, which share no class
        text = " ".join(str(error).strip("'\"").split())
        raise ValueError(f"{path}: cannot be read as configuration ({type(error).__name__}: {text:.300}). It is "
                         "damaged, cut short, or written by another version of this package, whose keys differ: "
                         "correct or remove the lines named (cerberus_plugin/config.py has the plugin's keys), use the "
                         "version that wrote it, or train again") from error


def _check_files(path: Path, above: tuple[Path, ...] = ()) -> None:
    """Refuse a file, or one that it is based on, that is too large or based on itself, without an end.

    Args:
        above: the files that are based on this one.
    """
    if path.resolve() in above:
        raise ValueError(f"{BASE_KEY} leads back to {path}")
    if not path.is_file():
        return
    if path.stat().st_size > MAX_BYTES:
        raise ValueError(f"{path} has more than {MAX_BYTES} bytes")
    values = yaml.safe_load(path.read_text())
    if not isinstance(values, dict):
        raise ValueError(f"{path} holds {type(values).__name__}, expected KEY: VALUE")
    bases = values.get(BASE_KEY, [])
    for base in bases if isinstance(bases, list) else [bases]:
        _check_files(path.parent / Path(base).expanduser(), (*above, path.resolve()))


def add_cerberus_config(cfg: CN) -> None:
    """Add every key of the plugin to a host configuration."""
    node = cfg.MODEL.CERBERUS = CN()

    # Filled by the trainer from the dataset, or from the checkpoint under --eval-only; leave them alone.
    node.SCHEMA = ""  # name of the attribute schema
    node.NUM_SIDS = []  # semantic IDs of head, upper, lower, identity, carrying: |S^G|

    # Filled likewise: outfits of the training identities where the labels are those of outfits; else 0.
    cfg.MODEL.NUM_OUTFITS = 0

    # Which semantic IDs get a prototype: "observed" in training; "union" of training and test, as the paper counts;
    # "product", every combination that can occur, so that changing one attribute never leaves the table.
    node.SID_SPACE = "product"

    # Alignment: crop the local map to the rows whose largest norm exceeds SIGMA, before part pooling.
    node.ALIGN = True
    node.SIGMA = 5.0  # sigma; the paper tries 2, 5, 7, 10
    # 0 takes SIGMA as it is. Else SIGMA counts in the norm that this share of the places of an image's own map stay
    # below: at 0.5, a SIGMA of 1 is the median norm. One SIGMA then fits backbones whatever the scale of their maps.
    node.SIGMA_QUANTILE = 0.0
    node.SQUARED_NORM = False  # hold SIGMA against the squared norm, the other reading of the paper
    node.STRIP_OVERLAP = 0.0  # share of its height by which a strip reaches into its neighbours; equal thirds at 0

    cfg.register_deprecated_key("MODEL.CERBERUS.FC_BIAS")  # of older runs; see CerberusHead

    # Prototypes: "free", a row a semantic ID, as in the paper; "composed", p_k = b + V^T A_k, the sum of a vector of
    # the group and of one vector for each bit that the semantic ID has. Composed, LAMBDA_REG has nothing to do.
    node.PROTOTYPES = "free"

    # Margin of the semantic guidance loss: "adaptive" is ln(ALPHA * N_g / N + BETA), Eq. 4; "constant" is
    # MARGIN_CONSTANT for every semantic ID (Table 8: 0 and 0.6).
    node.MARGIN = "adaptive"
    node.MARGIN_CONSTANT = 0.6
    node.ALPHA = 0.4  # alpha
    node.BETA = 1.8  # beta

    # Weights of the losses, Eq. 2. Without LAMBDA_SEM and SOFTMAX prototypes learn nothing of images, so no PAR and no
    # APS; without LAMBDA_REG as well there are none. Label smoothing of the identity classifiers is FastReID's
    # MODEL.LOSSES.CE.EPSILON (0 in the paper).
    node.LAMBDA_ID = 1.0
    node.LAMBDA_SEM = 5.0
    node.LAMBDA_REG = 0.001

    # Classify a batch among its own identities and random others, this many together, in place of all: partial
    # softmax, for training sets of tens of thousands of identities. 0 takes all, as the paper does.
    node.SAMPLED_IDENTITIES = 0

    # Initial values of prototypes and residual vectors (Table 7): he_normal, he_uniform, xavier_normal,
    # xavier_uniform, normal_0.01, normal_0.1, normal_1, normal_10 (standard deviation).
    node.INIT = "he_normal"

    # Beyond the paper; each is off by default, and then nothing of it is in model, losses or checkpoint.
    # SOFTMAX: weight of a cross-entropy over the prototypes of a group that training identities carry, with
    # SOFTMAX_SCALE * cosine as logits; beside the hinge of Eq. 3, or in place of it where LAMBDA_SEM is 0.
    node.SOFTMAX = 0.0
    node.SOFTMAX_SCALE = 16.0
    # Logits s_G * cosine + log(N_k / N): the share of training identities that carry a semantic ID is its prior, and
    # the scale of each group is learned, from SOFTMAX_SCALE on. Under DATASETS.HOLD_OUT, columns are read with scales
    # that are fitted on the held-out people.
    node.SOFTMAX_PRIOR = False
    # Weight of each image in the softmax by how well it agrees with the other images of its person in the batch,
    # exp(cosine / AGREEMENT): an attribute that a view does not show counts less. 0 counts all images alike.
    node.AGREEMENT = 0.0
    # Pooling of the strips and of the global map: "mean" as in the paper, "max", or "gem", the generalised mean with a
    # learnable exponent a branch, from 3 on.
    node.POOL = "mean"
    # Triplet loss on the representations before batch normalisation; the other losses and inference after it.
    node.SPLIT = False

    # IDE, ARN and APR; identity losses are FastReID's MODEL.LOSSES.
    apr = cfg.MODEL.APR = CN()
    apr.SCHEMA = ""  # name of the attribute schema, filled as MODEL.CERBERUS.SCHEMA is
    apr.LAMBDA = 0.9  # lambda of APR: share of the identity losses, the rest is of the attributes' mean
    # What joins the feature in APR's identity classifier: "probabilities", of all classes of all attributes;
    # "positive", of two-valued attributes the second class alone; "highest", one probability an attribute.
    apr.SCORES = "probabilities"
    apr.ARM = True  # re-weight these scores by each other; off for the ablation
    apr.BLOCK_DIM = 0  # size of a block FC-BN-dropout-ReLU after pooling, 512 in the paper's variant; 0 for none
    apr.DROPOUT = 0.0  # share dropped in that block, or of the pooled feature without one (0.9 in the paper's v1)

    # CSSC; label smoothing and margin are FastReID's MODEL.LOSSES.CE.EPSILON and TRI.MARGIN, 0.1 and 0.3 in the paper.
    cssc = cfg.MODEL.CSSC = CN()
    cssc.TRIPLET_EPOCH = 36  # the first epoch, from 1 on, with triplet losses beside the classification
    cssc.FLIP_SUM = True  # an embedding is of the image and its mirror image; in place of FastReID's TEST.FLIP

    # How images are resized, in training and in use: "bicubic", as FastReID does, or "bilinear". Exported models and
    # DATALOADER.RESIDENT know bicubic alone.
    cfg.INPUT.INTERPOLATION = "bicubic"
    # Random erasing: share of the image, and height over width, that are erased; drawn between these bounds.
    cfg.INPUT.REA.SCALE = [0.02, 0.33]
    cfg.INPUT.REA.RATIO = [0.3, 3.3]

    # Pooling behind the first convolution of build_resnet_backbone: "ceil", FastReID's, without padding; "padding",
    # torchvision's; "auto", that by which the pretrained weights were trained: "padding" for torchvision, timm,
    # IBN-Net, CION and LUPerson, "ceil" for checkpoints of FastReID and from scratch. FastReID's figures are of "ceil".
    cfg.MODEL.BACKBONE.STEM_POOL = "auto"
    # Whose file MODEL.BACKBONE.PRETRAIN_PATH is; "" goes by the names of its tensors. docs/pretrained.md lists them.
    cfg.MODEL.BACKBONE.PRETRAIN_SOURCE = ""
    cfg.MODEL.BACKBONE.PRETRAIN_PARTIAL = False  # accept a file that fills fewer than 95 % of the backbone's tensors
    # Of build_timm_backbone; set by weights that need them. Tokens beside the class token, 3 in PASS; the convolution
    # stem of TransReID-SSL and CION; the share of semantic information in SOLIDER's Swin, 0.2 for reID, -1 for none.
    cfg.MODEL.BACKBONE.EXTRA_TOKENS = 0
    cfg.MODEL.BACKBONE.CONV_STEM = False
    cfg.MODEL.BACKBONE.SEMANTIC_WEIGHT = -1.0
    cfg.MODEL.BACKBONE.WINDOW_SIZE = 0  # rows and columns of a window of timm's Swin, 8 in CION's; 0 for timm's

    # Cerberus and CSSC: the module of the backbone behind which the branches begin, by its name, such as layer3.0 of a
    # ResNet or blocks.8 of a vision transformer; an unknown one is answered with those there are. "" is the default:
    # for Cerberus the first block with maps of a sixteenth of the image's height (layer3.0), and two thirds of a
    # vision transformer's blocks; for CSSC what comes before the last blocks of one width.
    cfg.MODEL.BACKBONE.CUT = ""

    # An image that cannot be read: "stop" with its name, or "skip": training takes another image of the same
    # person; evaluation, rank sheets and figures leave it out. Each is named in the log, and their number at the end.
    cfg.DATALOADER.ON_UNREADABLE = "stop"

    # Keep the images on the device as uint8 and resize, pad, crop, flip and erase whole batches there; FastReID's
    # loader where they do not fit or a transform has no batched form, which the log says. NUM_WORKERS has no effect.
    cfg.DATALOADER.RESIDENT = False
    cfg.DATALOADER.RESIDENT_GIB = 8.0  # GiB for all datasets of a process; never more than half of what is free

    # Accept annotations of identities that have no image in the folder, as in a subset of a dataset.
    cfg.DATASETS.ALLOW_SUBSET = False

    # For a folder of one's own among DATASETS.NAMES and TESTS without a table: a regular expression with the group
    # person, and camera, time and outfit as far as names of images tell, searched in the path below the folder.
    cfg.DATASETS.NAME_PATTERN = ""

    # Read the attributes of all datasets under common ones: "common" for those of the package, which Market-1501,
    # DukeMTMC-reID, PA-100K, PETA and UPAR have in part, or the path of a YAML file, see docs/several_sets.md.
    cfg.DATASETS.ONTOLOGY = ""

    # For a dataset of one's own: a file in the form of split.csv that is read in place of the dataset's own split.
    cfg.DATASETS.SPLIT_FILE = ""

    # Keep this many training identities, drawn by the seed, out of training; DATASETS.TESTS "held-out" tests on them.
    cfg.DATASETS.HOLD_OUT = 0
    cfg.DATASETS.HOLD_OUT_SEED = 0

    # Draw this many semantic IDs that training and test people share, and keep every identity with one of them out of
    # training: unseen semantic IDs (Fig. 7b of the paper). Those of 2 are the first two of those of 4.
    cfg.DATASETS.LEAVE_OUT_SIDS = 0
    # -1 draws by SEED, so that several seeds are several draws.
    cfg.DATASETS.LEAVE_OUT_SEED = 0
    # Only semantic IDs that at most this share of the training people carry; a common one takes half of them with it.
    cfg.DATASETS.LEAVE_OUT_SHARE = 1.0
    # Leave out as many people whoever they are, in their place: what fewer training people do by themselves.
    cfg.DATASETS.LEAVE_OUT_AT_RANDOM = False

    # Cerberus: compare people by these groups alone, such as ["head", "identity"] where clothes may have changed; all
    # where empty. `python -m cerberus_plugin.experiments.groups RUN` measures every choice.
    cfg.TEST.GROUPS = []

    # With TEST.RERANK.ENABLED: "paper", the published k-reciprocal re-ranking, for both metrics; "fastreid", FastReID's
    # own figures, where K1 counts the image itself and distances are not divided by their maximum; cosine only.
    cfg.TEST.RERANK.VARIANT = "paper"

    # Cerberus: how attributes are read off an embedding, in recognition and search. "nearest": the nearest prototype of
    # each group and mean cosines, as in the paper; "probability": the sum over the semantic IDs that hold a value, and
    # log-probabilities. Evaluations report the other one too, in rows of its own.
    cfg.TEST.READING = "nearest"

    # Recognition. FORCE_COLOUR answers with the best semantic ID that names a colour, never "no listed colour",
    # which the official rule always counts as wrong.
    cfg.TEST.PAR = CN()
    cfg.TEST.PAR.FORCE_COLOUR = False
    cfg.TEST.PAR.QUERY_IDENTITIES_ONLY = False  # DukeMTMC: score 702 identities in place of 1,110

    # Cerberus: probabilities of semantic IDs are the softmax of s * cosine + TAU * log(prior), with a scale s of each
    # column. The prior is the share of training identities; one that none of them carries counts as UNSEEN_PRIOR
    # identities. COSINE_SCALE is s where the checkpoint has neither learned nor measured scales.
    cfg.TEST.PAR.COSINE_SCALE = 16.0
    cfg.TEST.PAR.TAU = 1.0
    cfg.TEST.PAR.UNSEEN_PRIOR = 0.5

    # Search. PROTOCOL "asmr": rank all test images; "sal": without the person-and-camera that stands for the query, and
    # queries are the categories of the query images alone, as in SAL's code (DukeMTMC 307); "sal-all": the same, and
    # queries are those of all test images, as under "asmr" (DukeMTMC 387; on Market-1501 it is 484 either way).
    cfg.TEST.APS = CN()
    cfg.TEST.APS.PROTOCOL = "asmr"
    cfg.TEST.APS.PARTIAL = "mean"  # a half-described group: "mean" or "max" over the semantic IDs that agree
    cfg.TEST.APS.GROUPS = []  # partial searches to report beside the full one, such as ["upper", "upper+lower"]

    # PAR as well: in place of a prototype that no training identity carries, the one that minimises the regulariser
    # with everything else as trained. Without LAMBDA_REG residual vectors learn nothing, and nor does this.
    cfg.TEST.APS.SYNTHESISE = False

    # Speed; none of these changes what is computed. benchmarks/README.md has a row for each.
    # Precision of forward passes: "bfloat16", or "" for FastReID's (float32, or float16 by SOLVER.AMP with its
    # gradient scaler). TEST.AUTOCAST may be "float16" too. Where the hardware has no bfloat16, float32 is used. On a
    # GPU, float32 is evaluated without TF32, and trained with it where torch allows cuDNN that, as it does by default.
    cfg.SOLVER.AUTOCAST = ""
    cfg.TEST.AUTOCAST = ""
    cfg.MODEL.CHANNELS_LAST = False  # order of images, maps and weights in memory that convolutions are fastest with
    cfg.MODEL.COMPILE = False  # torch.compile for training; the first step takes a minute or so
    # "default", or "reduce-overhead" to replay a step's operations on a GPU as CUDA graphs, which takes more memory.
    cfg.MODEL.COMPILE_MODE = "default"
    cfg.SOLVER.FUSED = False  # the whole optimiser step as one kernel, where SOLVER.OPT has one

    # Decay of an exponential moving average of the weights after each step, such as 0.999, for any model; 0 for none.
    # Evaluation and the "model" of checkpoints are the average, training goes on from the raw weights beside it. It
    # is at most (1 + t) / (10 + t) after t steps; batch statistics are those of the raw weights.
    cfg.SOLVER.EMA = 0.0

    # Batch statistics over all processes of a distributed training, in place of each process's own.
    cfg.MODEL.SYNC_BN = False

    # Evaluate the untrained model before the first step, as the floor that the table shows.
    cfg.TEST.UNTRAINED_FLOOR = False

    # Show two rows beside the last epoch, both chosen on the test set: the evaluated epoch with the highest "metric",
    # and the highest mAP and the highest Rank-1, each of an epoch of its own, as the code of CSSC reports them.
    # results.json has the figures of every evaluated epoch either way.
    cfg.TEST.BEST_EPOCH = False

    cfg.LOG_PERIOD = 200  # iterations between two lines of progress
    cfg.SEED = -1  # of every random number; negative draws one, which the log names


def check_model_keys(cfg: CN) -> None:
    """Refuse keys of MODEL that differ from their default and have no effect on training this model.

    Models of FastReID are not checked. Inference does not call this, so that older runs can be read.

    Raises:
        ValueError: names each key, its value, and its default.
    """
    name, losses = cfg.MODEL.META_ARCHITECTURE, cfg.MODEL.LOSSES
    if name not in MODEL_KEYS:
        return
    read, unused = _read_keys(cfg)
    if "LOSSES.NAME" in read and not set(losses.NAME) <= set(LOSSES):
        raise ValueError(f"MODEL.LOSSES.NAME is {list(losses.NAME)}, expected any of {', '.join(LOSSES)}")
    if "LOSSES.NAME" not in read and "LOSSES.CE.EPSILON" in read and not 0 <= losses.CE.EPSILON <= 1:
        raise ValueError(f"MODEL.LOSSES.CE.EPSILON is {losses.CE.EPSILON}, expected 0 to 1: {name} has no adaptive "
                         "label smoothing")
    own = {key.removeprefix("MODEL."): value for key, value in changed(cfg).items() if key.startswith("MODEL.")}
    wrong = [f"MODEL.{key} is {value!r} (default: {defaults().get(f'MODEL.{key}')!r})" for key, value in own.items()
             if is_among(key, unused) or not is_among(key, read)]
    if wrong:
        known = ", ".join(key for key in read if key.startswith(("HEADS", "LOSSES")) and key not in unused)
        raise ValueError(f"keys without effect on {name}, as the rest of the configuration stands: {'; '.join(wrong)}. "
                         "Remove them, or set them to their default. Of MODEL.HEADS and MODEL.LOSSES this model reads "
                         f"{known}.")


def _read_keys(cfg: CN) -> tuple[list[str], list[str]]:
    """Keys and sections of MODEL that the model reads, and those among them that other keys leave without effect."""
    model = cfg.MODEL
    read = [*_EVERY_MODEL, *MODEL_KEYS[model.META_ARCHITECTURE], "CERBERUS", "APR", "CSSC"]
    if model.BACKBONE.NAME in BACKBONE_KEYS:
        read += [f"BACKBONE.{key}" for key in BACKBONE_KEYS[model.BACKBONE.NAME]]
    else:
        read.append("BACKBONE")
    if model.META_ARCHITECTURE == "Cerberus" and model.HEADS.NAME != "CerberusHead":
        read.append("HEADS")  # a head of the user's own may read any
    unused = [] if model.META_ARCHITECTURE in ("Cerberus", "CSSC") else ["BACKBONE.CUT"]
    if "HEADS.WITH_BNNECK" in read and not model.HEADS.WITH_BNNECK and not model.APR.BLOCK_DIM:
        unused.append("HEADS.NORM")
    if "LOSSES.NAME" not in read:
        return read, unused
    unused += [f"LOSSES.{section}" for name, section in LOSSES.items() if name not in model.LOSSES.NAME]
    if set(model.LOSSES.NAME) <= {"CrossEntropyLoss"}:
        unused.append("HEADS.NECK_FEAT")  # chooses the feature of the other losses
    if model.LOSSES.CE.EPSILON >= 0:
        unused.append("LOSSES.CE.ALPHA")  # of adaptive label smoothing
    if model.HEADS.CLS_LAYER == "Linear":
        unused.append("HEADS.MARGIN")
    return read, unused


def is_among(key: str, sections: Sequence[str]) -> bool:
    """Whether a dotted key is one of the sections, or lies in one of them."""
    return any(f"{key}.".startswith(f"{section}.") for section in sections)


def flat(values: Mapping, separator: str = ".", prefix: str = "") -> dict[str, Any]:
    """Values of a configuration or another nested record by dotted key; tuples as lists, as JSON and YAML have them."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            found |= flat(value, separator, f"{prefix}{key}{separator}")
        else:
            found[f"{prefix}{key}"] = list(value) if isinstance(value, tuple) else value
    return found


def with_values(cfg: CN, values: Mapping[str, Any]) -> CN:
    """A frozen copy of a configuration with other values, by dotted key."""
    copy = cfg.clone()
    copy.defrost()
    for key, value in values.items():
        *sections, last = key.split(".")
        functools.reduce(getattr, sections, copy)[last] = value
    copy.freeze()
    return copy


@functools.cache
def defaults() -> Mapping[str, Any]:
    """Values of an unset configuration by dotted key."""
    cfg = get_cfg()
    add_cerberus_config(cfg)
    return MappingProxyType(flat(cfg))


def changed(cfg: Mapping) -> dict[str, Any]:
    """What a configuration has otherwise than by default, by dotted key.

    Keys that the defaults lack count; those of a later version at their defaults do not, nor EARLIER_DEFAULTS.
    """
    usual = defaults()
    return {key: value for key, value in flat(cfg).items()
            if key not in usual or usual[key] != value and EARLIER_DEFAULTS.get(key) != value}
