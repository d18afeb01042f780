#!/usr/bin/env bash
# Set up what the tests need and run them all: ruff, mypy unless a file or a folder is named, then
# pytest with the given arguments, on a few processes of one thread each (which on small networks do
# more than one process of many).
#   bash scripts/test.sh                    everything
#   bash scripts/test.sh -m "not slow"      the fast ones
#   bash scripts/test.sh -m attack          the whole of what "everything" has a slice of: kills,
#                                           damage, signals, faults and full disks, for hours
#   bash scripts/test.sh -n 0 -s FILE       in this process, with what the tests print
source "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/env.sh"
show_help "$@"
setup_python dev
cd "$root" || exit 2
cores=$(nproc)
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
types=("$PYTHON" -m mypy)
for argument in "$@"; do
    [ -e "${argument%%::*}" ] && types=(true)
done
"$PYTHON" -m ruff check . && "$PYTHON" -m ruff format --check . && "${types[@]}" &&
    exec "$PYTHON" -m pytest -n "$((cores < 4 ? cores : 4))" --dist loadfile --no-loadscope-reorder "$@"
