"""Handmade records of studies and figures, in the format of the experiments, for tests of the report."""

import base64
import json
from pathlib import Path

PROTOCOL = {"reid": {"ap": "rectangle", "same camera": "ignored", "metric": "cosine", "flip": False,
                     "re-ranking": False, "query expansion": False},
            "par": {"force colour": False}, "aps": {"protocol": "asmr"}}
MANIFEST = {"training": {"images": 12936, "identities": 751, "list sha256": "5f1c"},
            "Market1501Attributes": {"query": {"images": 3368, "identities": 750},
                                     "gallery": {"images": 15913, "identities": 751, "distractors": 2798},
                                     "labels": {"file": "market_attribute.mat", "sha256": "77ab"}},
            "AP": "rectangle", "checkpoint sha256": "c0ffee"}
CONFIG = """DATASETS: {{NAMES: [Market1501Attributes], TESTS: [Market1501Attributes], HOLD_OUT: {hold_out},
           LEAVE_OUT_SIDS: {left_out}}}
INPUT: {{SIZE_TEST: {size}}}
MODEL:
  BACKBONE: {{NAME: build_resnet_backbone, DEPTH: {depth}, PRETRAIN: {pretrain}, PRETRAIN_PATH: '', WITH_IBN: false}}
  CERBERUS: {{SIGMA: 5.0, LAMBDA_SEM: 1.0}}
  HEADS: {{NUM_CLASSES: {classes}}}
  WEIGHTS: ''
SOLVER: {{IMS_PER_BATCH: 64, MAX_EPOCH: 119}}
"""
AS_IN_THE_PAPER = {"hold_out": 0, "left_out": 0, "size": [384, 128], "depth": "50x", "pretrain": True, "classes": 751}
PIXEL = base64.b64decode("iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5"
                         "ErkJggg==")


def run(name: str, seed: int, data: str = "Market1501Attributes", manifest=MANIFEST, protocol=PROTOCOL, epochs=119,
        hardware=None, **figures) -> dict:
    """A run of a variant; in names of metrics, "__" stands for "/" and "Rank_" for "Rank-"."""
    return {"seed": seed, "folder": f"runs/{name}/seed_{seed}", "protocol": protocol, "recipe sha256": "ab12",
            "results": {data: {key.replace("Rank_", "Rank-").replace("__", "/"): value
                               for key, value in figures.items()}},
            "training": {"seconds": 5400.0, "epochs": epochs, "seed": seed, "processes": 1},
            "hardware": hardware or {"processor": "EPYC", "cores": 16, "memory_gib": 128.0, "gpu": "NVIDIA H100"},
            "versions": {"torch": "2.13.0"}, **({"manifest": manifest} if manifest else {})}


def variant(name: str, runs=(), **fields) -> dict:
    return {"name": name, "options": {}, "note": "", "published": {}, "runs": list(runs), **fields}


def study(name: str, variants, **fields) -> dict:
    return {"study": name, "title": f"Study {name}", "question": "Does it help?", "config": "cerberus_R50.yml",
            "command": f"python -m cerberus_plugin.experiments.reproduce {name} --seeds 0 1 2", "seeds": [0, 1, 2],
            "figures": ["mAP", "Rank-1", "PAR/mA_official", "APS/mAP"], "against": "", "hours": 2.5,
            "variants": variants, "claims": {}, "missing": [], "date": "2026-01-02", "refused": "", **fields}


def write(folder: Path, *studies: dict, config: dict | None = None) -> Path:
    """Write records to a folder; with `config`, also the config.yaml of every run with these changes."""
    folder.mkdir(parents=True, exist_ok=True)
    for record in studies:
        (folder / f"{record['study']}.json").write_text(json.dumps(record))
        for entry in (entry for item in record["variants"] for entry in item["runs"]) if config is not None else ():
            path = folder / entry["folder"] / "config.yaml"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(CONFIG.format(**AS_IN_THE_PAPER | config))
    return folder


def write_exhibit(folder: Path, name: str = "attention", **fields) -> None:
    (folder / "figures").mkdir(parents=True, exist_ok=True)
    (folder / "figures" / f"{name}.png").write_bytes(PIXEL)
    record = {"exhibit": name, "title": "Figure 8: attention", "question": "Where do the groups look?",
              "caption": "Warm is strong.", "pictures": [{"file": f"figures/{name}.png", "caption": "one person"}],
              "made by": {"command": "figures attention runs/x", "seed": 0, "versions": {"torch": "2.13.0"}}, **fields}
    (folder / "figures" / f"{name}.json").write_text(json.dumps(record))


def parts(**fields) -> dict:
    """Return a small Table 6: three seeds of two variants, one undefined metric, and published results of both."""
    plain = [run("plain", seed, mAP=88.0 + seed, Rank_1=95.0) for seed in range(3)]
    full = [run("full", seed, mAP=89.5 + seed / 4, Rank_1=96.0, PAR__mA_official=86.0 + seed,
                APS__mAP=None if seed else 31.0) for seed in range(3)]
    figures = {"mAP": 89.83, "Rank-1": 96.14, "PAR/mA_binary": 91.13, "APS/mAP": 31.66}
    return study("parts", [variant("identity term", plain, published={"Market1501": {"mAP": 88.34, "Rank-1": 95.22}}),
                           variant("all terms", full, published={"Market1501": figures})],
                 **{"claims": {"Market1501Attributes": [
                     "mAP: all terms above identity term by 0.75 ± 0.10 (mean and 95 % of 3 paired seeds)",
                     "2 comparisons, each at 95%: one of twenty would be significant by chance",
                     "Rank-1: the difference of all terms and identity term is not significant (1.00 ± 2.00)"]},
                    "against": "identity term", **fields})
