"""Options for speed do not change results, for models of the plugin and of FastReID."""

import copy
import inspect

from cerberus_plugin.modeling import precision as acceleration
from cerberus_plugin.modeling.build import load_model

import pytest
import torch
from fastreid.solver import build_optimizer
from support.training import PLUS, RESNET, SMALL, model_of, small_batch, solver_cfg, trained

FAST = ("SOLVER.AUTOCAST", "bfloat16", "TEST.AUTOCAST", "bfloat16", "MODEL.CHANNELS_LAST", True, "SOLVER.FUSED", True)
PLAIN = ("SOLVER.AUTOCAST", "", "TEST.AUTOCAST", "", "MODEL.CHANNELS_LAST", False, "SOLVER.FUSED", False,
         "MODEL.COMPILE", False)


def train_steps(steps: int = 2, channels_last: bool = False, fused: bool = False, precision: str = ""):
    """Losses of some steps with Adam on FastReID's flat buffers, the trained model, and its optimiser.

    Computed in float64, except under autocast, to exclude rounding errors.
    """
    model = model_of(*SMALL).train()
    batch = small_batch(model)
    if not precision:
        model, batch = model.double(), {**batch, "images": batch["images"].double()}
    acceleration.cast_forward(model, precision, channels_last=channels_last)
    optimizer, flat = build_optimizer(solver_cfg(OPT="Adam", BASE_LR=1e-3), model)
    if channels_last:
        acceleration.store_channels_last(optimizer, model)
    acceleration.fuse(optimizer, fused)
    losses = []
    for _ in range(steps):
        loss = sum(model(batch).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        flat.assert_buffer_is_valid()
        losses.append(loss.item())
    return losses, model, optimizer


@pytest.fixture(scope="module")
def plain():
    return train_steps()


@pytest.mark.parametrize("switch", [{"fused": True}, {"channels_last": True}, {"fused": True, "channels_last": True}])
def test_each_option_gives_the_same_training_steps(plain, switch):
    losses, model, _ = train_steps(**switch)
    assert losses == pytest.approx(plain[0], rel=1e-9)
    for (name, p), q in zip(model.named_parameters(), plain[1].parameters()):
        # Steps are 1e-3 long. If a gradient is 0, as of a bias before a normalisation, Adam depends on rounding errors.
        assert torch.allclose(p, q, rtol=1e-6, atol=1e-5), name


def test_convolutions_are_stored_channels_last_in_fastreids_buffer():
    _, model, optimizer = train_steps(1, channels_last=True)
    weights = [p for p in model.parameters() if p.dim() == 4 and p.shape[2] > 1]
    assert weights and all(w.is_contiguous(memory_format=torch.channels_last) for w in weights)
    assert all(w.grad.is_contiguous(memory_format=torch.channels_last) for w in weights)
    buffers = {group["params"][0].untyped_storage().data_ptr() for group in optimizer.param_groups}
    assert {w.untyped_storage().data_ptr() for w in weights} <= buffers


def test_reordering_does_not_change_values():
    model, expected = model_of(*SMALL), model_of(*SMALL)
    optimizer, _ = build_optimizer(solver_cfg(OPT="Adam"), model)
    acceleration.store_channels_last(optimizer, model)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), expected.parameters()))


def test_bfloat16_training_keeps_float32_losses_gradients_and_evaluation():
    model = model_of(*SMALL).train()
    batch = small_batch(model)
    acceleration.cast_forward(model, training="bfloat16")
    seen = []
    model.trunk.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    terms = model(batch)
    sum(terms.values()).backward()
    with torch.no_grad():
        model.eval()(batch)
    assert seen == [torch.bfloat16, torch.float32]
    assert {term.dtype for term in terms.values()} == {torch.float32}
    assert {p.grad.dtype for p in model.parameters()} == {torch.float32}


def test_a_copied_model_uses_its_own_weights_under_autocast():
    model = model_of(*SMALL).eval()
    acceleration.cast_forward(model, evaluation="bfloat16")
    other = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in other.trunk.parameters():
            parameter.add_(1)
        images = 255 * torch.rand(2, 3, 96, 48)
        assert not torch.equal(model(images), other(images))


def test_autocast_ends_with_a_forward_pass_that_fails():
    model = model_of(*SMALL).train()
    acceleration.cast_forward(model, training="bfloat16")
    with pytest.raises(ValueError, match="without 'targets'"):
        model({"images": torch.rand(2, 3, 96, 48)})
    assert not torch.is_autocast_enabled("cpu")


def test_bfloat16_losses_equal_float32_losses_to_three_digits(plain):
    losses, _, _ = train_steps(1, precision="bfloat16")
    assert losses[0] == pytest.approx(plain[0][0], rel=0.01)


