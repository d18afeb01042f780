#!/usr/bin/env bash
# Run Python with what training and the tests need, which is set up first where it is not there:
#   bash scripts/python.sh -m mypy
#   bash scripts/python.sh -m pre_commit run --all-files
# Python's own help is scripts/python.sh -- --help.
source "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/env.sh"
[ "${1:-}" = -- ] && shift || show_help "${@:1:1}"
setup_python dev
exec "$PYTHON" "$@"
