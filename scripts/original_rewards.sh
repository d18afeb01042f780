#!/usr/bin/env bash
# Make the environment of the original reward packages, image-reward and t2v-metrics, which cannot
# live beside current transformers:
#   bash scripts/original_rewards.sh DIR
# then train with --config.reward.backend=original --config.reward.worker.python=DIR/bin/python.
set -eu
source "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/env.sh"
show_help "$@"
[ $# -eq 1 ] || { echo "error: give the folder to make: bash scripts/original_rewards.sh DIR" >&2; exit 2; }
base=$(command -v python3.11 || command -v python3 || command -v python) || {
    echo "error: no python found: install Python 3.11" >&2; exit 2; }
[ -x "$1/bin/python" ] || "$base" -m venv "$1"
torch=$(sed -n 's/^\(torch==.*\)$/\1/p' "$root/requirements-rewards.txt")
# Every version is in the file; pip's resolver would refuse the set for what the packages claim.
"$1/bin/python" -m pip install --quiet --no-cache-dir "$torch"
"$1/bin/python" -m pip install --quiet --no-cache-dir "setuptools<81" wheel
"$1/bin/python" -m pip install --quiet --no-cache-dir --no-deps --no-build-isolation \
    -r "$root/requirements-rewards.txt"
cd "$root" && "$1/bin/python" -c 'import rewards.originals as o; o.import_packages()'
echo "made $1"
