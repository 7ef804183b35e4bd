"""Entry points of commands: output for consoles of any encoding, and errors as messages."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Callable, Iterator

BLUR_FACES = "CERBERUS_BLUR_FACES"  # environment variable; 1 blurs heads in images that are shown


def run_command(main: Callable[[], object], refusals: tuple[type[Exception], ...] = (ValueError, OSError),
                message: Callable[[Exception], str] = "error: {}".format,
                stopped: str = "stopped; run the same command again to continue") -> None:
    """Run a command. An error that the user can fix ends the process with a message and exit code 1.

    With `python -X dev` or PYTHONDEVMODE=1 in the environment, the traceback is shown instead of the message. If the
    reader of a pipe closes it, as `head` does, the process ends without a message.

    Args:
        main: the command. It can also be called from Python, because it raises its errors.
        refusals: types of the errors that the user can fix.
        message: makes the message of such an error.
        stopped: message after an interrupt by the keyboard.

    Raises:
        SystemExit: with the message.
    """
    replace_unprintable()
    try:
        main()
        print(end="", flush=True)  # Python would flush too late to catch an error
    except KeyboardInterrupt:
        raise SystemExit(stopped) from None
    except refusals as error:
        if isinstance(error, BrokenPipeError) and _is_closed():
            raise SystemExit(1) from None
        if sys.flags.dev_mode:
            raise
        raise SystemExit(printable_lines(message(error))) from error


def add_blur_faces(parser: argparse.ArgumentParser) -> None:
    """Add `--blur-faces` to a command that shows images of people."""
    parser.add_argument("--blur-faces", action="store_true", help="blur the heads in the images that this command "
                        f"shows; the model gets the images unchanged ({BLUR_FACES}=1 in the environment does the same)")


@contextlib.contextmanager
def faces_blurred(on: bool = True) -> Iterator[None]:
    """Blur the heads in images that are shown within the block, see `utils.images.for_display`.

    An environment variable is set, so that this also applies to threads and child processes.

    Args:
        on: False does not change the variable.
    """
    before = os.environ.get(BLUR_FACES)
    if on:
        os.environ[BLUR_FACES] = "1"
    try:
        yield
    finally:
        if on and before is None:
            os.environ.pop(BLUR_FACES, None)
        elif on and before is not None:
            os.environ[BLUR_FACES] = before


def blurs_faces() -> bool:
    """Return whether heads are blurred in images that are shown.

    Raises:
        ValueError: if the environment variable has another value than 0 or 1 (or yes, no, on, off, true, false).
    """
    value = os.environ.get(BLUR_FACES, "").strip().lower()
    if value not in ("", "0", "1", "false", "true", "no", "yes", "off", "on"):
        raise ValueError(f"{BLUR_FACES} is '{value}' in the environment, expected 1 to blur heads or 0")
    return value in ("1", "true", "yes", "on")


def _is_closed() -> bool:
    """Return whether standard output is a closed pipe; if so, redirect it to the null device for Python to close it."""
    try:
        print(flush=True)
    except BrokenPipeError:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
        return True
    return False


def replace_unprintable() -> None:
    """Print a question mark for characters that the encoding of the console lacks, instead of raising an error.

    Only for entry points of commands, because `sys.stdout` of the process is changed.
    """
    reconfigure = getattr(sys.stdout, "reconfigure", None)  # missing if it was replaced, as in notebooks
    if reconfigure and sys.stdout.errors in ("strict", "surrogateescape"):  # the latter in the C and POSIX locales
        reconfigure(errors="replace")


def printable(text: str) -> str:
    """Replace the control characters of a text, which a terminal would execute, by U+FFFD.

    Use it for text from outside, such as file names and values of tables.

    Examples:
        >>> printable("a\\x1b[2Jb") == "a\\N{REPLACEMENT CHARACTER}[2Jb"
        True
    """
    return "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in text)


def printable_lines(text: str) -> str:
    """Apply `printable` to each line of a text."""
    return "\n".join(map(printable, text.split("\n")))
