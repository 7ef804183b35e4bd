"""The studies: each table or figure of the paper as variants of a configuration, with the published results.

Published results are from arXiv 2412.01048 unless a note says otherwise. The PAR results of Cerberus follow the binary
rule, those of ARN and APR the official one. Hours are estimated (training and evaluation at 1,000 images per second),
not measured.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..data.splits import HELD_OUT
from ..metrics.aps import RANKS
from ..modeling.sid_prototypes import INITIALISERS
from .study import Study, Variant

MAIN = ("mAP", "Rank-1", "PAR/mA_binary", "PAR/mA_official", "APS/mAP", "APS/Rank-1")
PERSON = ("PAR/person/mA_binary", "APS/person/mAP")
MORE_RANKS = tuple(f"APS/Rank-{k}" for k in RANKS[1:])  # MAIN has Rank-1
MARKET, DUKE = "Market1501", "DukeMTMC"
COLUMNS = {  # of the paper's PAR tables, in its order
    MARKET: ("gender", "age", "backpack", "handbag", "bag", "hair", "hat", "up", "upper colour", "down",
             "lower colour", "clothes"),
    DUKE: ("gender", "backpack", "handbag", "bag", "hat", "top", "upper colour", "lower colour", "shoes", "boots")}
ZOO = "published by FastReID's model zoo"
SEM, REG, ALIGN, SOFTMAX, PRIOR, AGREEMENT = (f"MODEL.CERBERUS.{key}" for key in (
    "LAMBDA_SEM", "LAMBDA_REG", "ALIGN", "SOFTMAX", "SOFTMAX_PRIOR", "AGREEMENT"))
LEFT_OUT = (0, 2, 4, 8)
RARE = 0.05  # of the training people; a common semantic ID belongs to half of them
SIGMA_MULTIPLES = (1.0, 1.05, 1.2)  # of the median norm of each image's map
VIT_BLOCKS = 12  # of ViT-tiny, small and base
CERBERUS, PLUS = "Cerberus", "cerberus_plus"  # PLUS is also the prefix of its configuration files
BY_PROBABILITY = "Cerberus, by probability"


def reid(mAP: float, rank1: float) -> dict[str, float]:
    return {"mAP": mAP, "Rank-1": rank1}


def aps(mAP: float, rank1: float) -> dict[str, float]:
    return {"APS/mAP": mAP, "APS/Rank-1": rank1}


def par(test: str, rule: str, mean: float, columns: Sequence[float]) -> dict[str, float]:
    """Convert a row of the paper's PAR tables to keys of results.json."""
    return {f"PAR/mA_{rule}": mean} | {f"PAR/{rule}/{name}": value for name, value in zip(COLUMNS[test], columns)}


OURS = {
    MARKET: {**reid(89.8, 96.1), **aps(31.7, 49.3),
             **par(MARKET, "binary", 91.1, (94.7, 90.8, 89.0, 83.6, 80.4, 91.4, 95.2, 90.8, 95.9, 94.8, 94.1, 92.3))},
    DUKE: {**reid(80.7, 91.1), **aps(23.0, 53.5),
           **par(DUKE, "binary", 88.6, (87.6, 80.4, 90.1, 88.8, 89.8, 84.7, 93.7, 91.2, 88.8, 91.1))}}
ARN = {
    MARKET: par(MARKET, "official", 86.0, (87.5, 85.8, 86.6, 88.1, 78.6, 84.2, 97.0, 93.5, 72.4, 93.6, 71.7, 93.6)),
    DUKE: par(DUKE, "official", 82.3, (82.0, 77.5, 92.3, 82.2, 85.5, 86.2, 73.4, 68.3, 87.6, 88.3))}
APR = {
    MARKET: {**reid(66.9, 87.0),
             **par(MARKET, "official", 86.6, (88.9, 88.6, 84.9, 90.4, 76.4, 84.4, 97.1, 93.6, 74.0, 93.7, 73.8, 92.8))},
    DUKE: {**reid(55.6, 73.9),
           **par(DUKE, "official", 83.4, (84.2, 75.8, 93.4, 82.9, 87.6, 88.4, 74.2, 69.9, 89.7, 87.5))}}


def _zoo(market: tuple[float, float], duke: tuple[float, float]) -> dict:
    return {MARKET: reid(*market), DUKE: reid(*duke)}


def _search(name: str, market: tuple[float, float], duke: tuple[float, float] | None = None, rule: str = "") -> Variant:
    """Create a published row of Table 5 without a model to train; `rule`: how its AP is computed, if known."""
    tests = {MARKET: aps(*market)} | ({DUKE: aps(*duke)} if duke else {})
    if rule == "trapezoid":
        tests = {test: {key.replace("mAP", "mAP_trapezoid"): value for key, value in figures.items()}
                 for test, figures in tests.items()}
    note = f"its AP follows the {rule} rule" if rule else "its AP may follow the trapezoid rule"
    return Variant(name, published=tests, trained=False, note=f"published results only; {note}")


