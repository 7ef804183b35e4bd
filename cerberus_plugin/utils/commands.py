"""What every command does around its work: print to consoles of any encoding, and end with a message."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable


def run_command(main: Callable[[], object], refusals: tuple[type[Exception], ...] = (ValueError, OSError),
                message: Callable[[Exception], str] = "error: {}".format,
                stopped: str = "stopped; the same command goes on after what is finished") -> None:
    """Run a command; what it refuses ends the process with a message and exit code 1.

    `main` raises one of `refusals` for what its user can mend, so that it can also be called from Python. With
    `python -X dev` or PYTHONDEVMODE=1 in the environment the traceback is shown in place of the message. A pipe that is
    closed, as `head` does, ends the process without a message.

    Args:
        message: of a refusal.   stopped: the message after an interrupt.
    """
    replace_unprintable()
    try:
        main()
        print(end="", flush=True)  # before Python does, which has no place for an error any more
    except KeyboardInterrupt:
        raise SystemExit(stopped) from None
    except refusals as error:
        if isinstance(error, BrokenPipeError) and _is_closed():
            raise SystemExit(1) from None
        if sys.flags.dev_mode:
            raise
        raise SystemExit(printable_lines(message(error))) from error


def _is_closed() -> bool:
    """Whether nobody reads standard output; it then leads nowhere, so that Python can close it."""
    try:
        print(flush=True)
    except BrokenPipeError:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
        return True
    return False


def replace_unprintable() -> None:
    """Print a question mark for characters that the encoding of the console lacks, where Python would end the command.

    For the entry points of commands: it changes `sys.stdout` of the process.
    """
    reconfigure = getattr(sys.stdout, "reconfigure", None)  # none where it was replaced, as notebooks do
    if reconfigure and sys.stdout.errors in ("strict", "surrogateescape"):  # the latter in the C and POSIX locales
        reconfigure(errors="replace")


def printable(text: str) -> str:
    """Without what a terminal would obey: names of files and words of tables come from anywhere."""
    return "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in text)


def printable_lines(text: str) -> str:
    """The same of a text of several lines."""
    return "\n".join(map(printable, text.split("\n")))