def test_fused_and_default_optimisers_can_resume_each_other(plain):
    for fused in (True, False):
        _, model, optimizer = train_steps(1, fused=not fused, precision="bfloat16")
        state = optimizer.state_dict()
        other, _ = build_optimizer(solver_cfg(OPT="Adam", BASE_LR=1e-3), model)
        other.load_state_dict(state)
        acceleration.fuse(other, fused)
        sum(model(small_batch(model)).values()).backward()
        other.step()
        assert {group["fused"] for group in other.param_groups} == {fused}
        assert all(entry["step"].item() == 2 for entry in other.state.values())


@pytest.mark.parametrize(("fused", "clips", "unscales"),
                         [(True, False, False), (True, True, True), (False, False, True)])
def test_a_gradient_scaler_only_unscales_if_the_step_does_not(fused, clips, unscales, monkeypatch):
    model = torch.nn.Linear(3, 1)
    optimizer, _ = build_optimizer(solver_cfg(OPT="Adam"), model)
    acceleration.fuse(optimizer, fused, clips)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    unscaled = []
    plain = scaler.unscale_
    monkeypatch.setattr(scaler, "unscale_", lambda opt: unscaled.append(opt) or plain(opt))
    optimizer.zero_grad()
    before = model.weight.detach().clone()
    scaler.scale(model(torch.ones(2, 3)).sum()).backward()
    scaler.step(optimizer)
    scaler.update()
    assert bool(unscaled) == unscales and not torch.equal(model.weight, before)


def test_a_skipped_first_step_leaves_zero_momentum():
    weights = []
    torch.use_deterministic_algorithms(True)  # uninitialised memory is NaN
    try:
        for fused, skipped in ((False, False), (True, False), (True, True)):
            torch.manual_seed(0)
            model = torch.nn.Linear(3, 1)
            optimizer, _ = build_optimizer(solver_cfg(OPT="SGD", MOMENTUM=0.9), model)
            acceleration.fuse(optimizer, fused)
            for skip in (skipped, False, False)[not skipped:]:
                optimizer.zero_grad()
                model(torch.ones(2, 3)).square().sum().backward()
                if fused:
                    optimizer.found_inf = torch.tensor(float(skip))
                optimizer.step()
            weights.append(model.weight.detach().clone())
    finally:
        torch.use_deterministic_algorithms(False)
    assert torch.equal(weights[1], weights[2])
    torch.testing.assert_close(weights[1], weights[0])


def test_an_optimiser_without_fused_implementation_is_not_changed(log):
    model = model_of(*SMALL)
    optimizer, _ = build_optimizer(solver_cfg(OPT="RMSprop"), model)
    acceleration.fuse(optimizer, True)
    assert "SOLVER.OPT has no fused implementation" in log.text
    assert "fused" not in optimizer.param_groups[0]


@pytest.mark.parametrize("options", [pytest.param((), id="paper"),
                                     pytest.param((*RESNET, *PLUS), id="plus", marks=pytest.mark.slow)])
def test_the_model_compiles_as_two_whole_graphs_and_computes_the_same(options):
    model, compiled = (model_of(*SMALL, *options).train() for _ in range(2))
    expected = sum(model(small_batch(model)).values()).item()
    acceleration.compile_model(compiled, backend="aot_eager", fullgraph=True)  # raises an error for a graph break
    assert sum(compiled(small_batch(compiled)).values()).item() == pytest.approx(expected, rel=1e-5)


def test_training_without_a_compiler_is_logged_and_not_compiled(small_config, monkeypatch, log):
    from cerberus_plugin import CerberusTrainer

    monkeypatch.setattr(acceleration.shutil, "which", lambda name: None)
    trainer = CerberusTrainer(small_config("MODEL.COMPILE", True))
    assert "MODEL.COMPILE: a C compiler is not installed; training runs uncompiled" in log.text
    assert "represent" not in vars(trainer.model)


def test_models_with_synchronised_batch_statistics_are_not_compiled():
    model = torch.nn.Sequential(torch.nn.SyncBatchNorm(2))
    assert "MODEL.SYNC_BN" in acceleration.missing_for_compilation(model)


def test_all_children_except_heads_of_fastreids_models_are_compiled(small_config):
    from fastreid.modeling.meta_arch import build_model

    cfg = small_config("MODEL.META_ARCHITECTURE", "Baseline", "MODEL.HEADS.NAME", "EmbeddingHead",
                       "MODEL.HEADS.NUM_CLASSES", 4)
    model = build_model(cfg)
    acceleration.compile_model(model, backend="eager")
    assert "forward" in vars(model.backbone) and "forward" not in vars(model.heads)


class Parts(torch.nn.Module):
    """Three children of the same class, and a head that is not compiled."""

    def __init__(self):
        super().__init__()
        for name in ("backbone", "b1", "b2", "b1_head"):
            setattr(self, name, torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2)))


@pytest.mark.skipif("isolate_recompiles" not in inspect.signature(torch.compile).parameters, reason="of a newer torch")
def test_all_parts_with_shared_code_are_compiled():
    graphs = []

    def counting(graph, inputs):
        graphs.append(graph)
        return graph.forward

    parts = Parts()
    acceleration.compile_model(parts, backend=counting)
    for size in (2, 3, 4):  # 9 graphs of one function; the limit is 8
        for name, part in parts.named_children():
            before = len(graphs)
            part(torch.ones(size, 2))
            assert len(graphs) - before == (0 if "head" in name else 1), (name, size)


