"""What a user can mend, told in one line without a stack trace."""

import re
import signal
import sys
import traceback
from argparse import SUPPRESS, ArgumentParser
from collections.abc import Callable
from contextlib import ExitStack


at_end = ExitStack()  # what a script has done when it ends, also by an error or a signal


class UsageError(ValueError):
    """Wrong arguments or unusable input: the message says which, where, and what to do."""


def without_tokens(text: str) -> str:
    """Without what looks like a token of the Hub, as where its flag was mistyped: messages end up in logs."""
    return re.sub(r"\bhf_[A-Za-z0-9]{16,}", "hf_...", text)


class Parser(ArgumentParser):
    """Of command lines that can hold a token."""

    def error(self, message: str):
        super().error(without_tokens(message))


def add_debug(parser: ArgumentParser):
    """The flag that `run_script` looks for; among the arguments only if it is given."""
    parser.add_argument(
        "--debug", action="store_true", default=SUPPRESS, help="end an error with its stack trace, not with one line"
    )


def run_script(main: Callable[[], None]):
    """
    Runs a script's `main`. A UsageError, and what the operating system refuses, as a file or a full disk, ends it with
    one line on stderr and exit status 1; with --debug they are raised.
    """
    at_sigterm = signal.getsignal(signal.SIGTERM)
    try:
        main()
    except BaseException as error:
        # Lets go of what its frames hold: at the exit Python waits for a loader's workers, which heed no SIGTERM.
        traceback.clear_frames(error.__traceback__)
        if not isinstance(error, UsageError | OSError) or "--debug" in sys.argv:
            raise
        sys.exit(f"error: {without_tokens(' '.join(str(error).split()))}")
    finally:
        at_end.close()
        signal.signal(signal.SIGTERM, at_sigterm)
