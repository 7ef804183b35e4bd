"""Contents of weight files: wrappers, sources, and tensors of another size than the model's."""

from pathlib import Path

from cerberus_plugin.pretrained import SOURCES, fit, recognise, unwrap
from cerberus_plugin.pretrained.fitting import resized_positions

import pytest
import torch
from torch import nn

ONE = torch.ones(1)


@pytest.mark.parametrize("content, outer, prefix", [
    ({"a": ONE}, (), ""),
    ({"module.a": ONE, "module.b": ONE}, (), ""),
    ({"state_dict": {"module.a": ONE}, "epoch": 3, "optimizer": {"state": {}}}, ("state_dict",), ""),
    ({"model": {"backbone.a": ONE, "heads.weight": ONE}, "epoch": 3}, ("model",), "backbone."),
    ({"student": {"b": ONE}, "teacher": {"module.backbone.a": ONE, "module.head.x": ONE}}, ("teacher",), "backbone."),
    ({"module": {"teacher": {"backbone.a": ONE}}}, ("module", "teacher"), "backbone."),
    ({"visual.a": ONE, "transformer.a": ONE, "logit_scale": ONE}, (), "visual."),
    ({"state_dict": {"module.encoder_q.a": ONE, "module.encoder_k.a": ONE, "module.queue": ONE}}, ("state_dict",),
     "encoder_q."),
    ({"model": {"module.encoder.a": ONE}}, ("model",), ""),
    ({"model_state": {"a": ONE}, "epoch": 3}, ("model_state",), ""),
    ({"_orig_mod.a": ONE}, (), "")])
def test_outer_keys_and_prefixes_are_removed(content, outer, prefix):
    contents = unwrap(content)
    assert set(contents.tensors) - {"b"} == {"a"} and (contents.outer, contents.prefix) == (outer, prefix)


@pytest.mark.parametrize("content, held", [({"state_dict": {}}, "dict"), ({"epoch": 3}, r"keys \['epoch'\]"),
                                           ([ONE], "list")])
def test_contents_without_named_tensors_are_rejected(content, held):
    with pytest.raises(ValueError, match=f"file.pth: contains no named tensors, only {held}.*state_dict"):
        unwrap(content, "file.pth")


RESNET = ("conv1.weight", "layer4.0.conv1.weight")


@pytest.mark.parametrize("names, outer, file_name, name", [
    ((*RESNET, "fc.weight"), "", "", "imagenet"),
    (RESNET, "", "", "imagenet"),
    (RESNET, "", "lupws_r50.pth", "luperson"),
    ((*RESNET, "fc.0.weight"), "state_dict", "lup_moco_r50.pth", "luperson"),
    (RESNET, "teacher", "", "cion"),
    (("backbone.layer4.0.conv1.weight", "heads.bottleneck.0.weight"), "model", "", "fastreid"),
    (("module.conv1.conv.weight", "module.conv2.0.conv1.conv.weight", "module.classifier.weight"), "state_dict", "",
     "torchreid"),
    (("layers.0.blocks.0.attn.qkv.weight", "layers.1.downsample.norm.weight", "head.fc.weight"), "", "", "imagenet")])
def test_a_file_is_recognised_by_its_names(names, outer, file_name, name):
    tensors = dict.fromkeys(names, ONE)
    assert recognise(unwrap({outer: tensors} if outer else tensors, file_name)).name == name


@pytest.mark.parametrize("tokens, outer, name", [(197, "", "imagenet"), (129, "", "person_vit"),
                                                 (197, "teacher", "person_vit")])
def test_a_transformer_with_non_square_positions_has_person_weights(tokens, outer, name):
    tensors = {"blocks.0.attn.qkv.weight": ONE, "pos_embed": torch.zeros(1, tokens, 4)}
    assert recognise(unwrap({outer: tensors} if outer else tensors)).name == name


def test_the_documentation_lists_every_source():
    page = (Path(__file__).parents[2] / "docs" / "pretrained.md").read_text()
    assert [source.name for source in SOURCES if f"`{source.name}`" not in page] == []


def test_a_source_can_be_named_and_an_unknown_name_is_rejected():
    contents = unwrap({"a": ONE})
    assert all(recognise(contents, source.name) is source for source in SOURCES)
    with pytest.raises(ValueError, match="PRETRAIN_SOURCE is 'lup', expected '' .*solider.*imagenet"):
        recognise(contents, "lup")


