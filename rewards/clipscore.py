"""CLIPScore: the cosine between CLIP's embeddings of picture and prompt (arXiv 2104.08718).

By default with OpenCLIP's ViT-H/14 trained on LAION-2B, the reward of SRRL's released code.
"""

import torch
from torch import Tensor
from transformers import AutoTokenizer, CLIPModel

from rewards import DTYPES
from rewards.checkpoints import checkpoint_folder
from rewards.preprocess import centre_crop, in_batches, to_pil

FILES = ["*.json", "*.txt", "model.safetensors", "pytorch_model.bin"]


class CLIPScore:
    """score(): the cosine, -1 to 1.

    model: hub name or folder of a CLIPModel with its tokenizer; dtype: "fp32", "fp16" or "bf16";
    batch_size: pictures at once.
    """

    def __init__(
        self,
        model: str = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K",
        device: str = "cpu",
        dtype: str = "fp32",
        batch_size: int = 32,
    ):
        folder = checkpoint_folder("clipscore", model, FILES)
        self.device, self.dtype, self.batch_size = device, DTYPES[dtype], batch_size
        self.network = CLIPModel.from_pretrained(folder, torch_dtype=self.dtype)
        self.network.eval().requires_grad_(False).to(device)
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.image_size = self.network.config.vision_config.image_size
        self.length = self.network.config.text_config.max_position_embeddings

    @torch.no_grad()
    def score(self, images: Tensor, prompts: list[str]) -> Tensor:
        """float32 [B] of images uint8 [B, 3, H, W] and B prompts."""
        return in_batches(self._batch, images, prompts, self.batch_size)

    def _batch(self, images: Tensor, prompts: list[str]) -> Tensor:
        pictures = [centre_crop(image, self.image_size) for image in to_pil(images)]
        tokens = self.tokenizer(
            prompts,
            padding="max_length",
            truncation=True,
            max_length=self.length,
            return_tensors="pt",
        ).to(self.device)
        output = self.network(
            input_ids=tokens.input_ids,
            attention_mask=tokens.attention_mask,
            pixel_values=torch.stack(pictures).to(self.device, self.dtype),
        )
        return (output.image_embeds.float() * output.text_embeds.float()).sum(-1)
