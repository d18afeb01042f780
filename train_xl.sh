#!/usr/bin/env bash
# Train SDXL by SRRL; without a GPU, the embedded tiny SDXL. Otherwise as train.sh.
source "$(dirname "${BASH_SOURCE[0]}")/scripts/env.sh"
setup_python
exec "$PYTHON" "$root/scripts/launch.py" sdxl tiny_xl "$@"
