"""FastReID's log in a terminal, reduced to progress, remaining time and warnings; log.txt contains all of it."""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Iterator
from pathlib import Path

from fastreid.utils.logger import setup_logger

# Messages for debugging, and tables of which the commands print a shorter form.
LONG = ("Rank of current process", "Environment info", "Command line arguments", "Contents of args", "Running with",
        "Full config saved", "Using a generated random seed", "Model:", "Results ", "Total inference", "No checkpoint")


@contextlib.contextmanager
def short_log(folder: Path | None = None, least: int = logging.NOTSET) -> Iterator[None]:
    """Log to the terminal and to a file within the block, and restore the loggers afterwards.

    Args:
        folder: folder of log.txt; None for no file.
        least: lowest level that the terminal shows, such as `logging.WARNING` with a progress bar.
    """
    root = logging.getLogger("fastreid")
    before, level, propagate = list(root.handlers), root.level, root.propagate
    if folder is None:
        setup_logger()
    else:
        folder.mkdir(parents=True, exist_ok=True)
        setup_logger(str(folder), distributed_rank=0)  # FastReID's `default_setup` then adds no handlers
    new = [handler for handler in root.handlers if handler not in before]
    for handler in new:
        if isinstance(handler, logging.StreamHandler) and handler.stream is sys.stdout:
            handler.addFilter(lambda line: not line.getMessage().startswith(LONG))
            handler.setLevel(max(handler.level, least))
    try:
        yield
    finally:
        for handler in new:
            root.removeHandler(handler)
        root.setLevel(level)
        root.propagate = propagate
        setup_logger.cache_clear()
