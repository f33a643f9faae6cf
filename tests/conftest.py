"""Profiles: `HYPOTHESIS_PROFILE=ci` (the default) and `long`."""

import os
import tempfile

from hypothesis import HealthCheck, settings

_QUIET = [HealthCheck.too_slow, HealthCheck.data_too_large]
settings.register_profile("ci", deadline=None, max_examples=60, derandomize=True, suppress_health_check=_QUIET)
settings.register_profile("long", deadline=None, max_examples=2000, suppress_health_check=_QUIET)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))
os.environ["AUTOSPLIT_CACHE"] = tempfile.mkdtemp(prefix="autosplit-tests-")  # not what the user measured
