"""``python -m daemons.gateway.policy`` prints ``docs/policy.md``."""

import sys

from daemons.gateway.policy.table import as_markdown

sys.stdout.write(as_markdown())
