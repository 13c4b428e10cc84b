"""Empty modules for what trainers import and their loaders never use: clouds, images, queues."""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import sys
from types import ModuleType
from typing import Any, ClassVar
from unittest.mock import MagicMock


class _Empty(ModuleType):
    """Any name of it is a mock; a loader that did use one would hand mocks on, which is seen."""

    __path__: ClassVar[list[str]] = []  # type: ignore[misc]

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        made = (
            type(name, (Exception,), {})
            if name.endswith(("Error", "Exception"))
            else MagicMock(name=name)
        )
        setattr(self, name, made)
        return made


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def __init__(self, names: tuple[str, ...]) -> None:
        self.names = names

    def find_spec(self, name: str, path: Any, target: Any = None) -> Any:  # noqa: ARG002 - as called
        if any(name == stood or name.startswith(f"{stood}.") for stood in self.names):
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
        return None

    def create_module(self, spec: Any) -> ModuleType:
        return _Empty(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        module.__version__ = "0"  # type: ignore[attr-defined]


def stand_in(*names: str) -> None:
    """Importing one of *names*, or below it, gives an empty module, even where it is installed."""
    sys.meta_path.insert(0, _Finder(names))
