"""``python -m daskreg.cli``."""

from daskreg.__main__ import main

if __name__ == "__main__":
    main()
