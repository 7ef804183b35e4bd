"""A rehearsal of the GPU path on a machine without a GPU.

`soft_cuda` gives the CPU build of torch a device called cuda: real values, a GPU's rules. The tests marked gpu run on
it in `test_rehearsal.py`, `budget` counts what a training step asks of it, and `inductor` compiles for a GPU that is
not there. Any other program runs on it by `PYTHONPATH=tests python -m gpu_rehearsal FILE ...`.
"""
