"""Tests of the GPU path on a machine without a GPU.

`soft_cuda` adds a device with the name cuda to the CPU build of torch. The CPU computes its values, and it follows the
rules of a GPU. `test_rehearsal.py` runs the tests marked gpu on it, `budget` counts the operations of a training step,
and `inductor` compiles the kernels for a GPU. To run any other program on the device, use
`PYTHONPATH=tests python -m gpu_rehearsal FILE ...`.
"""
