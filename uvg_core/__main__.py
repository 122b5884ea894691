"""``python -m uvg_core``, and the command ``uni-vigu``."""

import os
import signal
import sys


def main() -> int:
    """Run the command line; returns the exit code."""
    # Closed: print() would write notes among the results, and the next file to be opened would get its number, and with
    # it what libraries log.
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    # Nothing is under way while torch is imported: Ctrl-C may end that at once, and without a word.
    before = signal.signal(signal.SIGINT, signal.SIG_DFL)
    from .cli.main import main as run
    from .cli.output import CANCELLED

    signal.signal(signal.SIGINT, before)
    code = run()
    if code == CANCELLED:  # what there is to clean up is done; taking torch down takes seconds
        for stream in filter(None, (sys.stdout, sys.stderr)):
            stream.flush()
        os._exit(code)
    return code


if __name__ == "__main__":
    sys.exit(main())
