"""Evaluation: no compilation during training, a faster ranking, and fixes of re-ranking and flip testing."""

from collections.abc import Callable

import torch

from .patching import replace


def skip_compilation() -> None:
    """Do not compile FastReID's Cython modules.

    The first evaluator runs `make` in site-packages with the python3 of PATH (evaluation/rank_cylib/__init__.py:14).
    Without Cython or a compiler this calls sys.exit in the middle of training. Without compilation FastReID ranks in
    Python (evaluation/rank.py:11), which `use_ranking` replaces.
    """
    from fastreid.evaluation import rank_cylib, reid_evaluation

    replace(rank_cylib, "compile_helper", lambda host_compile: lambda: None)
    replace(reid_evaluation.ReidEvaluator, "_compile_dependencies", lambda host_compile: lambda self: None)


def use_ranking(rank: Callable) -> None:
    """Replace FastReID's evaluate_rank, except for the CUHK03 protocol.

    Args:
        rank: function `(distmat (Q, G), q_pids (Q,), g_pids (G,), q_camids (Q,), g_camids (G,), max_rank) ->
            (cmc (max_rank,), all_AP, all_INP)` of numpy arrays.
    """
    import fastreid.evaluation.rank

    def build(host_rank):
        def evaluate_rank(distmat, q_pids, g_pids, q_camids, g_camids, max_rank=50,
                          use_metric_cuhk03=False, use_cython=True):
            ids = (q_pids, g_pids, q_camids, g_camids)
            if use_metric_cuhk03:
                return host_rank(distmat, *ids, max_rank, use_metric_cuhk03, use_cython)
            return rank(distmat, *ids, max_rank=max_rank)

        return evaluate_rank

    replace(fastreid.evaluation.rank, "evaluate_rank", build)


def rerank_on_cpu() -> None:
    """Make TEST.RERANK of FastReID's evaluator work with every release of faiss.

    utils/compute_dist.py:53 always uses search option 0, which moves the features to a GPU (:68) and calls
    `faiss.cast_integer_to_long_ptr` (utils/faiss_utils.py), which newer releases of faiss have removed. Option 3
    searches on the CPU and finds the same neighbours. The plugin's own tasks use `metrics.reranking`.
    """
    import fastreid.utils.compute_dist

    def build(host_distance):
        def compute_jaccard_distance(features, k1=20, k2=6, search_option=0, fp16=False):
            return host_distance(features.cpu(), k1, k2, 3, fp16)

        return compute_jaccard_distance

    replace(fastreid.utils.compute_dist, "compute_jaccard_distance", build)


def normalise_out_of_place() -> None:
    """Normalise images out of place.

    Baseline and MGN normalise in place (modeling/meta_arch/baseline.py:130, mgn.py:256), and flip testing uses the same
    batch again (evaluation/evaluator.py:120), so its flipped images would be normalised twice.
    """
    from fastreid.modeling.meta_arch.baseline import Baseline
    from fastreid.modeling.meta_arch.mgn import MGN

    def build(host_preprocess):
        def preprocess_image(self, batched_inputs):
            if isinstance(batched_inputs, dict):
                batched_inputs = {**batched_inputs, "images": batched_inputs["images"].clone()}
            elif isinstance(batched_inputs, torch.Tensor):
                batched_inputs = batched_inputs.clone()
            return host_preprocess(self, batched_inputs)

        return preprocess_image

    replace(Baseline, "preprocess_image", build)
    replace(MGN, "preprocess_image", build)
