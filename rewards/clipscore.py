"""CLIPScore: the cosine between CLIP's embeddings of picture and prompt (arXiv 2104.08718).

By default with OpenCLIP's ViT-H/14 trained on LAION-2B, the reward of SRRL's released code.
"""

from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import AutoTokenizer, CLIPConfig, CLIPModel

from rewards.checkpoints import checkpoint_folder
from rewards.network import NetworkReward
from rewards.preprocess import centre_crop
from rewards.stand_in import stand_in_tokenizer
from srrl.models.random_weights import RANDOM, fill_random

# Sizes of ViT-H/14.
TEXT = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "hidden_act": "gelu",
    "eos_token_id": 1,
}
VISION = {
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_hidden_layers": 32,
    "num_attention_heads": 16,
    "patch_size": 14,
    "hidden_act": "gelu",
}
FILES = ["*.json", "*.txt", "model.safetensors", "pytorch_model.bin"]


def blank_network() -> CLIPModel:
    """ViT-H/14's network on the meta device."""
    with torch.device("meta"):
        return CLIPModel(CLIPConfig(text_config=TEXT, vision_config=VISION, projection_dim=1024))


class CLIPScore(NetworkReward):
    """score(): the cosine, -1 to 1.

    model: hub name or folder of a CLIPModel with its tokenizer, or "random"; settings: those of
    NetworkReward.
    """

    name, batch_size = "clipscore", 32

    def __init__(self, model: str = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K", **settings: Any):
        super().__init__(**settings)
        if model == RANDOM:
            self.use(fill_random(blank_network(), self.dtype, self.device))
            self.tokenizer = stand_in_tokenizer("<|startoftext|>", "<|endoftext|>")
        else:
            (folder,) = self.folders(model)
            with self.loading(model):
                self.use(CLIPModel.from_pretrained(folder, torch_dtype=self.dtype))
                self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.image_size = self.network.config.vision_config.image_size
        self.length = self.network.config.text_config.max_position_embeddings

    @classmethod
    def folders(cls, model: str) -> tuple[Path]:
        """Of the checkpoint."""
        return (checkpoint_folder(cls.name, model, FILES),)

    def batch(self, pictures: list[Image.Image], prompts: list[str]) -> Tensor:
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
            pixel_values=self.pixels([centre_crop(p, self.image_size) for p in pictures]),
        )
        return (output.image_embeds.float() * output.text_embeds.float()).sum(-1)
