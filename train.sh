#!/usr/bin/env bash
# Train Stable Diffusion v1.4 by SRRL; without a GPU, the embedded tiny model.
#   bash train.sh                                             the whole job
#   bash train.sh --config config/stage_process.py:sd14       a preset
#   bash train.sh --config.reflect.rounds=3                   one value
# The same command resumes a run that was stopped.
source "$(dirname "${BASH_SOURCE[0]}")/scripts/env.sh"
setup_python
exec "$PYTHON" "$root/scripts/launch.py" sd14 tiny "$@"
