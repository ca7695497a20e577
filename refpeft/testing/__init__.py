"""What test suites of ports can use: hypothesis strategies over models, adapters, inputs and whole questions."""

from refpeft.testing.strategies import adapters, cases, inputs, models

__all__ = ["adapters", "cases", "inputs", "models"]
