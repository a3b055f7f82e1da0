"""pip's settings, handed to uv, which does not read them.

Whoever has pip set up for a mirror, a wheel folder or a company's certificate has done so once; that must be
enough. uv installs the same locks in a tenth of pip's time.
"""

import ast
from collections.abc import Mapping

_SECTIONS = ("global", "install", ":env:")
"""Sections of `pip config list` that hold for an install, the stronger ones later."""

_NAMES = {
    "index-url": "UV_DEFAULT_INDEX",
    "extra-index-url": "UV_EXTRA_INDEX_URL",
    "find-links": "UV_FIND_LINKS",
    "trusted-host": "UV_INSECURE_HOST",
    "cert": "SSL_CERT_FILE",
    "client-cert": "SSL_CLIENT_CERT",
    "proxy": "ALL_PROXY",
}
_SEPARATORS = {"find-links": ","}


def to_uv(listing: str) -> dict[str, str]:
    """The environment variables for uv that say what `pip config list` printed.

    Lines that are no setting, and settings that concern no install, are passed over.
    """
    found: dict[str, dict[str, str]] = {section: {} for section in _SECTIONS}
    for line in listing.splitlines():
        key, _, quoted = line.partition("=")
        section, _, name = key.rpartition(".")
        if section in found and name in _NAMES:
            found[section][name] = _unquote(quoted)
    merged = {name: value for section in _SECTIONS for name, value in found[section].items()}
    return {_NAMES[name]: _SEPARATORS.get(name, " ").join(value.split()) for name, value in merged.items()}


def _unquote(text: str) -> str:
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
    return str(value)


def with_extra_index(environment: Mapping[str, str], index: str) -> dict[str, str]:
    """`environment` in which uv asks `index` as well."""
    extra = f"{environment.get('UV_EXTRA_INDEX_URL', '')} {index}".strip()
    return {**environment, "UV_EXTRA_INDEX_URL": extra}
