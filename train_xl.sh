#!/usr/bin/env bash
# Train SDXL by SRRL; without a GPU, the embedded tiny SDXL. Otherwise as train.sh:
#   bash train_xl.sh                                          the whole job
#   bash train_xl.sh --config.reflect.rounds=3                one value
# Every key and what it means: config/stage_process.py. Exit codes: 0 done; 2 an error, which the last
# line names; 130 stopped by Ctrl-C, 143 by SIGTERM, 129 by a closed terminal.
source "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/scripts/env.sh"
show_help "$@"
setup_python
SRRL_COMMAND="bash train_xl.sh" exec "$PYTHON" "$root/scripts/launch.py" config/stage_process.py:sdxl tiny_xl "$@"
