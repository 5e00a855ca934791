"""Metric learning with several batch norms and multi-targeted adversarial examples, and the density of the space before and after."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, requires, version

from packaging.requirements import Requirement

__version__ = version("mdprop")


def _check_versions(requirements: Iterable[str]) -> None:
    "Raise `ImportError` for an installed package of a version that mdprop does not work with. A missing one shows where it is imported."
    for requirement in map(Requirement, requirements):
        if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
            continue  # of an extra, or for another Python
        try:
            found = version(requirement.name)
        except PackageNotFoundError:
            continue
        if not requirement.specifier.contains(found, prereleases=True):
            wanted = f"{requirement.name}{requirement.specifier}"
            raise ImportError(f"mdprop {__version__} needs {wanted}, but {requirement.name} {found} is installed: pip install '{wanted}'")


_check_versions(requires("mdprop") or ())


@contextmanager
def needs_extra(extra: str) -> Iterator[None]:
    "Turn the `ImportError` of an optional package into one line that says which extra of mdprop installs it."
    try:
        yield
    except ImportError as error:
        raise ImportError(f"{(error.name or str(error)).partition('.')[0]} is not installed: pip install 'mdprop[{extra}]'") from error
