"""``daskreg precompile``: what it refuses."""

import pytest

from daskreg import precompile
from daskreg.errors import ConfigError


@pytest.mark.parametrize("given", [[], ["sm_"], ["h100"]])
def test_architectures_that_are_none_are_refused(given):
    with pytest.raises(ConfigError, match="sm_90"):
        precompile(given)
