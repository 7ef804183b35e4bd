"""The example converter of docs/converters.md."""

import re
import runpy
from pathlib import Path

from cerberus_plugin.converters import CONVERTERS
from cerberus_plugin.own_data.schema_file import read_schema

from support.published_sets import binaries_of, rows, touch

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/converters.md").read_text()


def test_the_converter_of_the_page_runs_and_has_at_most_30_lines(tmp_path, monkeypatch):
    code = re.search(r"```python\n(.*?)```", PAGE, flags=re.S)[1]
    assert len(list(filter(str.strip, code.splitlines()))) <= 30
    (tmp_path / "gate.py").write_text(code)
    labels = ["1,0,1,0", "0,1,0,1", "0,0,0,1", "1,1,1,0", "0,1,0,0", "1,0,0,1"]
    (tmp_path / "GATE").mkdir()
    (tmp_path / "GATE/labels.csv").write_text("image,part,has_helmet,vest_red,vest_yellow,is_female\n" + "".join(
        f"{n}.jpg,{'train' if n < 4 else 'test'},{own}\n" for n, own in enumerate(labels)))
    touch(tmp_path / "GATE/crops", [f"{n}.jpg" for n in range(6)])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["gate.py", "GATE", "data/gate"])
    runpy.run_path("gate.py", run_name="__main__")
    del CONVERTERS["gate"]
    written = rows(tmp_path / "data/gate")
    assert written[0] == {"file_name": "images/0.jpg", "split": "train", "helmet": "yes", "vest colour": "yellow",
                          "gender": "male"}
    assert [row["vest colour"] for row in written[2:4]] == ["none", "red and yellow"]
    assert [",".join(map(str, row)) for row in binaries_of(tmp_path / "data/gate").tolist()] == labels
    assert read_schema(tmp_path / "data/gate/schema.yaml").schema.group_names == ("head", "upper", "identity")
    assert (tmp_path / "data/gate/images/0.jpg").exists()


def test_the_page_has_a_row_for_each_dataset():
    assert all(f"| `{name}` |" in PAGE for name in CONVERTERS)
