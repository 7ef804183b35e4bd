"""What every command does around its work: print to consoles of any encoding, and end with a message."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Callable, Iterator

BLUR_FACES = "CERBERUS_BLUR_FACES"  # in the environment: 1 blurs heads wherever images are written to be looked at


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


def add_blur_faces(parser: argparse.ArgumentParser) -> None:
    """Add `--blur-faces` to a command that writes images of people to be looked at."""
    parser.add_argument("--blur-faces", action="store_true", help="blur the heads in the images that this command "
                        f"shows; the model gets the images unchanged ({BLUR_FACES}=1 in the environment does the same)")


@contextlib.contextmanager
def faces_blurred(on: bool = True) -> Iterator[None]:
    """Blur heads in images that are shown within the block, see `utils.images.for_display`.

    The switch is a variable of the environment, so that threads and child processes have it as well.

    Args:
        on: False leaves the switch as it is.
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
    """Whether images that are shown get blurred heads."""
    value = os.environ.get(BLUR_FACES, "").strip().lower()
    if value not in ("", "0", "1", "false", "true", "no", "yes", "off", "on"):
        raise ValueError(f"{BLUR_FACES} is '{value}' in the environment, expected 1 to blur heads or 0")
    return value in ("1", "true", "yes", "on")


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
