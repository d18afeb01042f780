"""The authors' own packages as rewards, inside the environment of scripts/original_rewards.sh.

Used by a worker in that environment (reward.backend "original") and as the reference that
rewards/vqascore.py and rewards/imagereward.py are tested against. The packages know one published
model each, by its name on the hub; a folder with the same files is taken too.
"""

import json
import sys
import tempfile
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from rewards.preprocess import to_pil


def import_packages() -> tuple[ModuleType, ModuleType]:
    """(ImageReward, t2v_metrics). With a torch that has no CUDA, torchvision's operators are
    declared first: its wheel was built against one that has, and would not import."""
    if not torch.version.cuda and not hasattr(import_packages, "library"):
        library = torch.library.Library("torchvision", "DEF")
        library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        vars(import_packages)["library"] = library  # it goes with its last reference
    import ImageReward
    import t2v_metrics

    return ImageReward, t2v_metrics


def imagereward_from(folder: Path, tokenizer: str, device: str) -> torch.nn.Module:
    """image-reward's model of a folder with ImageReward.pt and med_config.json.

    The package hard-codes the hub's name of the tokenizer and the sizes of the networks; the
    former is replaced by `tokenizer`, the latter by those of the checkpoint's tensors.
    """
    import_packages()
    module: Any = sys.modules["ImageReward.ImageReward"]  # the package's own name hides it
    from ImageReward.models.BLIP import blip, blip_pretrain
    from ImageReward.models.BLIP.vit import VisionTransformer
    from transformers import BertTokenizer

    state = torch.load(folder / "ImageReward.pt", weights_only=True)
    vision = "blip.visual_encoder."
    width, _, patch, _ = state[vision + "patch_embed.proj.weight"].shape
    side = round((state[vision + "pos_embed"].shape[1] - 1) ** 0.5) * patch
    depth = sum(name.endswith(".norm1.weight") for name in state)
    hidden = json.loads((folder / "med_config.json").read_text())["hidden_size"]
    words = BertTokenizer.from_pretrained(tokenizer)
    originals = (blip.BertTokenizer, blip_pretrain.create_vit, module.MLP, module._transform)
    whole, transform = originals[2:]
    blip.BertTokenizer = SimpleNamespace(from_pretrained=lambda name: words)
    blip_pretrain.create_vit = lambda *arguments: (
        VisionTransformer(
            img_size=side, patch_size=patch, embed_dim=width, depth=depth, num_heads=width // 64
        ),
        width,
    )
    module.MLP, module._transform = lambda inputs: whole(hidden), lambda size: transform(side)
    try:
        model = module.ImageReward(med_config=str(folder / "med_config.json"), device=device)
    finally:
        blip.BertTokenizer, blip_pretrain.create_vit, module.MLP, module._transform = originals
    result = model.load_state_dict(state, strict=False)
    wrong = [n for n in result.missing_keys if not n.endswith("position_ids")]
    wrong += result.unexpected_keys
    if wrong:
        raise ValueError(f"{folder}: the checkpoint does not fit: {wrong[:3]} ({len(wrong)})")
    return model.to(device).eval()


class OriginalImageReward:
    """image-reward's own model. model: its name there, or a folder with ImageReward.pt and
    med_config.json; then tokenizer is the name or folder of BERT's."""

    def __init__(
        self,
        model: str = "ImageReward-v1.0",
        tokenizer: str = "bert-base-uncased",
        device: str = "cpu",
        dtype: str = "fp32",
    ):
        package, _ = import_packages()
        self.model: Any  # the package's own
        if Path(model).is_dir():
            self.model = imagereward_from(Path(model), tokenizer, device)
        else:
            self.model = package.load(model, device=device)

    @torch.no_grad()
    def score(self, images: Tensor, prompts: list[str]) -> Tensor:
        """float32 [B] of images uint8 [B, 3, H, W] and B prompts."""
        pairs = zip(prompts, to_pil(images), strict=True)
        return torch.tensor([float(self.model.score(prompt, image)) for prompt, image in pairs])


class OriginalVQAScore:
    """t2v-metrics' own CLIP-FlanT5. model: its name there, clip-flant5-xl or -xxl, or a folder of
    one; then tokenizer is the folder of its T5's."""

    def __init__(
        self,
        model: str = "clip-flant5-xl",
        tokenizer: str | None = None,
        device: str = "cpu",
        dtype: str = "fp32",
    ):
        import_packages()
        from t2v_metrics.models.vqascore_models import clip_t5_model as module

        if Path(model).is_dir():
            published = module.CLIP_T5_MODELS["clip-flant5-xl"]
            words = {**published["tokenizer"], "path": tokenizer or model}
            module.CLIP_T5_MODELS[model] = {
                "tokenizer": words,
                "model": {**published["model"], "path": model},
            }
        self.model = module.CLIPT5Model(model, device=device)
        if torch.device(device).type == "cpu":  # its autocast to bf16 is CUDA's
            self.model.model.float()

    @torch.no_grad()
    def score(self, images: Tensor, prompts: list[str]) -> Tensor:
        """float32 [B] of images uint8 [B, 3, H, W] and B prompts; it reads images from files."""
        scores = []
        with tempfile.TemporaryDirectory() as folder:
            for image, prompt in zip(to_pil(images), prompts, strict=True):
                file = f"{folder}/image.png"
                image.save(file)
                scores.append(self.model.forward([file], [prompt]).float().cpu().view(1))
        return torch.cat(scores)
