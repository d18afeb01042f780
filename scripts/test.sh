#!/usr/bin/env bash
# Set up what the tests need and run them all: ruff, then pytest with the given arguments.
#   bash scripts/test.sh                    everything
#   bash scripts/test.sh -m "not slow"      the fast ones
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
setup_python dev
cd "$root" || exit 2
"$PYTHON" -m ruff check . && "$PYTHON" -m ruff format --check . &&
    exec "$PYTHON" -m pytest "$@"
