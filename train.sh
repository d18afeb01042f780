#!/usr/bin/env bash
# Train Stable Diffusion v1.4 by SRRL; without a GPU, the embedded tiny model. Sets up Python first.
#   bash train.sh                                             the whole job
#   bash train.sh --config.reflect.rounds=3                   one value of config/stage_process.py
#   bash train.sh --config config/stage_process.py:tiny+ddpo  presets, one over the other
#   bash train.sh --resume runs/NAME --config.stages.total=64 a run goes on as it was begun
#   bash train.sh -- --num_processes 2                        accelerate's flags come after --
# Presets that choose a model: sd14, sdxl, tiny, tiny_xl. Over a model: ddpo, b2diffurl, selective,
# srrl_paper, released. A run is written to runs/NAME; the same command resumes a run that was stopped.
# Every key and what it means: config/stage_process.py. Exit codes: 0 done; 2 an error, which the last
# line names; 130 stopped by Ctrl-C, 143 by SIGTERM, 129 by a closed terminal.
source "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/scripts/env.sh"
show_help "$@"
setup_python
SRRL_COMMAND="bash train.sh" exec "$PYTHON" "$root/scripts/launch.py" config/stage_process.py:sd14 tiny "$@"
