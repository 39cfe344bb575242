"""What holds for every test."""

from __future__ import annotations

from hypothesis import settings

# How long one example takes says more about what else the machine does than about the code.
settings.register_profile("clipserve", deadline=None)
settings.register_profile("fuzz", deadline=None, max_examples=1500)  # make fuzz
settings.load_profile("clipserve")
