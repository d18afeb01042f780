# Sourced by the commands: `setup_python [EXTRAS]` leaves in $PYTHON an interpreter that can import
# everything. That is the active environment if it has what is needed, otherwise .venv, made from
# pyproject.toml with its extras EXTRAS ("dev"); requirements.lock has what its pins leave open.
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

# show_help ARGUMENTS: with --help or -h among them, print the calling script's head and end.
show_help() {
    local argument
    for argument in "$@"; do
        [ "$argument" = -- ] && return
        case $argument in -h | --help)
            sed -n '2,/^[^#]/s/^# \{0,1\}//p' "${BASH_SOURCE[1]}"
            exit 0 ;;
        esac
    done
}

# complete PYTHON EXTRAS: does it have the listed packages, those that matter in their versions?
complete() {
    "$1" - "$root/pyproject.toml" "$2" <<'PY' 2>/dev/null
import sys, tomllib
from importlib.metadata import version
project = tomllib.load(open(sys.argv[1], "rb"))["project"]
wanted = list(project["dependencies"])
for extra in filter(None, sys.argv[2].split(",")):
    wanted += project["optional-dependencies"][extra]
for requirement in wanted:
    name, _, pinned = requirement.partition("==")
    found = version(name).split("+")[0]
    if pinned and name in ("torch", "diffusers", "transformers", "peft") and found != pinned:
        sys.exit(1)
PY
}

# make_venv EXTRAS
make_venv() {
    local base torch
    base=$(command -v python3.11 || command -v python3 || command -v python) || {
        echo "error: no python found: install Python 3.11" >&2; exit 2; }
    "$base" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
        echo "error: $base is $("$base" -V): Python 3.11 or newer is needed" >&2; exit 2; }
    echo "setting up $root/.venv (once, a few minutes)"
    [ -x "$root/.venv/bin/python" ] || "$base" -m venv "$root/.venv" || exit 2
    # torch first and by its exact version, so that no other package chooses a build of it
    torch=$(sed -n 's/^ *"\(torch==[^"]*\)".*/\1/p' "$root/pyproject.toml")
    "$root/.venv/bin/python" -m pip install --quiet --no-cache-dir "$torch" &&
        "$root/.venv/bin/python" -m pip install --quiet --no-cache-dir -c "$root/requirements.lock" \
            -e "$root${1:+[$1]}" || {
        echo "error: installing into $root/.venv failed: see pip's message above" >&2; exit 2; }
}

setup_python() {
    local extras=${1:-}
    PYTHON=$(command -v python || command -v python3 || true)
    if [ -z "$PYTHON" ] || ! complete "$PYTHON" "$extras"; then
        PYTHON=$root/.venv/bin/python
        { [ -x "$PYTHON" ] && complete "$PYTHON" "$extras"; } || make_venv "$extras"
    fi
    export PYTHON PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"
}
