"""A warm start: the fresh LoRA takes over the effect of one that is trained already."""

from pathlib import Path

from diffusers import DiffusionPipeline
from diffusers.utils import convert_unet_state_dict_to_peft
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from srrl.errors import UserError
from srrl.models.locate import locate
from srrl.models.weights import UNET_FILE

GUEST = "start"  # the adapter's name while it is read


def lora_file(given: str) -> Path:
    """The file of a LoRA given as one, or as a folder: a run's, a checkpoint's or any other's.

    Raises UserError if there is none, or it cannot be read.
    """
    named = f"config.pretrained.lora={given!r}"
    path = locate(given, named).file
    if path.name == Path(UNET_FILE).name:
        raise UserError(f"{named}: holds a whole UNet, not a LoRA: give a run with use_lora")
    try:
        with safe_open(path, "pt"):
            return path
    except SafetensorError as error:
        raise UserError(
            f"{named}: {path.name} cannot be read ({error}): give a whole .safetensors file"
        ) from error


def start_from(pipe: DiffusionPipeline, given: str) -> None:
    """Give the fresh LoRA the effect of another one, in any format that diffusers reads.

    Where the other has a lower rank, or lacks modules, the rest stays as it was: without effect.
    Raises UserError, naming the remedy, for one that does not fit; nothing has changed then.
    """
    path, where = lora_file(given), f"config.pretrained.lora={given!r}"
    unet = pipe.unet
    try:
        state = read_beside(pipe, path, where)
        guests = [(n, m) for n, m in unet.named_modules() if GUEST in getattr(m, "lora_A", ())]
        for name, module in guests:
            if "default" not in module.lora_A:
                raise UserError(f"{where}: has {name}: add it to config.lora.target_modules")
            if module.r[GUEST] > module.r["default"]:
                raise UserError(
                    f"{where}: is of rank {module.r[GUEST]}: raise config.lora.rank to it"
                )
        for name, module in guests:
            take_over(module, state[f"{name}.lora_A.weight"], state[f"{name}.lora_B.weight"])
    finally:
        if GUEST in unet.peft_config:
            unet.delete_adapters(GUEST)
        unet.set_adapter("default")
        for name, parameter in unet.named_parameters():
            parameter.requires_grad_("lora_" in name)


def read_beside(pipe: DiffusionPipeline, path: Path, where: str) -> dict[str, Tensor]:
    """Read a LoRA into an adapter beside the one that is trained, which tells its ranks and
    scalings; returns its weights in the precision of the file, under peft's names."""
    try:
        state, alphas, metadata = pipe.lora_state_dict(
            path, return_lora_metadata=True, unet_config=pipe.unet.config
        )
        elsewhere = [k for k in state if not k.startswith("unet.")]
        if elsewhere:
            raise UserError(
                f"{where}: holds weights of more than the UNet, as {elsewhere[0]!r}: only the "
                f"UNet is trained"
            )
        pipe.load_lora_into_unet(state, alphas, pipe.unet, adapter_name=GUEST, metadata=metadata)
        return convert_unet_state_dict_to_peft(
            {k.removeprefix("unet."): v for k, v in state.items()}
        )
    except (ValueError, KeyError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:160]
        raise UserError(f"{where}: does not fit this model: {reason}") from error


def take_over(module: nn.Module, a: Tensor, b: Tensor) -> None:
    """Copy the guest's A [r, in] and B [out, r] into a module's own LoRA, B at our scaling."""
    rank, ratio = module.r[GUEST], module.scaling[GUEST] / module.scaling["default"]
    module.lora_A["default"].weight.data[:rank] = a
    module.lora_B["default"].weight.data[:, :rank] = b.float() * ratio
