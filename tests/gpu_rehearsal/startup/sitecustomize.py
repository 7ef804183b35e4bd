"""Python imports this module at its start where `soft_cuda.environment` has put its folder on PYTHONPATH."""

from gpu_rehearsal import soft_cuda

soft_cuda.wait_for_torch()
