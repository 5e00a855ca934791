"""Metric learning with several batch norms and multi-targeted adversarial examples, and the density of the space before and after."""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version

__version__ = version("mdprop")


@contextmanager
def needs_extra(extra: str) -> Iterator[None]:
    "Turn the `ImportError` of an optional package into one line that says which extra of mdprop installs it."
    try:
        yield
    except ImportError as error:
        raise ImportError(f"{(error.name or str(error)).partition('.')[0]} is not installed: pip install 'mdprop[{extra}]'") from error
