"""SRRL: self-reflective reinforcement learning for diffusion models (arXiv 2505.22407)."""

import os
import warnings

# Loading a pipeline logs advice about image processors and renamed arguments that no user of
# this package can act on.
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
warnings.filterwarnings("ignore", message=".*torch_dtype.*deprecated", category=FutureWarning)
warnings.filterwarnings("ignore", message=".*local_dir_use_symlinks", category=UserWarning)
