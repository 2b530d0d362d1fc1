"""Where files of the package's own making go when nobody says where."""

from __future__ import annotations

import os
from pathlib import Path

DATA_HOME_VARIABLE = "SKLEARN_APE_DATA"


def default_home() -> Path:
    """Return the folder that the environment names, or the user's cache folder for the package."""
    chosen = os.environ.get(DATA_HOME_VARIABLE)
    if not chosen:
        from platformdirs import user_cache_path

        chosen = str(user_cache_path("sklearn_ape"))
    return Path(chosen).expanduser().absolute()
