"""Queries by an image plus a changed attribute value: "this person, but in white".

    python benchmarks/edits.py runs/demo                       a run, on the gallery of its test set
    python benchmarks/edits.py runs/demo --top 8 --factors 0 0.5 1 2

For each edit, such as "upper colour" white, every query image with another label is searched together with the new
value, weighted by a factor. Among the first `top` results, "fit" is the share with the new value as label, and "kept"
is the mean share of the query's other attributes that a result has as well.
"""

import argparse
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # works without installing the package

from cerberus_plugin import CerberusPredictor  # noqa: E402
from cerberus_plugin.data.build import build_test_set  # noqa: E402
from cerberus_plugin.search.export.torch_encoder import TorchEncoder  # noqa: E402
from cerberus_plugin.search.gallery import GalleryIndex, Pace, Query  # noqa: E402
from cerberus_plugin.utils.images import read_image  # noqa: E402

import numpy as np  # noqa: E402
from common import table, write  # noqa: E402

EDITS = ({"upper colour": "white"}, {"lower colour": "blue"}, {"backpack": "no"}, {"gender": "female"})


def answers(run_folder: str, edits, factors, top: int) -> list[dict]:
    """One record per edit and factor."""
    predictor = CerberusPredictor(run_folder, device="cpu")
    schema, encoder = predictor.reader.schema, TorchEncoder(predictor)
    test_set, num_query = build_test_set(predictor.cfg, predictor.cfg.DATASETS.TESTS[0])
    described = {Path(item[0]).name: schema.describe(test_set[i]["attributes"])
                 for i, item in enumerate(test_set.img_items)}
    queries = [Path(item[0]) for item in test_set.img_items[:num_query]]
    embeddings = encoder.encode([read_image(path) for path in queries])
    group_of = {column.name: group for column, group in zip(schema.columns, schema.column_groups)}
    records = []
    with tempfile.TemporaryDirectory() as folder:
        gallery = GalleryIndex.build(folder, Path(test_set.img_items[-1][0]).parent, encoder, dtype="float32",
                                     pace=Pace(progress=False))
        for edit in edits:
            (name, value), = edit.items()
            chosen = [i for i, path in enumerate(queries) if described[path.name].get(name) not in (None, value)]
            for factor in factors:
                words = {"words": edit, "weights": {group_of[name]: factor}} if factor else {}
                hits = gallery.search_many([Query(embeddings[i], **words) for i in chosen], top)
                fit, kept = [], []
                for i, found in zip(chosen, hits):
                    own = described[queries[i].name]
                    for other in filter(None, (described.get(Path(hit.path).name) for hit in found)):
                        fit.append(other.get(name) == value)
                        kept.append(np.mean([other.get(key) == own[key] for key in own if key != name]))
                records.append({"edit": f"{name} {value}", "factor": factor, "queries": len(chosen),
                                "fit": 100 * float(np.mean(fit)), "kept": 100 * float(np.mean(kept))})
        gallery.close()
    return records


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="folder of a training run")
    parser.add_argument("--top", type=int, default=8)
    parser.add_argument("--factors", type=float, nargs="+", default=[0, 0.5, 1, 2],
                        help="weights of the new value; 0 searches by the image only")
    parser.add_argument("--output", default="runs/benchmarks/edits.json")
    args = parser.parse_args()
    records = answers(args.run, EDITS, args.factors, args.top)
    by_edit = {}
    for record in records:
        cell = f"{record['fit']:.0f} / {record['kept']:.0f}"
        by_edit.setdefault((record["edit"], record["queries"]), []).append(cell)
    headers = ["edit: fit / kept, %", "queries", *(f"weight {factor:g}" for factor in args.factors)]
    print(table(headers, [[edit, queries, *cells] for (edit, queries), cells in by_edit.items()]))
    write(args.output, {"records": records, "top": args.top, "run": args.run})


if __name__ == "__main__":
    main()
