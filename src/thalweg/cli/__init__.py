"""The command line: one file a verb. Each parses, calls the library and prints; no logic lives here."""

from __future__ import annotations

import os
import signal
import sys
import time

# The budget of `thalweg train` counts from here: what a user waits for is what a user has spent.
STARTED = time.monotonic()

# OpenMP threads that wait by spinning for long bring training to a standstill (a tenth of the speed, measured) as
# soon as anything else runs on one of their cores. This spin is long enough for the gap between two kernels and short
# enough to give the core away then. Read when torch loads; what the user has set stays.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "2000")


def main() -> None:
    """Run the command line; user errors end in two lines and status 2, never a traceback."""
    from thalweg.cli.app import app
    from thalweg.errors import UserError

    try:
        app()
    except UserError as error:
        where = f" [{error.where}]" if error.where else ""
        print(f"error: {error.what}{where}", file=sys.stderr)
        if error.fix:
            print(f"  try: {error.fix}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)
    except BrokenPipeError:
        # The reader (`| head`) has gone; there is nobody left to tell.
        sys.stderr.close()
        sys.exit(128 + signal.SIGPIPE)
    finally:
        # CPython remembers a Ctrl-C that broke into `exec` of a text (a dataclass is made like that), and would end the
        # process by the signal though the interruption was dealt with. The next `exec` makes it forget.
        exec("")