def _market(row: tuple[float, ...]) -> dict:
    """Convert a row of Tables 6 and 7: mAP, Rank-1, APS mAP, APS Rank-1, PAR mA."""
    keys = ("mAP", "Rank-1", "APS/mAP", "APS/Rank-1", "PAR/mA_binary")
    return {MARKET: dict(zip(keys, row))}


def _comparison() -> Study:
    variants = (
        Variant("BoT", file="bot", published=_zoo((86.1, 94.4), (77.0, 87.2)), note=ZOO),
        Variant("AGW", file="agw", published=_zoo((88.2, 95.3), (79.9, 89.0)), note=ZOO),
        Variant("SBS", file="sbs", published=_zoo((88.2, 95.4), (80.3, 90.3)), note=ZOO),
        Variant("MGN", file="mgn", published=_zoo((89.8, 95.8), (82.0, 91.1)),
                note=f"{ZOO}, for a ResNet-50 with instance normalisation; the model of this study has none"),
        Variant("IDE", file="ide"),
        Variant("ARN", file="arn", published=ARN, rule="official"),
        Variant("APR", file="apr", published=APR, rule="official"),
        Variant(CERBERUS, published=OURS, rule="binary"),
        Variant(BY_PROBABILITY, reading="probability", note="the same weights"),
        Variant(PLUS, file=PLUS, note="read by probability"),
        _search("AAIPR", (20.7, 40.3), (15.7, 46.6)),
        _search("AIHM", (24.3, 43.3), (17.4, 50.5)),
        _search("SAL", (29.8, 49.0), rule="rectangle"),
        _search("ASMR", (31.0, 49.6), rule="trapezoid"),
        _search("UPAR", (32.3, 45.0)))
    return Study(
        "comparison", "Tables 2 to 5: reID, PAR and APS compared with other models",
        "Is one model for all three tasks as good as models for one or two of them?", variants,
        (*MAIN, *MORE_RANKS, *PERSON, "PAR/binary/*", "PAR/official/*"), against=CERBERUS, costs=True,
        note="Each model keeps its recipe (image size, optimiser, losses, batch size) and is trained for the same "
             "number of epochs as the base configuration. Learning-rate steps and delays are scaled in proportion; "
             "warm-up and frozen iterations are those of the recipe.")


def _parts() -> Study:
    variants = (
        Variant("identity loss", {SEM: 0.0, REG: 0.0, ALIGN: False}, published=_market((88.34, 95.22))),
        Variant("+ alignment", {SEM: 0.0, REG: 0.0}, published=_market((89.47, 95.78))),
        Variant("+ semantic guidance", {REG: 0.0}, published=_market((89.68, 95.90, 30.15, 48.43, 90.93)),
                rule="binary"),
        Variant("+ regulariser", published=_market((89.83, 96.14, 31.66, 49.32, 91.13)), rule="binary"))
    return Study("parts", "Table 6: the parts of Cerberus, added one by one", "Does each part help?",
                 variants, MAIN, against="+ regulariser", ladder=True)


def _initialisers() -> Study:
    published = {
        "he_normal": (89.83, 96.14, 31.66, 49.32, 91.13), "he_uniform": (89.72, 95.93, 30.12, 47.74, 90.03),
        "xavier_normal": (89.39, 95.81, 30.98, 47.51, 90.41), "xavier_uniform": (89.69, 95.62, 30.36, 47.57, 90.15),
        "normal_0.01": (89.48, 96.01, 29.24, 47.05, 90.24), "normal_0.1": (89.68, 95.23, 30.67, 47.54, 90.85),
        "normal_1": (89.72, 95.83, 30.98, 48.96, 91.09), "normal_10": (89.74, 95.87, 30.97, 47.42, 90.86)}
    variants = tuple(Variant(name, {"MODEL.CERBERUS.INIT": name}, published=_market(published[name]), rule="binary")
                     for name in INITIALISERS)
    return Study("initialisers", "Table 7: initial values of the prototypes", "Does the initialisation matter?",
                 variants, MAIN, against="he_normal",
                 note="The residual vectors of the regulariser are initialised by the same distribution.")


