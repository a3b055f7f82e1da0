#!/bin/sh
# Every static check of the project; all of them run, and the exit status says whether one failed.
set -u
failed=0
check() {
    printf '%s\n' "$*"
    "$@" || failed=1
}
check .venv/bin/ruff format --check --quiet .
check .venv/bin/ruff check --quiet .
check .venv/bin/mypy --no-error-summary
check .venv/bin/lint-imports
check .venv/bin/yamllint --strict .
if [ -d ansible ]; then check sh -c 'cd ansible && ../.venv/bin/ansible-lint --offline -q'; fi
exit $failed
