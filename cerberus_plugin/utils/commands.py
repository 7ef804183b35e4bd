"""What every command does around its work: print to consoles of any encoding, and end with a message."""

from __future__ import annotations

import sys
from collections.abc import Callable


def run_command(main: Callable[[], object]) -> None:
    """Run a command; what it refuses ends the process with the message and exit code 1.

    `main` raises ValueError or OSError for what its user can mend, so that it can also be called from Python. With
    `python -X dev` the traceback is shown in place of the message.
    """
    replace_unprintable()
    try:
        main()
    except KeyboardInterrupt:
        raise SystemExit("stopped; the same command goes on after what is finished") from None
    except (ValueError, OSError) as error:
        if sys.flags.dev_mode:
            raise
        raise SystemExit(f"error: {error}") from error


def replace_unprintable() -> None:
    """Print a question mark for characters that the encoding of the console lacks, where Python would end the command.

    For the entry points of commands: it changes `sys.stdout` of the process.
    """
    reconfigure = getattr(sys.stdout, "reconfigure", None)  # none where it was replaced, as notebooks do
    if reconfigure and sys.stdout.errors in ("strict", "surrogateescape"):  # the latter in the C and POSIX locales
        reconfigure(errors="replace")
