"""``python -m daskreg``."""

from daskreg.cli import main

if __name__ == "__main__":
    main()
