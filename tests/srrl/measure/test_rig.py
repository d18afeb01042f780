"""What RL-RIG's plan reads of a VLM."""

import pytest
import torch

from srrl.errors import UserError
from srrl.measure.rig import vlm_part


def test_a_vlm_that_cannot_be_read_is_one_line(tmp_path):
    with pytest.raises(
        UserError, match=r"the VLM 'nobody/nothing': not known here: known are Qwen"
    ):
        vlm_part("nobody/nothing", torch.float32)
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(UserError, match=r"the VLM '.*' is none that is read here \(.*BertConfig"):
        vlm_part(str(tmp_path), torch.float32)
