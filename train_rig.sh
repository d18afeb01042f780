#!/usr/bin/env bash
# Train RL-RIG (generate, reflect, edit): its actor, then its editor; without a GPU, in the embedded
# world. Sets up Python first.
#   bash train_rig.sh                                    SD v1.4, InstructPix2Pix, Qwen2.5-VL-7B
#   bash train_rig.sh --config.phase.actor.stages=20     one value of config/rig.py
#   bash train_rig.sh --config config/rig.py:sdxl        another preset
#   bash train_rig.sh -- --num_processes 2               accelerate's flags come after --
# Presets: sd14, sdxl, tiny. The phases' runs are written to runs/NAME/actor and runs/NAME/editor; the
# same command resumes a run that was stopped. Every key and what it means: config/rig.py. Exit codes:
# 0 done; 2 an error, which the last line names; 130 stopped by Ctrl-C, 143 by SIGTERM, 129 by a closed
# terminal.
source "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/scripts/env.sh"
show_help "$@"
setup_python
SRRL_COMMAND="bash train_rig.sh" exec "$PYTHON" "$root/scripts/launch.py" config/rig.py:sd14 tiny "$@"
