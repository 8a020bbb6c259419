"""The catalogue of runnable methods: ``names("select.*")``, ``get(name)``, ``create(name, **parameters)``."""

from tunesmith.core.registry import create, get, names

__all__ = ["create", "get", "names"]
