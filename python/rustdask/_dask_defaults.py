"""What suits worker processes better than Dask's own defaults."""

from __future__ import annotations

import functools

from dask import config


@functools.cache
def set_defaults() -> None:
    """Have Dask shuffle in tasks, unless its configuration says how.

    Otherwise tasks append to files, and wait for the disk each time, since workers might be on several machines.
    """
    config.update_defaults({"dataframe": {"shuffle": {"method": "tasks"}}})
