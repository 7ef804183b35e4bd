"""Fuzz the commands with mutated files: each file must be read, or rejected with an error that names it.

    python tools/fuzz.py                                        1,000 mutations of all kinds of files
    python tools/fuzz.py --kinds mat csv --count 200 --seed 3   200 of these kinds
    python tools/fuzz.py --kinds onnx --only 17 --keep out      repeat one mutation; the mutated file is kept in out/

A failure is a traceback, a crash or a hang of the process, or an error message without the file name or without a
remedy. A mutation is determined by kind, seed and number. Valid files are created first, in a temporary folder:
synthetic people, an untrained Cerberus, a calibration, a small ONNX model and a gallery indexed with it.
"""

import argparse
import contextlib
import copy
import io
import json
import multiprocessing
import os
import random
import re
import resource
import shutil
import sqlite3
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import wait
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # works without installing the package

import cerberus_plugin  # noqa: E402, F401  before fastreid: adapts it
from cerberus_plugin import CerberusPredictor, cli  # noqa: E402
from cerberus_plugin.attributes import MARKET1501, read_annotations  # noqa: E402
from cerberus_plugin.attributes.outfits import read_outfits, write_outfits  # noqa: E402
from cerberus_plugin.config import add_cerberus_config, merge_file  # noqa: E402
from cerberus_plugin.data.build import build_training_data  # noqa: E402
from cerberus_plugin.engine.label_tables import fill_tables, with_attributes  # noqa: E402
from cerberus_plugin.search.export.torch_encoder import TorchEncoder  # noqa: E402
from cerberus_plugin.search.portable.exported import ENCODER_KEY, FORMAT_KEY, METADATA_FORMAT, VOCABULARY_KEY  # noqa: E402
from cerberus_plugin.synthetic.dataset import draw_dataset  # noqa: E402
from cerberus_plugin.utils.files import file_sha256  # noqa: E402
from cerberus_plugin.utils.images import read_image  # noqa: E402

import numpy as np  # noqa: E402
import torch  # noqa: E402
import yaml  # noqa: E402
from fastreid.config import get_cfg  # noqa: E402
from fastreid.data import build as host_build  # noqa: E402
from fastreid.modeling.meta_arch import build_model  # noqa: E402
from fastreid.utils.checkpoint import Checkpointer  # noqa: E402

EXPECTED = (ValueError, OSError, ImportError, RuntimeError, sqlite3.Error)  # errors without a traceback
REMEDIES = re.compile(r"\b(again|anew|correct|delete|remove|evaluate|expected|give|name|restore|save|set|use|write|"
                      r"build|train|export|choose|install|free|check|separated|quote|allowed|not found|make)\b",
                      re.IGNORECASE)
MEMORY = 12 * 2**30  # limit of a worker's address space in bytes
SPECIALS = [None, True, -1, 0, 1, 2**31, 2**63, 10**30, float("nan"), float("inf"), 1e308, "", "nan", "\0", "é" * 300,
            "../../etc/passwd", [], {}, [None], ["a", 1], {"a": {}}]
INTEGERS = [b"\0\0\0\0", b"\xff\xff\xff\xff", b"\xff\xff\xff\x7f", b"\0\0\0\x80", b"\x7f\xff\xff\xff", b"\x01\0\0\0"]


# Mutations.


