"""The command ``daskreg``, and ``python -m daskreg``."""

import os
import signal
from typing import Any

INTERRUPTED = 130  # exit code


def main() -> None:
    """Run a command. Ctrl-C is handled before anything else is imported."""
    os.environ.setdefault("NUMBA_CUDA_LOW_OCCUPANCY_WARNINGS", "0")  # of small launches: of no use to whoever registers images
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _stop)
    from daskreg.cli import main as run

    run()


def _stop(*_: Any) -> None:
    """End the process: nothing has been started yet."""
    os.write(2, b"daskreg: stopped; nothing was written.\n")
    os._exit(INTERRUPTED)


if __name__ == "__main__":
    main()
