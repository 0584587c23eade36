"""Calls back when a module has been imported, whoever imports it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any


def when_imported(name: str, callback: Callable[[], None]) -> None:
    """Call back now if a module is imported already, else as soon as it is."""
    if name in sys.modules:
        callback()
    elif not any(isinstance(hook, _ImportHook) and hook.serves(name, callback) for hook in sys.meta_path):
        sys.meta_path.insert(0, _ImportHook(name, callback))


class _ImportHook:
    """Calls back once a module has been imported."""

    def __init__(self, name: str, callback: Callable[[], None]) -> None:
        self.name = name
        self.callback = callback

    def serves(self, name: str, callback: Callable[[], None]) -> bool:
        return self.name == name and self.callback == callback

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> Any:
        if fullname != self.name:
            return None
        sys.meta_path.remove(self)
        import importlib.util

        spec = importlib.util.find_spec(fullname)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def exec_module(module: Any) -> None:
                execute(module)
                self.callback()

            spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec
