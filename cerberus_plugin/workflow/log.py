"""The host's log in a terminal: progress, time left and warnings; the rest is in log.txt."""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Iterator
from pathlib import Path

from fastreid.utils.logger import setup_logger

# What the host and the trainer log for those who look for a mistake, and tables that a command prints shorter.
LONG = ("Rank of current process", "Environment info", "Command line arguments", "Contents of args", "Running with",
        "Full config saved", "Using a generated random seed", "Model:", "Results ", "Total inference", "No checkpoint")


@contextlib.contextmanager
def short_log(folder: Path | None = None, least: int = logging.NOTSET) -> Iterator[None]:
    """Log to the terminal, and to log.txt in a folder, within the block.

    Args:
        least: level from which the terminal shows it, such as `logging.WARNING` beside a bar.
    """
    root = logging.getLogger("fastreid")
    before, level, propagate = list(root.handlers), root.level, root.propagate
    if folder is None:
        setup_logger()
    else:
        folder.mkdir(parents=True, exist_ok=True)
        setup_logger(str(folder), distributed_rank=0)  # as the host's `default_setup` calls it, which adds none then
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
