"""Run Python with the given arguments and with a software device with the name cuda."""

import os
import sys

from gpu_rehearsal import soft_cuda

if __name__ == "__main__":
    if len(sys.argv) == 1:
        sys.exit("usage: python -m gpu_rehearsal FILE ... | -m MODULE ... | -c CODE ...")
    try:
        soft_cuda.build()
    except soft_cuda.Unavailable as error:
        sys.exit(str(error))
    os.execve(sys.executable, [sys.executable, *sys.argv[1:]], soft_cuda.environment())
