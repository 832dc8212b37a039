"""How far a long pass over an image is, in the log."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, field

log = logging.getLogger("daskreg")
SILENCE = 30.0  # seconds between two lines


@dataclass
class PassProgress:
    """Says every half a minute how much is done, of what takes longer than that, and when all is.

    what: is being done;  total: of the numbers that ``add`` is given
    """

    what: str
    total: int
    done: int = 0
    _begun: float = field(default_factory=time.perf_counter)
    _said: float = field(default_factory=time.perf_counter)

    def add(self, number: int) -> None:
        """So much more is done."""
        self.done += number
        now = time.perf_counter()
        if now - (self._begun if self.done >= self.total else self._said) > SILENCE:
            self._said = now
            log.info("%s: %.0f %%", self.what, 100 * self.done / max(self.total, 1))