def test_compiler_options_only_apply_to_gpus():
    cuda, cpu = torch.device("cuda"), torch.device("cpu")
    assert acceleration.compiler_options("default", cuda) == {"options": {"combo_kernels": True}}
    options = acceleration.compiler_options("reduce-overhead", cuda)["options"]
    assert options["combo_kernels"] and torch._inductor.list_mode_options("reduce-overhead").items() <= options.items()
    assert options.keys() <= set(torch._inductor.list_options())
    assert acceleration.compiler_options("reduce-overhead", cpu) == {}
    with pytest.raises(ValueError, match="MODEL.COMPILE_MODE is 'fast', expected one of default, reduce-overhead"):
        acceleration.compiler_options("fast", cpu)


@pytest.mark.parametrize("default", [True, False])
def test_tf32_is_disabled_in_evaluation_only(default, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", default)
    model = model_of(*SMALL).train()
    acceleration.cast_forward(model)
    seen = []
    model.trunk.register_forward_hook(lambda *_: seen.append(torch.backends.cudnn.allow_tf32))
    batch = small_batch(model)
    model(batch)
    with torch.no_grad():
        model.eval()(batch)
        outer = acceleration._without_tf32()  # forward pass of another thread, which begins earlier and ends later
        with outer:
            model(batch)
            assert torch.backends.cudnn.allow_tf32 is False
    assert seen == [default, False, False] and torch.backends.cudnn.allow_tf32 is default


@pytest.mark.slow
@pytest.mark.parametrize("file", ["cerberus_demo", "bot_R50"])
def test_all_options_train_evaluate_and_reload_with_the_trainer(small_config, file):
    cfg = small_config(*FAST, "MODEL.HEADS.POOL_LAYER", "GlobalAvgPool", "DATALOADER.NUM_WORKERS", 0,
                       file=f"configs/Market1501/{file}.yml")
    trainer = trained(cfg)
    assert all((p != trainer.start[name]).any() for name, p in trainer.model.named_parameters()
               if p.requires_grad and p.numel() > 64)
    loaded = load_model(_with_weights(trainer.cfg))
    images = {"images": torch.rand(4, 3, 48, 24) * 255}
    with torch.no_grad():
        assert torch.allclose(loaded(images), trainer.model.eval()(images), atol=1e-2)


def _with_weights(cfg):
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.WEIGHTS = f"{cfg.OUTPUT_DIR}/model_final.pth"
    cfg.freeze()
    return cfg


def test_a_run_only_resumes_with_the_same_memory_format(small_config):
    from cerberus_plugin import CerberusTrainer

    trained(small_config(*PLAIN, "SOLVER.MAX_EPOCH", 1, "TEST.EVAL_PERIOD", 1))
    other = CerberusTrainer(small_config(*PLAIN, "MODEL.CHANNELS_LAST", True))
    with pytest.raises(ValueError, match=r"\.pth: .*trained with MODEL.CHANNELS_LAST False, this run has True"):
        other.resume_or_load(resume=True)


@pytest.mark.parametrize(("training", "evaluation", "amp", "message"), [
    ("float16", "", False, "SOLVER.AUTOCAST is 'float16', expected one of .*gradient scaler: SOLVER.AMP.ENABLED"),
    ("", "half", False, "TEST.AUTOCAST is 'half', expected one of .*'bfloat16', 'float16'"),
    ("bfloat16", "", True, "SOLVER.AUTOCAST is 'bfloat16' and SOLVER.AMP.ENABLED True: two precisions")])
def test_unsupported_precisions_are_rejected(training, evaluation, amp, message):
    with pytest.raises(ValueError, match=message):
        acceleration.check_autocast(training, evaluation, amp)


def test_hardware_without_bfloat16_uses_float32_with_a_log_message(small_config, monkeypatch, log):
    from cerberus_plugin.modeling.build import with_precision

    monkeypatch.setattr(acceleration, "computes_in_half", lambda device: False)
    model = with_precision(model_of(*SMALL).train(), small_config(*FAST))
    seen = []
    model.trunk.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    model(small_batch(model))
    assert seen == [torch.float32]
    assert "cpu has no bfloat16 arithmetic: using float32 instead of" in log.text


@pytest.mark.gpu
@pytest.mark.parametrize("file", ["cerberus_demo", "bot_R50"])
def test_all_options_and_the_compiler_work_on_a_gpu(small_config, file):
    trainer = trained(small_config(*FAST, "MODEL.DEVICE", "cuda", "MODEL.COMPILE", True, "DATALOADER.RESIDENT", True,
                                   file=f"configs/Market1501/{file}.yml"))
    assert all((p != trainer.start[name]).any() for name, p in trainer.model.named_parameters()
               if p.requires_grad and p.numel() > 64)
    assert trainer.results["mAP"] > 0