def _margins() -> Study:
    key, constant = "MODEL.CERBERUS.MARGIN", "MODEL.CERBERUS.MARGIN_CONSTANT"
    variants = (
        Variant("margin 0", {key: "constant", constant: 0.0}, published=_market((88.92, 95.64))),
        Variant("margin 0.6", {key: "constant", constant: 0.6}, published=_market((89.60, 95.81))),
        Variant("adaptive margin", {key: "adaptive"}, published=_market((89.83, 96.14))))
    return Study("margins", "Table 8: the margin of the semantic guidance",
                 "Does a margin help to distinguish people with the same semantic ID, and does an adaptive one "
                 "help more?", variants,
                 MAIN, against="adaptive margin")


def _plus() -> Study:
    """From the paper's model to `cerberus_plus`, one change at a time."""
    softmax = {SOFTMAX: 1.0}
    prior = {**softmax, PRIOR: True, SEM: 0.0}
    variants = (Variant(CERBERUS, published=OURS, rule="binary", note="attributes of the nearest prototype"),
                Variant(BY_PROBABILITY, reading="probability", note="the same weights"),
                Variant("+ softmax", softmax, reading="probability"),
                Variant("+ prior and learned scale, no hinge", prior, reading="probability"),
                Variant(f"+ composed prototypes ({PLUS})", file=PLUS, reading="probability"))
    return Study("plus", "Beyond the paper: from Cerberus to cerberus_plus",
                 "What do reading by probability, the softmax and composed prototypes gain?", variants, MAIN + (
                     "PAR/mA_balanced", *PERSON), against=CERBERUS, ladder=True,
                 note="Each row changes the one above. All rows except the first read attributes by probability.")


def _choices() -> Study:
    """Changes of the options of `cerberus_plus`, one at a time, tested on held-out people."""
    changes = {"softmax weight 2": {SOFTMAX: 2.0}, "softmax weight 4": {SOFTMAX: 4.0},
               "agreement of views": {AGREEMENT: 0.2}, "label smoothing": {"MODEL.LOSSES.CE.EPSILON": 0.1}}
    variants = (Variant(PLUS, file=PLUS), *(Variant(name, options, PLUS) for name, options in changes.items()))
    return Study("choices", "Beyond the paper: options of cerberus_plus", "How much do these options matter?",
                 variants, MAIN + ("PAR/mA_balanced",), pairs=tuple((name, PLUS) for name in changes),
                 options={"DATASETS.HOLD_OUT": 60, "DATASETS.TESTS": (HELD_OUT,)},
                 note="60 training identities are held out and used for testing. No test image is used.")


def _options() -> Study:
    """Other options beyond the paper, one at a time."""
    options = {"softmax over prototypes": {SOFTMAX: 1.0},
               "maximum pooling": {"MODEL.CERBERUS.POOL": "max"},
               "generalised-mean pooling": {"MODEL.CERBERUS.POOL": "gem"},
               "triplets before normalisation": {"MODEL.CERBERUS.SPLIT": True},
               "label smoothing": {"MODEL.LOSSES.CE.EPSILON": 0.1},
               "averaged weights": {"SOLVER.EMA": 0.999},
               "instance normalisation": {"MODEL.BACKBONE.WITH_IBN": True}}
    variants = (Variant(CERBERUS, published=OURS, rule="binary"),
                *(Variant(f"+ {name}", values) for name, values in options.items()))
    return Study("options", "Beyond the paper: options of the model", "Which more recent techniques help Cerberus?",
                 variants, MAIN, against=CERBERUS,
                 note="Compared on the test set. If an option is chosen by this table, its results here are too "
                      "optimistic for other data.")


def _alignment() -> Study:
    """The threshold of the alignment: none, the paper's constant, and multiples of the norms of an image's own map."""
    sigma, quantile = "MODEL.CERBERUS.SIGMA", "MODEL.CERBERUS.SIGMA_QUANTILE"
    off = "no alignment"
    variants = (Variant(off, {ALIGN: False}),
                Variant("sigma 5", {sigma: 5.0, quantile: 0.0}, note="the paper's constant"),
                *(Variant(f"sigma {multiple:g} of the median norm", {sigma: multiple, quantile: 0.5})
                  for multiple in SIGMA_MULTIPLES))
    return Study("alignment", "Beyond the paper: the threshold of the alignment",
                 "Does alignment help, and does a threshold in the map's own norms help more than a constant?",
                 variants, MAIN, against=off,
                 note="On a synthetic dataset, `--loose-boxes` sets how badly the boxes fit. To choose a multiple, add "
                      "DATASETS.HOLD_OUT 60 DATASETS.TESTS \"('held-out',)\".")


def _vit_split() -> Study:
    """The number of blocks of a vision transformer that the branches share."""
    variants = tuple(Variant(f"split after block {n} of {VIT_BLOCKS}", {"MODEL.BACKBONE.CUT": f"blocks.{n - 1}"})
                     for n in (4, 6, 8, 10))
    return Study("vit_split", "Beyond the paper: the split point of a vision transformer",
                 "How many of the blocks should the two branches share?", variants, MAIN,
                 against=f"split after block 8 of {VIT_BLOCKS}", costs=True,
                 note=f"For a configuration of a vision transformer with {VIT_BLOCKS} blocks, such as "
                      "cerberus_vit_s_transreid. The trunk has two thirds of the blocks by default.")


