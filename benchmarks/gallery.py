"""Search engines of a gallery: ms per query, recall and bytes per vector, compared with plain PyTorch and NumPy.

    python benchmarks/gallery.py                  100,000 rows of 2,560 values; 1 GiB of memory per engine
    python benchmarks/gallery.py --full           1,000,000 rows; 10 GiB of memory and 5 GiB in --folder
    python benchmarks/gallery.py --milvus gallery.db

Embeddings are random: five blocks of unit length, 15 images per person on average, which are close to each other in a
few directions. They are stored in float16 in the part files of an index, and every engine searches these. Queries are
new images of the people. Engines run one after the other, as memory would not suffice for all. Recall is the share of
NumPy's ten nearest that an engine finds: directly, and after re-ranking its first results by the stored embeddings, as
an index does. The exit code is 1 if an exact engine finds rows that are farther than NumPy's.
"""

import argparse
import statistics
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # works without installing the package

from cerberus_plugin.search.gallery.engines import FORMS, FaissEngine, MilvusEngine, synchronise  # noqa: E402
from cerberus_plugin.search.gallery.folder import Naming  # noqa: E402
from cerberus_plugin.search.gallery.index import LOOK_AGAIN  # noqa: E402
from cerberus_plugin.search.gallery.store import Store  # noqa: E402
from cerberus_plugin.utils.folders import Picture  # noqa: E402

import numpy as np  # noqa: E402
import torch  # noqa: E402
from common import table, timed, write  # noqa: E402

TOP, GROUPS, DIRECTIONS, PART = 10, 5, 32, 10_000
TOLERANCE = 1e-4  # of sums of 2,560 products in another order


