"""``python -m daskreg.cli``."""

from daskreg.cli import main

if __name__ == "__main__":
    main()
