"""The scheduler function that Dask's collections run on. It does not import dask before it is called."""

from __future__ import annotations

from typing import Any

__all__ = ["get"]


def get(dsk: Any, keys: Any, **kwargs: Any) -> Any:
    """Compute keys of a Dask graph: a scheduler for Dask's arrays, dataframes, bags and delayed functions.

    It runs on the current client, or, if there is none, on threads of this process, as many as there are cores.

    Parameters
    ----------
    dsk : mapping or dask expression
        From keys to tasks, in any form that Dask has for them.
    keys : key or list of keys
        What to compute; lists may be nested.
    **kwargs
        What else Dask's schedulers take. Without a current client, ``num_workers`` says how many threads there are;
        ``callbacks``, and those active in Dask, hear of the tasks; ``cache`` has results that are there already.

    Returns
    -------
    object
        The result; for a list of keys, a tuple of results.

    Raises
    ------
    KeyError
        If a key that is asked for is not in the graph.
    ValueError
        If a task depends on a key that is not in the graph.
    RuntimeError
        If tasks depend on each other in a circle.
    Exception
        What a task has raised.

    Examples
    --------
    >>> import dask.array as da
    >>> import rustdask
    >>> da.ones((1000, 1000), chunks=100).sum().compute(scheduler=rustdask.get)
    np.float64(1000000.0)
    """
    from rustdask import _dask

    return _dask.get(dsk, keys, **kwargs)
