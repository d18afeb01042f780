"""The folder that has config/ and scripts/: the checkout, or this one in an installed package.

Either way they can be imported from here: `python -m srrl.repository.scripts.plan`.
"""

from pathlib import Path

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE if (HERE / "config").is_dir() else HERE.parents[1]
__path__ = [str(REPOSITORY)]
