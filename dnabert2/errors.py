"""What a user can mend, told in one line without a stack trace."""

import sys
from collections.abc import Callable


class UsageError(ValueError):
    """Wrong arguments or unusable input: the message says which, where, and what to do."""


def run_script(main: Callable[[], None]):
    """Runs a script's `main`; a UsageError ends it with one line on stderr and exit status 1."""
    try:
        main()
    except UsageError as error:
        sys.exit(f"error: {error}")
