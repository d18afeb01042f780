"""Which painter a checkpoint or a preset is for."""

from collections.abc import Sequence
from pathlib import Path

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
    named = f"--checkpoint {checkpoint}"
    found = locate(checkpoint, named) if checkpoint else None
    if found and found.checkpoint and found.config:
        if overrides:
            raise UserError(f"{overrides[0]}: only beside --config; a run has its own config")
        if (saved_values(found.config) or {}).get("method") == "rig":
            return Strips(config_of(found, named), most_rounds)
    elif not checkpoint:
        config = load_config([f"--config={preset}", *overrides], methods=[*METHODS])
        if config.method == "rig":
            return Strips(config, most_rounds)
    config, weights = chosen_model(checkpoint, preset, overrides)
    check_files(config)
    return Rounds(config, weights, most_rounds, scored)