def mutated_bytes(data: bytes, rng: random.Random) -> bytes:
    """Bytes cut, flipped, overwritten, repeated, inserted or removed."""
    if not data:
        return rng.randbytes(8)
    start = rng.randrange(len(data))
    end = min(len(data), start + rng.choice((1, 2, 4, 8, 64, 1024, len(data))))
    kind = rng.randrange(9)
    if kind == 0:
        return data[:start]
    if kind == 1:
        return data[:start] + data[end:]
    if kind == 2:
        flipped = bytearray(data)
        for _ in range(rng.randint(1, 16)):
            flipped[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        return bytes(flipped)
    if kind == 3:
        return data[:start] + rng.choice((b"\0", b"\xff")) * (end - start) + data[end:]
    if kind == 4:
        return data[:start] + rng.choice(INTEGERS) + data[start + 4:]
    if kind == 5:
        return data[:start] + rng.randbytes(rng.choice((1, 4, 100))) + data[start:]
    if kind == 6:
        return data[:end] + data[start:]
    if kind == 7:
        return data[:start] + rng.randbytes(min(64, end - start)) + data[min(end, start + 64):]
    return rng.choice((b"", b"\0" * len(data), rng.randbytes(min(4096, len(data))), b"\xff\xfe" + data))


def mutated_text(text: str, rng: random.Random) -> bytes:
    """Text with changed lines or words, or in another encoding."""
    lines = text.splitlines(keepends=True)
    i = rng.randrange(len(lines)) if lines else 0
    kind = rng.randrange(8)
    if kind == 0 and lines:
        del lines[i]
    elif kind == 1 and lines:
        lines.insert(rng.randrange(len(lines)), lines[i])
    elif kind == 2 and lines:
        words = re.split(r"(\W+)", lines[i])
        words[rng.randrange(len(words))] = str(rng.choice(SPECIALS))
        lines[i] = "".join(words)
    elif kind == 3:
        return text.encode(rng.choice(("utf-16", "utf-32", "utf-8-sig")))
    elif kind == 4:
        return text.replace("e", rng.choice(("\xe9", "\x85", "\u2028"))).encode(rng.choice(("latin-1", "utf-8")),
                                                                               "replace")
    elif kind == 5:
        return text.replace("\n", rng.choice(("\r", "\r\n", "\n\n", ""))).encode()
    elif kind == 6:
        return text.replace(rng.choice(",:\"'{[-"), rng.choice((";", "\t", "", "\"", "]"))).encode()
    else:
        return mutated_bytes(text.encode(), rng)
    return "".join(lines).encode()


def mutated_record(record, rng: random.Random):
    """A JSON or YAML value with one part changed, removed or added."""
    record = copy.deepcopy(record)
    node, place = record, None
    while isinstance(node, dict | list) and node and (place is None or rng.random() < 0.8):
        parent, place = node, rng.choice(list(node) if isinstance(node, dict) else range(len(node)))
        node = parent[place]
    kind = rng.randrange(4) if place is not None else 3
    if kind == 0:
        del parent[place]
    elif kind == 1 and isinstance(parent, dict):
        parent[rng.choice(("FUTURE", "\0", 7))] = node
    elif kind == 3 and rng.random() < 0.2:
        return rng.choice(SPECIALS)
    elif place is not None:
        parent[place] = rng.choice(SPECIALS)
    return record


def mutate_bytes(path: Path, rng: random.Random) -> None:
    path.write_bytes(mutated_bytes(path.read_bytes(), rng))


def mutate_text(path: Path, rng: random.Random) -> None:
    path.write_bytes(mutated_text(path.read_text(), rng))


def mutate_json(path: Path, rng: random.Random) -> None:
    if rng.random() < 0.4:
        return mutate_text(path, rng)
    path.write_text(json.dumps(mutated_record(json.loads(path.read_text()), rng)))


def mutate_yaml(path: Path, rng: random.Random) -> None:
    if rng.random() < 0.4:
        return mutate_text(path, rng)
    path.write_text(yaml.safe_dump(mutated_record(yaml.safe_load(path.read_text()), rng)))


def mutate_checkpoint(path: Path, rng: random.Random) -> None:
    shutil.rmtree(path.parent / "calibration")  # it is valid for the original checkpoint only
    if rng.random() < 0.5:
        return mutate_bytes(path, rng)
    checkpoint = torch.load(path, weights_only=True)
    state = checkpoint["model"]
    key = rng.choice(list(state))
    changes = [lambda: state.pop(key), lambda: state.update({key: rng.choice(SPECIALS)}),
               lambda: state.update({key: state[key].double()}), lambda: state.update({key: state[key].long()}),
               lambda: state.update({key: state[key][..., None]}), lambda: state.update({key: state[key].reshape(-1)}),
               lambda: state.update({key: torch.full_like(state[key], rng.choice((-1, 0, 2**31 - 1)))}),
               lambda: state.update({"extra": state[key]}), lambda: checkpoint.update(model=rng.choice(SPECIALS)),
               lambda: state.update({key: state[key].to(torch.float16).clone()}),
               lambda: state.update({key: state[key] * float("nan")}), lambda: checkpoint.pop("model")]
    rng.choice(changes)()
    torch.save(checkpoint, path)


def mutate_onnx(path: Path, rng: random.Random) -> None:
    import onnx

    if rng.random() < 0.5:
        return mutate_bytes(path, rng)
    model = onnx.load(path)
    entry = rng.choice(model.metadata_props)
    with contextlib.suppress(ValueError):
        changed = json.dumps(mutated_record(json.loads(entry.value), rng))
        entry.value = changed if rng.random() < 0.8 else mutated_text(entry.value, rng).decode("latin-1")
    if rng.random() < 0.3:
        tensor = model.graph.initializer[0]
        rng.choice((lambda: tensor.dims.append(1), lambda: setattr(tensor, "raw_data", tensor.raw_data[:-4]),
                    lambda: model.graph.node.pop(), lambda: setattr(model.graph.input[0], "name", "pixels"),
                    lambda: setattr(tensor, "raw_data", b"\xff" * len(tensor.raw_data))))()
    path.write_bytes(model.SerializeToString())


def mutate_one_of(folder: Path, rng: random.Random) -> None:
    """Mutate or delete one file of an index."""
    path = rng.choice(sorted(path for path in folder.rglob("*") if path.is_file()))
    if rng.random() < 0.1:
        path.unlink()
    elif path.suffix == ".json":
        mutate_json(path, rng)
    else:
        mutate_bytes(path, rng)


# Readers of the files.


def command(*arguments) -> None:
    """Run the `cerberus` command. If it fails, raise its error, or ValueError with its message."""
    out = io.StringIO()
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
            cli.main([str(argument) for argument in arguments])
    except SystemExit as end:
        raise ValueError(f"{end.code} {out.getvalue()}") from end.__cause__


@dataclass(frozen=True)
class Kind:
    """A kind of file.

    Attributes:
        copied: file or folder, relative to the folder of valid files, that is copied for each mutation.
        file: path of the mutated file or folder in the copy.   mutate: changes it, given a random generator.
        read: called with the mutated file, the folder of valid files and the number of the mutation.
        remedy: whether the error message must contain a remedy. Commands skip unreadable images with the reason only.
    """

    copied: str
    file: str
    mutate: Callable[[Path, random.Random], None]
    read: Callable[[Path, Path, int], None]
    remedy: bool = True


def run_recognises(path: Path, valid: Path, number: int) -> None:
    command("recognise", "--run", path.parent if path.parent.name == "run" else path.parent.parent,
            valid / "crops/0.jpg")


def index_is_read(path: Path, valid: Path, number: int) -> None:
    if number % 2:
        command("search", path, "gender=female", "upper colour=red", "--top", "3")
    else:
        command("index", "--model", valid / "model.onnx", "--images", valid / "crops", "--out", path)


KINDS = {
    "jpeg": Kind("crops/0.jpg", "0.jpg", mutate_bytes, lambda path, *_: read_image(path), remedy=False),
    "png": Kind("crops/1.png", "1.png", mutate_bytes, lambda path, *_: read_image(path), remedy=False),
    "mat": Kind("market_attribute.mat", "market_attribute.mat", mutate_bytes,
                lambda path, *_: read_annotations(path, MARKET1501)),
    "csv": Kind("outfit_attributes.csv", "outfit_attributes.csv", mutate_text,
                lambda path, *_: read_outfits(path, MARKET1501)),
    "config": Kind("run", "run/config.yaml", mutate_yaml, run_recognises),
    "calibration": Kind("run", "run/calibration/calibration.json", mutate_json, run_recognises),
    "checkpoint": Kind("run", "run/model_final.pth", mutate_checkpoint, run_recognises),
    "onnx": Kind("model.onnx", "model.onnx", mutate_onnx,
                 lambda path, valid, _: command("recognise", "--model", path, valid / "crops/0.jpg")),
    "index": Kind("index", "index", mutate_one_of, index_is_read),
}


# Valid files.


def make_valid(folder: Path) -> None:
    """Create the valid files, with fixed seeds."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    draw_dataset(folder / "data", train_ids=4, test_ids=4, images_per_id=4, distractors=0, junk=0, workers=1)
    shutil.copy(next((folder / "data").rglob("*.mat")), folder / "market_attribute.mat")
    annotations = read_annotations(folder / "market_attribute.mat", MARKET1501)
    write_outfits(folder / "outfit_attributes.csv", MARKET1501,
                  {("train", pid, str(k)): labels for pid, labels in annotations.train.items() for k in range(3)})
    (folder / "crops").mkdir()
    for i, path in enumerate(sorted((folder / "data").rglob("*.jpg"))[:6]):
        read_image(path).save(folder / "crops" / f"{i}.{'png' if i % 2 else 'jpg'}")
    make_run(folder)
    make_onnx(folder)
    command("index", "--model", folder / "model.onnx", "--images", folder / "crops", "--out", folder / "index")


def make_run(folder: Path) -> None:
    """Create the run folder of an untrained Cerberus for small images, with a calibration."""
    cfg = get_cfg()
    add_cerberus_config(cfg)
    merge_file(cfg, ROOT / "configs/Market1501/cerberus_demo.yml")
    cfg.merge_from_list(["OUTPUT_DIR", str(folder / "run"), "INPUT.SIZE_TEST", [48, 24], "INPUT.SIZE_TRAIN", [48, 24],
                         "MODEL.CERBERUS.SID_SPACE", "observed"])
    host_build._root = str(folder / "data")
    (folder / "run").mkdir()
    data = build_training_data(cfg, semantic_ids=True)
    cfg = with_attributes(cfg, data)
    model = build_model(cfg)
    fill_tables(model, cfg, data)
    Checkpointer(model, str(folder / "run")).save("model_final")
    predictor = CerberusPredictor(folder / "run")
    columns = {column.name: {"temperature": 1.5, "withhold below": 0.4} for column in MARKET1501.columns}
    (folder / "run" / "calibration").mkdir()
    (folder / "run" / "calibration" / "calibration.json").write_text(json.dumps({
        "format": 2, "checkpoint": "model_final.pth", "settings": predictor.settings, "columns": columns,
        "checkpoint sha256": file_sha256(str(folder / "run" / "model_final.pth")),
        "same person": {"slope": 20.0, "intercept": -10.0, "prior": 0.5, "metric": "cosine", "groups": [],
                        "false-match rates": [{"rate": 0.01, "threshold": 0.7}]}}))


def make_onnx(folder: Path) -> None:
    """Create a small graph with the vocabulary of the run: a random projection of the pixels instead of its model."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    predictor = CerberusPredictor(folder / "run")
    vocabulary = TorchEncoder(predictor).vocabulary
    dim = len(vocabulary.groups) * len(vocabulary.groups[0].mean_prototype)
    weights = np.random.default_rng(0).normal(size=(3 * 8 * 4, dim)).astype(np.float32)
    nodes = [helper.make_node("Cast", ["images"], ["pixels"], to=TensorProto.FLOAT),
             helper.make_node("Flatten", ["pixels"], ["flat"]),
             helper.make_node("MatMul", ["flat", "weights"], ["projected"]),
             helper.make_node("LpNormalization", ["projected"], ["embedding"], axis=1)]
    graph = helper.make_graph(
        nodes, "small", [helper.make_tensor_value_info("images", TensorProto.UINT8, ["batch", 3, 8, 4])],
        [helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["batch", dim])],
        [numpy_helper.from_array(weights, "weights")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    record = {"fingerprint": "0" * 64, "dim": dim, "groups": [group.name for group in vocabulary.groups],
              "metric": "cosine", "lasting_groups": ["head", "identity"], "size": [8, 4], "architecture": "Cerberus",
              "verification": predictor.calibration.verification.to_dict()}
    helper.set_model_props(model, {FORMAT_KEY: METADATA_FORMAT, ENCODER_KEY: json.dumps(record),
                                   VOCABULARY_KEY: json.dumps(vocabulary.to_dict())})
    onnx.save(model, folder / "model.onnx")


# Running.


def mutate(name: str, seed: int, number: int, valid: Path, folder: Path) -> Path:
    """Create the mutated file in a new folder and return its path."""
    kind = KINDS[name]
    source, target = valid / kind.copied, folder / Path(kind.copied).name
    folder.mkdir(parents=True)

    def copy_or_link(one: str, other: str) -> None:
        """Copy the mutated file; link to other files, which may be large."""
        changes = folder / kind.file in (Path(other), *Path(other).parents)
        (shutil.copy if changes else os.symlink)(one, other)

    if source.is_dir():
        shutil.copytree(source, target, copy_function=copy_or_link)
    else:
        copy_or_link(str(source), str(target))
    kind.mutate(folder / kind.file, random.Random(f"{name}/{seed}/{number}"))
    return folder / kind.file


def attempt(name: str, seed: int, number: int, valid: Path, folder: Path) -> tuple[str, str]:
    """Try one mutation in a new folder: "read", "rejected" with the message, or "failure" with the reason."""
    kind, path = KINDS[name], mutate(name, seed, number, valid, folder)
    try:
        kind.read(path, valid, number)
    except EXPECTED as error:
        return judge(error, path, kind.remedy)
    except BaseException:
        return "failure", f"traceback\n{traceback.format_exc(limit=-4)}"
    return "read", ""


def judge(error: Exception, path: Path, remedy: bool) -> tuple[str, str]:
    """Check that an error message names the file and a remedy."""
    message = str(error)
    if str(path) not in message:
        return "failure", f"message without the file: {type(error).__name__}: {message[:500]}"
    if remedy and not REMEDIES.search(message.replace(str(path), "")):
        return "failure", f"message without a remedy: {message[:500]}"
    return "rejected", message


def work(connection, valid: Path, folder: Path) -> None:
    """Loop of a worker: receive (kind, seed, number), send the result, and delete the files."""
    torch.set_num_threads(1)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    os.dup2(1, 2)
    while (task := connection.recv()) is not None:
        own = folder / f"{task[0]}-{task[1]}-{task[2]}"
        connection.send(attempt(*task, valid, own))
        shutil.rmtree(own)


class Worker:
    """A worker process. `fuzz` replaces it if it crashes or hangs."""

    def __init__(self, valid: Path, folder: Path) -> None:
        self.connection, other = multiprocessing.Pipe()
        self.process = multiprocessing.get_context("fork").Process(target=work, args=(other, valid, folder))
        self.process.start()
        other.close()
        self.task, self.until = None, 0.0

    def give(self, task: tuple, seconds: float) -> None:
        self.task, self.until = task, time.monotonic() + seconds
        self.connection.send(task)

    def result(self) -> tuple[str, str] | None:
        """The result of the task; None if it is not finished."""
        if self.connection.poll():
            with contextlib.suppress(EOFError, ConnectionError):
                return self.connection.recv()
            self.process.join()
            return "failure", f"the process crashed with exit code {self.process.exitcode}"
        if time.monotonic() > self.until:
            self.process.kill()
            self.process.join()
            return "failure", "hang: not finished within the time limit"
        return None

    def stop(self) -> None:
        with contextlib.suppress(OSError):
            self.connection.send(None)
        self.process.join(10)
        if self.process.is_alive():
            self.process.kill()


def fuzz(tasks: list[tuple], workers: int, seconds: float, folder: Path) -> dict[tuple, tuple[str, str]]:
    """Results of all (kind, seed, number), computed in `workers` processes."""
    valid = folder / "valid"
    valid.mkdir()
    maker = multiprocessing.get_context("fork").Process(target=make_valid, args=(valid,))
    maker.start()
    maker.join()
    if maker.exitcode:
        raise RuntimeError("the valid files could not be created, see above")
    results, waiting = {}, list(reversed(tasks))
    pool = [Worker(valid, folder / "work") for _ in range(min(workers, len(tasks)))]
    try:
        while waiting or any(worker.task for worker in pool):
            for i, worker in enumerate(pool):
                if worker.task and (result := worker.result()):
                    results[worker.task] = result
                    worker.task = None
                    if not worker.process.is_alive():
                        pool[i] = worker = Worker(valid, folder / "work")
                if not worker.task and waiting:
                    worker.give(waiting.pop(), seconds)
            wait([worker.connection for worker in pool if worker.task], timeout=1)
    finally:
        for worker in pool:
            worker.stop()
    return results


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--count", type=int, default=1000, help="total number of mutations (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="(default: %(default)s)")
    parser.add_argument("--only", type=int, help="run only this number, of each kind")
    parser.add_argument("--workers", type=int, default=2, help="processes (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=60, help="time limit of one mutation (default: %(default)s)")
    parser.add_argument("--keep", type=Path, help="folder for the mutated files of failures")
    args = parser.parse_args(arguments)
    numbers = [args.only] if args.only is not None else range(-(-args.count // len(args.kinds)))
    tasks = [(kind, args.seed, number) for number in numbers for kind in args.kinds]
    tasks = tasks if args.only is not None else tasks[:args.count]
    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        results = fuzz(tasks, args.workers, args.seconds, Path(folder))
        failures = {task: reason for task, (what, reason) in results.items() if what == "failure"}
        if args.keep:
            for task in failures if args.only is None else tasks:
                keep(task, Path(folder) / "valid", args.keep)
    for task, reason in failures.items():
        print(f"{task[0]} --seed {task[1]} --only {task[2]}: {reason}\n")
    for kind in args.kinds:
        counts = Counter(what for task, (what, _) in results.items() if task[0] == kind)
        print(f"{kind:12}", ", ".join(f"{count} {what}" for what, count in sorted(counts.items())))
    print(f"{len(results)} mutations, {len(failures)} failures, {time.monotonic() - start:.0f} seconds")
    return bool(failures)


def keep(task: tuple, valid: Path, folder: Path) -> None:
    """Create the file of a mutation again in a folder."""
    name, seed, number = task
    mutate(name, seed, number, valid, folder / f"{name}-{seed}-{number}")


if __name__ == "__main__":
    sys.exit(main())