class People:
    """Random embeddings of people, float32 (n, E), each block of unit length.

    A person and an image are points in a subspace of each block; noise is added in all dimensions.
    """

    def __init__(self, count: int, size: int, seed: int = 0) -> None:
        self.rng = np.random.default_rng(seed)
        self.directions = self.rng.standard_normal((GROUPS, DIRECTIONS, size // GROUPS), dtype=np.float32)
        self.centres = self.rng.standard_normal((count, GROUPS, DIRECTIONS), dtype=np.float32)

    def images(self, people: np.ndarray) -> np.ndarray:
        points = self.centres[people] + 0.7 * self.rng.standard_normal((len(people), GROUPS, DIRECTIONS),
                                                                       dtype=np.float32)
        rows = np.einsum("ngk,gkd->ngd", points, self.directions, optimize=True)
        rows += 2 * self.rng.standard_normal(rows.shape, dtype=np.float32)
        rows /= np.linalg.norm(rows, axis=2, keepdims=True)
        return rows.reshape(len(people), -1)


class Numpy:
    """One matrix product and a partial sort."""

    def __init__(self, rows: np.ndarray) -> None:
        self.rows = rows

    def search(self, queries: np.ndarray, k: int) -> np.ndarray:
        scores = queries @ self.rows.T
        best = np.argpartition(scores, len(self.rows) - k, axis=1)[:, -k:]
        order = np.argsort(-np.take_along_axis(scores, best, axis=1), axis=1)
        return np.take_along_axis(best, order, axis=1)


class Torch:
    """One matrix product and `topk`."""

    def __init__(self, rows: np.ndarray, device: str) -> None:
        self.rows, self.device = torch.from_numpy(rows).to(device), device

    def search(self, queries: np.ndarray, k: int) -> np.ndarray:
        return (torch.from_numpy(queries).to(self.device) @ self.rows.T).topk(k, dim=1).indices.cpu().numpy()


class Through:
    """An engine with the interface of `Numpy` and `Torch`; the ids of a new index are sorted by row."""

    def __init__(self, engine, ids: np.ndarray) -> None:
        self.engine, self.ids = engine, ids

    def search(self, queries: np.ndarray, k: int) -> np.ndarray:
        return np.searchsorted(self.ids, self.engine.search(queries, k)[1])


def fill(folder: Path, people: People, count: int, size: int) -> Store:
    """Write the rows and embeddings of an index, without images."""
    Store.create(folder)
    store = Store(folder, size, "float16")
    shown = people.rng.integers(0, len(people.centres), count)
    for first in range(0, count, PART):
        some = shown[first:first + PART]
        names = [Picture(f"{first + i}.jpg", 1, 1) for i in range(len(some))]
        store.append(names, Naming(), people.images(some), [], [], "")
    store.reload()
    return store


def reranked(way, store: Store, queries: np.ndarray) -> np.ndarray:
    """The first results of an engine, re-ranked by the stored embeddings: rows (Q, TOP)."""
    found = way.search(queries, min(len(store), LOOK_AGAIN * TOP))
    best = []
    for query, rows in zip(queries, found):
        scores = store.embeddings(store.ids[rows]) @ query
        best.append(rows[np.argsort(-scores, kind="stable")[:TOP]])
    return np.array(best)


def recall(found: np.ndarray, wanted: np.ndarray) -> float:
    return float(np.mean([len(set(a) & set(b)) / len(b) for a, b in zip(found.tolist(), wanted.tolist())]))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--size", type=int, default=2_560, help="values of an embedding")
    parser.add_argument("--full", action="store_true", help="1,000,000 rows of 2,560 values")
    parser.add_argument("--queries", type=int, default=100, help="number of queries")
    parser.add_argument("--singles", type=int, default=20, help="number of queries that are also searched one by one")
    parser.add_argument("--forms", nargs="+", choices=FORMS, default=FORMS, help="forms of the FAISS engine")
    parser.add_argument("--milvus", help="file or address of a Milvus database to measure as well")
    parser.add_argument("--folder", type=Path, help="folder of the index, which is removed afterwards")
    parser.add_argument("--output", type=Path, help="JSON file for the results")
    args = parser.parse_args()
    if args.full:
        args.rows, args.size = 1_000_000, 2_560
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        return run(args, Path(folder))


def ways_of(args, store: Store):
    """Yield each engine: name, whether it is exact, bytes per vector, seconds to build, and the engine."""
    rows = np.empty((len(store), args.size), dtype=np.float32)
    for ids, piece in store.pieces():
        rows[np.searchsorted(store.ids, ids)] = piece
    yield "numpy", True, rows.itemsize * args.size, None, Numpy(rows)
    yield "torch", True, rows.itemsize * args.size, None, Torch(rows, "cpu")
    if torch.cuda.is_available():
        yield "torch, cuda", True, rows.itemsize * args.size, None, Torch(rows, "cuda")
    del rows
    for form in args.forms:
        engine = FaissEngine(args.size, form)
        seconds, _ = timed(synchronise, engine, store)
        yield f"FAISS, {form}", engine.exact, engine.bytes_a_row, seconds, Through(engine, store.ids)
    if args.milvus:
        engine = MilvusEngine(args.milvus, "cerberus_benchmark", args.size)
        seconds, _ = timed(synchronise, engine, store)
        yield "Milvus, FLAT", True, None, seconds, Through(engine, store.ids)
        engine.close()


def run(args, folder: Path) -> int:
    people = People(max(1, args.rows // 15), args.size)
    drawing, store = timed(fill, folder, people, args.rows, args.size)
    queries = people.images(people.rng.integers(0, len(people.centres), args.queries))
    of_file = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / args.rows
    print(f"{args.rows:,} rows of {args.size} values, {args.queries} queries, {TOP} nearest, "
          f"{torch.get_num_threads()} PyTorch threads; generated and stored in {drawing:.0f} s, {of_file:.0f} bytes "
          "per row on disk\n", flush=True)
    record, lines, wanted, worst = [], [], None, 0.0
    for name, exact, size, seconds, way in ways_of(args, store):
        way.search(queries[:1], TOP)
        single = 1000 * statistics.median(timed(way.search, query[None], TOP)[0] for query in queries[:args.singles])
        batch, found = timed(way.search, queries, TOP)
        wanted = found if wanted is None else wanted
        again = None if exact else recall(reranked(way, store, queries), wanted)
        if exact:
            worst = max(worst, loss(store, queries, found, wanted))
        record.append({"way": name, "exact": exact, "ms_a_query_single": single,
                       "ms_a_query_batched": 1000 * batch / len(queries), "recall": recall(found, wanted),
                       "recall_looked_at_again": again, "bytes_a_vector": size, "seconds_to_fill": seconds})
        lines.append([name, f"{single:.2f}", f"{record[-1]['ms_a_query_batched']:.2f}",
                      f"{record[-1]['recall']:.3f}", "" if again is None else f"{again:.3f}",
                      "" if size is None else f"{size:,}", "" if seconds is None else f"{seconds:.1f}"])
        del way
    store.close()
    print(table(["engine", "ms per query, single", "ms per query, all at once", "recall of the engine",
                 "recall of the index", "bytes per vector", "s to build"], lines))
    if args.output:
        write(args.output, {"rows": args.rows, "size": args.size, "queries": args.queries, "top": TOP,
                            "bytes_a_row_on_disk": of_file, "largest_loss_of_exact_ways": worst, "ways": record})
    if worst > TOLERANCE:
        print(f"FAILED: an exact engine found rows that are farther than those of NumPy by {worst}", file=sys.stderr)
        return 1
    return 0


def loss(store: Store, queries: np.ndarray, found: np.ndarray, wanted: np.ndarray) -> float:
    """The largest difference of scores, rank by rank, between the expected rows and those found."""
    scores = [[store.embeddings(store.ids[rows]) @ query for query, rows in zip(queries, each)]
              for each in (found, wanted)]
    return float((np.sort(scores[1], axis=1) - np.sort(scores[0], axis=1)).max())


if __name__ == "__main__":
    raise SystemExit(main())