def positions(rows: int, columns: int, before: int = 1) -> torch.Tensor:
    """Positions (1, before + rows * columns, 2): row and column of each patch in 0..1; -1 for tokens before them."""
    row, column = torch.meshgrid(torch.linspace(0, 1, rows), torch.linspace(0, 1, columns), indexing="ij")
    patches = torch.stack([row, column], -1).flatten(0, 1)
    return torch.cat([torch.full((before, 2), -1.0), patches]).unsqueeze(0)


def test_square_positions_are_resized_to_a_person_crop_without_mixing_rows_and_columns():
    found = resized_positions(positions(14, 14), 1 + 16 * 8, (16, 8), 1)[0]
    assert found[0].tolist() == [-1, -1] and found.shape == (129, 2)
    rows, columns = found[1:].unflatten(0, (16, 8)).unbind(-1)
    assert torch.allclose(rows, rows[:, :1].expand(16, 8), atol=1e-5)  # the row does not depend on the column
    assert torch.allclose(columns, columns[:1].expand(16, 8), atol=1e-5)
    assert (rows[1:, 0] > rows[:-1, 0]).all() and (columns[0, 1:] > columns[0, :-1]).all()
    middle = (torch.arange(1, 15) + 0.5) / 16 * 14 / 13 - 0.5 / 13  # linear interpolation between two patches
    assert torch.allclose(rows[1:-1, 0], middle, atol=0.01)


def test_positions_of_a_person_crop_have_aspect_ratio_two_and_others_are_not_resized():
    person = positions(16, 8)
    assert torch.equal(resized_positions(person, 129, (16, 8), 2), person)
    found = resized_positions(person, 193, (24, 8), 2)[0, 1:].unflatten(0, (24, 8))
    assert torch.allclose(found[0, :, 1], torch.linspace(0, 1, 8), atol=1e-5)  # columns are unchanged
    other = positions(24, 8)
    assert resized_positions(other, 129, (16, 8), 2) is other


def test_square_positions_are_resized_as_in_timm():
    from timm.layers import resample_abs_pos_embed

    square = torch.randn(1, 197, 4, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(resized_positions(square, 65, (8, 8), 1), resample_abs_pos_embed(square, [8, 8]))


@pytest.mark.parametrize("before, tokens", [(2, 1), (1, 2)])
def test_a_distillation_token_is_removed_and_additional_tokens_are_zero(before, tokens):
    found = resized_positions(positions(4, 4, before), tokens + 4, (2, 2), 1)[0]
    assert found[0].tolist() == [-1, -1] and found.shape == (tokens + 4, 2)
    assert tokens == 1 or found[1].tolist() == [0, 0]


def test_the_report_lists_matched_and_unmatched_tensors_with_reasons():
    model = nn.ModuleDict({"conv1": nn.Conv2d(1, 2, 1), "bn1": nn.BatchNorm2d(2), "fc": nn.Linear(2, 3),
                           "NL_2": nn.ModuleList([nn.Linear(1, 1)])})
    file = {"conv1.weight": torch.full((2, 1, 1, 1), 7.0), "conv1.bias": torch.zeros(3), "bn1.weight": torch.ones(2),
            "bn1.num_batches_tracked": torch.tensor(5), "head.weight": torch.zeros(1), "head.bias": torch.zeros(1)}
    result = fit(model, file)
    assert model["conv1"].weight.flatten().tolist() == [7, 7]
    assert (len(result.matched), result.total, result.share) == (2, 8, 0.25)  # published files have no non-local blocks
    assert result.account() == ("2 of 8 tensors matched; absent in the file: bn1 (3), fc (2); of another shape: "
                                "conv1.bias 3, in the model 2; new, in no published file: NL_2.0 (2); not in the "
                                "model: head (2)")


def test_weights_in_half_precision_are_loaded_into_a_float32_model():
    model = nn.Linear(1, 1)
    fit(model, {"weight": torch.full((1, 1), 0.1).half(), "bias": torch.zeros(1).half()})
    assert model.weight.dtype == torch.float32 and model.weight.item() == pytest.approx(0.1, abs=1e-4)
