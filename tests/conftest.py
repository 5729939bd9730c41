"""What holds for all tests."""

from hypothesis import settings

# A deadline would be a timed assertion: on a busy machine any example may be slow once.
settings.register_profile("velocity", deadline=None)
settings.load_profile("velocity")