def _unseen() -> Study:
    key, synthesise = "DATASETS.LEAVE_OUT_SIDS", "TEST.APS.SYNTHESISE"
    kinds = {"with regulariser": {}, "without regulariser": {REG: 0.0}}
    # Without excluded people, configurations and runs are shared with other studies.
    drawn = {"DATASETS.LEAVE_OUT_SHARE": RARE, "DATASETS.LEAVE_OUT_SEED": -1}
    without = {k: {key: k, **(drawn if k else {})} for k in LEFT_OUT}
    variants = []
    for kind, options in kinds.items():
        variants += [Variant(f"{kind}, {k} excluded", {**without[k], **options}, curve=kind, x=k) for k in LEFT_OUT]
    # In the table and the plot, but not in `pairs`: the queries with an unseen semantic ID are others.
    control = "random control"
    variants += [Variant(f"{control} for {k} excluded", {**without[k], "DATASETS.LEAVE_OUT_AT_RANDOM": True},
                         curve=control, x=k) for k in LEFT_OUT if k]
    for kind, options in kinds.items():
        variants += [Variant(f"{kind}, {k} excluded, synthesised", {**without[k], **options, synthesise: True},
                             weights_of=f"{kind}, {k} excluded", curve=f"{kind}, synthesised", x=k) for k in LEFT_OUT]
    names = [f"{{}}, {k} excluded" for k in LEFT_OUT]
    pairs = [tuple(name.format(kind) for kind in kinds) for name in names]
    pairs += [(f"{name.format(kind)}, synthesised", name.format(kind)) for kind in kinds for name in names]
    return Study(
        "unseen", "Figure 7b: semantic IDs excluded from training",
        "Does the regulariser help for semantic IDs that no training person has?", tuple(variants),
        ("Rank-1", "mAP", "APS/Rank-1", "APS/mAP", "APS/unseen semantic ID/Rank-1", "APS/unseen semantic ID/mAP",
         "PAR/mA_binary", "PAR/mA_official"), pairs=tuple(pairs), hours=0.4,
        note=f"Each seed draws other semantic IDs, among those of at most {RARE:.0%} of the training people, so the "
             "deviation includes that of the draw. All people with one of the drawn semantic IDs are excluded from "
             f"training. \"{control.capitalize()}\": with the regulariser, remove the same number of people at random. "
             "\"APS unseen semantic ID\" is measured on the queries with a semantic ID that no training person has; "
             "there are some even if none is excluded. The paper draws from all semantic IDs, and its figure has no "
             "readable numbers. \"Synthesised\" evaluates the same weights, with unseen prototypes replaced by the "
             "closed form of the regulariser.")


def _sensitivity() -> Study:
    """One grid per hyperparameter; its values are compared with the paper's."""
    node = "MODEL.CERBERUS"
    grids = {"sigma": (f"{node}.SIGMA", (2.0, 5.0, 7.0, 10.0), 5.0),
             "lambda_sem": (SEM, (1.0, 2.0, 5.0, 10.0), 5.0),
             "lambda_reg": (REG, (0.0001, 0.001, 0.01, 0.1), 0.001),
             "alpha": (f"{node}.ALPHA", (0.3, 0.4, 0.5, 0.6), 0.4),
             "beta": (f"{node}.BETA", (1.6, 1.7, 1.8, 1.9), 1.8)}
    variants = tuple(Variant(f"{name} = {value:g}", {key: value}, curve=name, x=value)
                     for name, (key, values, _) in grids.items() for value in values)
    pairs = tuple((f"{name} = {value:g}", f"{name} = {chosen:g}")
                  for name, (_, values, chosen) in grids.items() for value in values if value != chosen)
    return Study(
        "sensitivity", "Figure 10: sigma, lambda_sem, lambda_reg, alpha and beta, one at a time",
        "How much do the paper's hyperparameters matter?", variants, MAIN, pairs=pairs, hours=0.4,
        options={"DATASETS.HOLD_OUT": 100, "DATASETS.TESTS": (HELD_OUT,)},
        note="100 training identities are held out and used for testing, as in the paper. The first image of each "
             "identity and camera is a query; the paper draws 160 queries. No test image is used.")


STUDIES = {study.name: study for study in (_comparison(), _parts(), _initialisers(), _margins(), _plus(), _choices(),
                                           _options(), _alignment(), _vit_split(), _unseen(), _sensitivity())}
