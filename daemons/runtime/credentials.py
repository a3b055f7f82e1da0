"""Secrets handed over by systemd's ``LoadCredential=``, or lying beside the configuration."""

import os
from pathlib import Path

from pydantic import SecretStr

from daemons.runtime.errors import EXIT_CONFIG, Fatal, describe_os_error


class Credentials:
    """Reads named secrets from ``$CREDENTIALS_DIRECTORY``, else from ``credentials/`` in `config_dir`."""

    def __init__(self, config_dir: Path) -> None:
        handed_over = os.environ.get("CREDENTIALS_DIRECTORY")
        self.directory = Path(handed_over) if handed_over else config_dir / "credentials"

    def get(self, name: str) -> SecretStr | None:
        """The secret `name` without its final newline; None when the file is absent or empty.

        Raises:
            Fatal: the file is there but cannot be read.
        """
        path = self.directory / name
        try:
            value = path.read_text(encoding="utf-8").strip()
        except FileNotFoundError:
            return None
        except UnicodeDecodeError:
            raise Fatal(f"the credential {path} is not text in UTF-8", EXIT_CONFIG) from None
        except OSError as error:
            raise Fatal(describe_os_error(error, "read the credential"), EXIT_CONFIG) from None
        return SecretStr(value) if value else None

    def require(self, name: str) -> SecretStr:
        """Like `get`, but an absent or empty secret is `Fatal`."""
        value = self.get(name)
        if value is None:
            raise Fatal(f"the credential {self.directory / name} is missing or empty", EXIT_CONFIG)
        return value
