"""What tasks hold of the resources of their client, and the devices that stand for its units."""

from __future__ import annotations

import contextlib
import contextvars
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rustdask import _core

Grants = Sequence[tuple[str, float, Sequence[tuple[int, float]]]]
"""Of each resource: name, amount, and which units, counted from 0, with how much of each."""

Devices = Mapping[str, Sequence[str]]
"""Of resources whose units are devices: their names."""

_VISIBLE = "CUDA_VISIBLE_DEVICES"
_held: contextvars.ContextVar[dict[str, Any] | None] = contextvars.ContextVar("rustdask_held", default=None)
_visible: contextvars.ContextVar[_VisibleDevices | None] = contextvars.ContextVar("rustdask_visible", default=None)


def amounts_and_devices(resources: Mapping[str, Any] | None) -> tuple[dict[str, float], dict[str, list[str]]]:
    """Read what a client is given as its resources.

    Parameters
    ----------
    resources : dict of str to float or sequence of str
        An amount, or the names of the devices.

    Returns
    -------
    amounts : dict of str to float
    devices : dict of str to list of str
        Of ``"GPU"`` given as an amount, the devices that are visible to this process.
    """
    amounts: dict[str, float] = {}
    devices: dict[str, list[str]] = {}
    for name, value in (resources or {}).items():
        if isinstance(value, (list, tuple)):
            devices[name] = [str(device) for device in value]
            amounts[name] = len(value)
        elif isinstance(value, (int, float)):
            amounts[name] = value
            visible = [device for device in os.environ.get(_VISIBLE, "").split(",") if device]
            if name == "GPU":
                devices[name] = visible or [str(unit) for unit in range(int(value))]
        else:
            raise TypeError(f"a resource is given as an amount or as a list of devices, got {name}={value!r}")
    return amounts, devices


@contextlib.contextmanager
def holding(grants: Grants, devices: Devices) -> Iterator[None]:
    """Have the task that this process runs know what it holds; the environment names the GPUs that it may use."""
    held = {name: _named(name, amount, units, devices) for name, amount, units in grants}
    token = _held.set(held)
    gpus = held.get("GPU")
    _visible.set(_VisibleDevices(gpus) if isinstance(gpus, list) else None)
    show_devices()
    try:
        yield
    finally:
        hide_devices()
        _held.reset(token)


def show_devices() -> None:
    """Have the environment name the GPUs of the current task, which begins or has waited for others."""
    if (visible := _visible.get()) is not None:
        visible.show()


def hide_devices() -> None:
    """Have the environment be what it was before `show_devices`."""
    if (visible := _visible.get()) is not None:
        visible.hide()


class _VisibleDevices:
    def __init__(self, gpus: list[str]) -> None:
        self._gpus = ",".join(gpus)
        self._before: str | None = None

    def show(self) -> None:
        self._before = os.environ.get(_VISIBLE)
        os.environ[_VISIBLE] = self._gpus

    def hide(self) -> None:
        if self._before is None:
            os.environ.pop(_VISIBLE, None)
        else:
            os.environ[_VISIBLE] = self._before


def held_resources() -> dict[str, Any]:
    """Return what the current task holds of the resources that it was submitted with.

    Returns
    -------
    dict
        By name of the resource: a list of the names of the devices that the task holds, wholly or in part; or the
        amount, where its units have no names. A GPU's name is what ``CUDA_VISIBLE_DEVICES`` calls it; in worker
        processes, that variable is set to the ones that the task holds.

    Examples
    --------
    >>> from rustdask import Client, held_resources
    >>> with Client(n_workers=1, processes=False, resources={"GPU": ["0", "1"], "licence": 3}) as client:
    ...     client.submit(held_resources, resources={"GPU": 1, "licence": 2}).result()
    {'GPU': ['0'], 'licence': 2.0}
    """
    held = _held.get()
    if held is None:
        session = _core.current_session()
        if session is None:
            return {}
        from rustdask._client import client_of

        devices = client_of(session).devices
        return {name: _named(name, amount, units, devices) for name, amount, units in _core.current_grants()}
    return dict(held)


def _named(name: str, amount: float, units: Sequence[tuple[int, float]], devices: Devices) -> Any:
    names = devices.get(name)
    if names is None or any(unit >= len(names) for unit, _ in units):
        return amount
    return [names[unit] for unit, _ in units]
