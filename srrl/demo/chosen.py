"""Which painter a checkpoint or a preset is for."""

from collections.abc import Sequence
from pathlib import Path

from ml_collections import ConfigDict

from srrl.config import load_config, saved_values
from srrl.demo.answers import Painter
from srrl.demo.rounds import Rounds
from srrl.demo.strips import Strips, config_of
from srrl.errors import UserError
from srrl.methods import METHODS
from srrl.models.locate import locate
from srrl.prompts import check_files
from srrl.run.checkpoint import chosen_model


def painter_of(
    checkpoint: Path | None,
    preset: str | None,
    overrides: Sequence[str],
    most_rounds: int,
    scored: bool,
) -> Painter:
    """The painter of a run or checkpoint, of a LoRA's file beside a preset of its model, or of a
    preset, with --config.KEY=VALUE over it. Raises UserError."""
    config = rig_config(checkpoint, preset, overrides)
    if config:
        return Strips(config, most_rounds)
    config, weights = chosen_model(checkpoint, preset, overrides)
    if overrides and weights and weights.is_dir():
        raise UserError(f"{overrides[0]}: only beside --config; a run has its own config")
    check_files(config)
    return Rounds(config, weights, most_rounds, scored)


def rig_config(
    checkpoint: Path | None, preset: str | None, overrides: Sequence[str]
) -> ConfigDict | None:
    """The config where RL-RIG is to draw, None where SRRL is."""
    if checkpoint:
        found = locate(checkpoint, f"--checkpoint {checkpoint}")
        if not found.checkpoint or saved_values(found.config).get("method") != "rig":
            return None
        if overrides:
            raise UserError(f"{overrides[0]}: only beside --config; a run has its own config")
        return config_of(found, f"--checkpoint {checkpoint}")
    config = load_config([f"--config={preset}", *overrides], methods=[*METHODS])
    return config if config.method == "rig" else None
