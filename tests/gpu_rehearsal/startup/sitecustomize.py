"""Imported by Python at its start, because `soft_cuda.environment` adds this folder to PYTHONPATH."""

from gpu_rehearsal import soft_cuda

soft_cuda.wait_for_torch()
