"""A VLM's language model as a Trainee: what is trained is a LoRA on its linear layers."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict, set_peft_model_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from srrl.errors import UserError

LANGUAGE_LINEARS = r".*language_model.*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)"
ADAPTER_FILE = "adapter_model.safetensors"


class LanguageLora:
    """What a VLM is besides, once it has a LoRA (srrl/models/trainee.py).

    adapted: whether it is with the network's LoRA, where there is one; of two VLMs that share a
    network one may go without.
    """

    network: PreTrainedModel
    adapted = True

    def add_lora(self, rank: int, alpha: float, seed: int) -> None:
        """A fresh LoRA, in float32, on the language model's linear layers; nothing else learns."""
        torch.manual_seed(seed)
        settings = LoraConfig(
            r=rank, lora_alpha=alpha, target_modules=LANGUAGE_LINEARS, init_lora_weights="gaussian"
        )
        self.network.add_adapter(settings)
        self.train_lora()

    def train_lora(self) -> None:
        """Train the LoRA, in float32."""
        for name, parameter in self.network.named_parameters():
            if "lora_" in name:
                parameter.requires_grad_(True)
                parameter.data = parameter.data.float()

    def put_lora(self, folder: Path) -> None:
        """A LoRA of peft's folder, which is not trained any further. Raises UserError."""
        try:
            found = self.network.load_adapter(str(folder))
        except (OSError, ValueError, KeyError, SafetensorError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:160]
            raise UserError(f"the VLM's LoRA in {folder} does not fit ({reason})") from error
        if found.missing_keys or found.unexpected_keys:
            name = sorted([*found.missing_keys, *found.unexpected_keys])[0]
            raise UserError(f"the VLM's LoRA in {folder} does not fit this model, as at {name}")
        self.train_lora()  # in float32, whatever the model is
        self.network.requires_grad_(False)

    @contextmanager
    def bare(self, really: bool = True) -> Iterator[None]:
        """Within, the network is without its LoRA, if it has one."""
        if not really or not getattr(self.network, "_hf_peft_config_loaded", False):
            yield
            return
        self.network.disable_adapters()
        try:
            yield
        finally:
            self.network.enable_adapters()

    def prepare(self, prompts: Iterable[str]) -> str:
        """Nothing is made ready: requests are read when they come."""
        return ""

    def trainable(self) -> Iterator[nn.Parameter]:
        return (p for p in self.network.parameters() if p.requires_grad)

    def weights(self) -> dict[str, Tensor]:
        return get_peft_model_state_dict(self.network, adapter_name="default")

    def save_weights(self, folder: Path, state: dict[str, Tensor]) -> None:
        """peft's folder, which `PeftModel.from_pretrained` and `load_adapter` read; exact."""
        self.network.save_pretrained(folder)

    def load_weights(self, folder: Path, exact: dict[str, Tensor] | None = None) -> None:
        try:
            state = exact or load_file(folder / ADAPTER_FILE)
            bare = {k.removeprefix("base_model.model."): v for k, v in state.items()}
            result = set_peft_model_state_dict(self.network, bare, adapter_name="default")
        except (OSError, SafetensorError, RuntimeError) as error:
            raise UserError(f"cannot read the VLM's LoRA in {folder}: {error}") from error
        if result.unexpected_keys or any("lora_" in k for k in result.missing_keys):
            raise UserError(f"the VLM's LoRA in {folder} does not fit this model and rank")
