"""Settings that all tests share."""

from hypothesis import settings

settings.register_profile("daskreg", deadline=None)  # a test must not depend on the speed of the machine
settings.load_profile("daskreg")
