"""The authors' own packages as rewards, inside the environment of scripts/original_rewards.sh.

Used by a worker in that environment (reward.backend "original") and as the reference that
rewards/vqascore.py and rewards/imagereward.py are tested against.
"""

import tempfile
from pathlib import Path

import torch
from torch import Tensor

from rewards.preprocess import to_pil


def import_packages():
    """(ImageReward, t2v_metrics). With a torch that has no CUDA, torchvision's operators are
    declared first: its wheel was built against one that has, and would not import."""
    if not torch.version.cuda:
        library = torch.library.Library("torchvision", "DEF")
        library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        import_packages.library = library  # it goes with its last reference
    import ImageReward
    import t2v_metrics

    return ImageReward, t2v_metrics


class OriginalImageReward:
    """image-reward's own model. model: its name, or a folder with ImageReward.pt and
    med_config.json."""

    def __init__(self, model: str = "ImageReward-v1.0", device: str = "cpu", dtype: str = "fp32"):
        package, _ = import_packages()
        folder = Path(model)
        if folder.is_dir():
            checkpoint, med = str(folder / "ImageReward.pt"), str(folder / "med_config.json")
            self.model = package.load(checkpoint, device=device, med_config=med)
        else:
            self.model = package.load(model, device=device)

    @torch.no_grad()
    def score(self, images: Tensor, prompts: list[str]) -> Tensor:
        """float32 [B] of images uint8 [B, 3, H, W] and B prompts."""
        pairs = zip(prompts, to_pil(images), strict=True)
        return torch.tensor([float(self.model.score(prompt, image)) for prompt, image in pairs])


class OriginalVQAScore:
    """t2v-metrics' own CLIP-FlanT5; model: its name there, clip-flant5-xl or -xxl."""

    def __init__(self, model: str = "clip-flant5-xl", device: str = "cpu", dtype: str = "fp32"):
        _, package = import_packages()
        self.model = package.VQAScore(model=model, device=device)

    @torch.no_grad()
    def score(self, images: Tensor, prompts: list[str]) -> Tensor:
        """float32 [B] of images uint8 [B, 3, H, W] and B prompts; it reads images from files."""
        scores = []
        with tempfile.TemporaryDirectory() as folder:
            for image, prompt in zip(to_pil(images), prompts, strict=True):
                file = f"{folder}/image.png"
                image.save(file)
                scores.append(self.model(images=[file], texts=[prompt]).float().cpu().view(1))
        return torch.cat(scores)
