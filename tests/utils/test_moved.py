"""Old names of modules keep working for one version, each with a warning."""

import runpy
import sys
import warnings
from importlib import import_module
from importlib.util import find_spec

import cerberus_plugin
from cerberus_plugin.utils.moved import MOVED, ROOT

import pytest


@pytest.mark.parametrize("old", MOVED)
def test_every_old_name_gives_the_new_module(old):
    new = MOVED[old]
    with pytest.warns(DeprecationWarning, match=f"{ROOT}.{old} has moved to {ROOT}."):
        sys.modules.pop(f"{ROOT}.{old}", None)
        module = import_module(f"{ROOT}.{old}")
    if isinstance(new, str):
        assert module is import_module(f"{ROOT}.{new}")
        return
    for part in new:
        for name in vars(import_module(f"{ROOT}.{part}")):
            if not name.startswith("_"):
                assert hasattr(module, name)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        module.nothing  # noqa: B018


@pytest.mark.filterwarnings("ignore:cerberus_plugin:DeprecationWarning")
def test_old_names_give_the_same_objects_with_every_kind_of_import():
    import cerberus_plugin.gallery.engines.base as base
    from cerberus_plugin import losses
    from cerberus_plugin.assembly import build_train_set, load_model
    from cerberus_plugin.attributes.sids import SIDTable
    from cerberus_plugin.engine import CerberusTrainer
    from cerberus_plugin.gallery import GalleryIndex
    from cerberus_plugin.portable import read_image

    import_module("cerberus_plugin.visualise")
    assert base is import_module("cerberus_plugin.search.gallery.engines.base")
    assert losses is import_module("cerberus_plugin.modeling.losses") is cerberus_plugin.losses
    assert build_train_set.__module__ == "cerberus_plugin.data.build"
    assert load_model.__module__ == "cerberus_plugin.modeling.build"
    assert SIDTable is cerberus_plugin.SIDTable and CerberusTrainer is cerberus_plugin.CerberusTrainer
    assert GalleryIndex is import_module("cerberus_plugin.search.gallery").GalleryIndex
    assert read_image is import_module("cerberus_plugin.utils.images").read_image
    assert cerberus_plugin.visualise.__name__ == "cerberus_plugin.experiments.figures.rank_list"


def test_the_warning_refers_to_the_file_that_imports():
    sys.modules.pop("cerberus_plugin.losses", None)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        import cerberus_plugin.losses  # noqa: F401
    assert [each.filename for each in caught] == [__file__]


def test_names_that_have_never_existed_are_not_found():
    assert find_spec("cerberus_plugin.nothing") is None and find_spec("cerberus_plugin.gallery.nothing") is None
    with pytest.raises(AttributeError, match="nothing"):
        cerberus_plugin.nothing  # noqa: B018


@pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")
@pytest.mark.parametrize(("old", "usage"), [
    ("data.synthetic", "usage: python -m cerberus_plugin.synthetic"),
    ("manifest", "usage: python -m cerberus_plugin.experiments.manifest_diff")])
def test_python_m_runs_commands_with_old_names_and_a_warning(old, usage, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["", "--help"])
    for name in (old, f"{old}.__main__"):
        sys.modules.pop(f"{ROOT}.{name}", None)  # as in a new process
    with pytest.warns(DeprecationWarning, match=f"cerberus_plugin.{old}.* has moved to"), pytest.raises(SystemExit):
        runpy.run_module(f"cerberus_plugin.{old}", run_name="__main__", alter_sys=True)  # what python -m does
    assert capsys.readouterr().out.startswith(usage)
