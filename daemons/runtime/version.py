"""The version of this release."""

from importlib.metadata import PackageNotFoundError, version


def _version() -> str:
    try:
        return version("llm-inference-stack")
    except PackageNotFoundError:
        return "0+unknown"


VERSION = _version()
