"""ImageReward v1.0 (arXiv 2304.05977) as inference on transformers' BLIP and BERT classes.

BLIP's ViT reads the picture, its BERT the prompt with cross-attention to the picture; an MLP
without activations turns [CLS] into a score, standardised with the published mean and std.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from transformers import BertTokenizer, BlipTextConfig, BlipVisionConfig
from transformers.models.blip.modeling_blip import BlipVisionModel
from transformers.models.blip.modeling_blip_text import BlipTextModel

from rewards.checkpoints import checkpoint_folder, fill, read_weights
from rewards.network import NetworkReward
from rewards.preprocess import centre_crop
from rewards.stand_in import stand_in_tokenizer
from srrl.models.random_weights import RANDOM, fill_random

MEAN, STD = 0.16717362830052426, 1.0333394966054072
FILES = ("ImageReward.safetensors", "ImageReward.pt")
MAX_TOKENS = 35
HEAD = 64  # dimensions of an attention head, in both networks
MLP = (1024, 128, 64, 16, 1)
# Names of the original's ViT (timm's) and transformers'.
VISION_NAMES = {
    "cls_token": "embeddings.class_embedding",
    "pos_embed": "embeddings.position_embedding",
    "patch_embed.proj": "embeddings.patch_embedding",
    "attn.qkv": "self_attn.qkv",
    "attn.proj": "self_attn.projection",
    ".norm1": ".layer_norm1",
    ".norm2": ".layer_norm2",
    "blocks.": "encoder.layers.",
}


@dataclass(frozen=True)
class Sizes:
    """Of the vision tower and of the text encoder; those of the published checkpoint."""

    width: int = 1024
    blocks: int = 24
    patch: int = 16
    image: int = 224
    hidden: int = 768
    layers: int = 12
    inner: int = 3072
    words: int = 30524
    positions: int = 512

    @classmethod
    def of(cls, state: dict[str, Tensor]) -> "Sizes":
        """Those of an original checkpoint's tensors."""
        vision, text = "blip.visual_encoder.", "blip.text_encoder."
        width, _, patch, _ = state[vision + "patch_embed.proj.weight"].shape
        words, hidden = state[text + "embeddings.word_embeddings.weight"].shape
        return cls(
            width=width,
            blocks=count(state, vision + r"blocks\.(\d+)\."),
            patch=patch,
            image=round((state[vision + "pos_embed"].shape[1] - 1) ** 0.5) * patch,
            hidden=hidden,
            layers=count(state, text + r"encoder\.layer\.(\d+)\."),
            inner=state[text + "encoder.layer.0.intermediate.dense.weight"].shape[0],
            words=words,
            positions=state[text + "embeddings.position_embeddings.weight"].shape[0],
        )


class Network(nn.Module):
    """The three parts."""

    def __init__(self, s: Sizes):
        super().__init__()
        self.image_size = s.image
        self.vision = BlipVisionModel(
            BlipVisionConfig(
                hidden_size=s.width,
                intermediate_size=4 * s.width,
                num_hidden_layers=s.blocks,
                num_attention_heads=s.width // HEAD,
                image_size=s.image,
                patch_size=s.patch,
                layer_norm_eps=1e-6,
                hidden_act="gelu",
            )
        )
        self.text = BlipTextModel(
            BlipTextConfig(
                vocab_size=s.words,
                hidden_size=s.hidden,
                encoder_hidden_size=s.width,
                intermediate_size=s.inner,
                num_hidden_layers=s.layers,
                num_attention_heads=s.hidden // HEAD,
                max_position_embeddings=s.positions,
                is_decoder=True,  # gives it cross-attention
                layer_norm_eps=1e-12,
            ),
            add_pooling_layer=False,
        )
        sizes = (s.hidden, *MLP)
        # The original's dropouts, which do nothing at inference, take indices 1, 3 and 5.
        indices = (0, 2, 4, 6, 7)
        self.mlp = nn.ModuleDict(
            {str(p): nn.Linear(sizes[i], sizes[i + 1]) for i, p in enumerate(indices)}
        )

    def forward(self, pixels: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
        """Scores float32 [B] of pixels [B, 3, H, W] and token ids and mask int64 [B, L]."""
        picture = self.vision(pixels).last_hidden_state
        x = self.text(
            ids,
            attention_mask=mask,
            encoder_hidden_states=picture,
            encoder_attention_mask=ids.new_ones(picture.shape[:-1]),
            is_decoder=False,
        ).last_hidden_state[:, 0]
        for layer in self.mlp.values():
            x = layer(x)
        return (x.squeeze(-1).float() - MEAN) / STD


def blank_network(sizes: Sizes = Sizes()) -> Network:
    """The network on the meta device."""
    with torch.device("meta"):
        return Network(sizes)


def count(state: dict[str, Tensor], pattern: str) -> int:
    """One more than the largest number that the pattern finds in the names."""
    return 1 + max(int(m[1]) for name in state if (m := re.match(pattern, name)))


def renamed(state: dict[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """The original checkpoint's tensors under this network's names."""
    for name, tensor in state.items():
        if name.startswith("blip.visual_encoder."):
            name = name.removeprefix("blip.visual_encoder.")
            for original, ours in VISION_NAMES.items():
                name = name.replace(original, ours)
            yield "vision." + re.sub(r"^norm\.", "post_layernorm.", name), tensor
        elif name.startswith("blip.text_encoder."):
            if not name.endswith("position_ids"):  # a constant
                yield "text." + name.removeprefix("blip.text_encoder."), tensor
        elif not name.startswith(("blip.vision_proj.", "blip.text_proj.")):  # never used
            yield name.replace("mlp.layers.", "mlp."), tensor


class ImageReward(NetworkReward):
    """score(): about -2 to 2, the higher the better picture and prompt go together.

    model: hub name or folder with ImageReward.pt, or "random"; tokenizer: of BERT, likewise;
    settings: those of NetworkReward.
    """

    name, batch_size = "imagereward", 32

    def __init__(
        self,
        model: str = "THUDM/ImageReward",
        tokenizer: str = "google-bert/bert-base-uncased",
        **settings: Any,
    ):
        super().__init__(**settings)
        if model == RANDOM:
            self.use(fill_random(blank_network(), self.dtype, self.device))
            self.tokenizer = stand_in_tokenizer("[CLS]", "[SEP]")
        else:
            self._load(model, tokenizer)

    @classmethod
    def folders(cls, model: str, tokenizer: str) -> tuple[Path, Path]:
        """Of the checkpoint and of the tokenizer."""
        folder = checkpoint_folder(cls.name, model, list(FILES[1:]))
        return folder, checkpoint_folder(cls.name, tokenizer, ["vocab.txt", "tokenizer*"])

    def _load(self, model: str, tokenizer: str) -> None:
        folder, words = self.folders(model, tokenizer)
        present = [folder / name for name in FILES if (folder / name).exists()]
        state = read_weights(self.name, present[0] if present else folder / FILES[-1])
        network = blank_network(Sizes.of(state))
        fill(self.name, network, renamed(state), self.dtype)
        self.use(network)
        self.tokenizer = bert_tokenizer(words)

    def tokens(self, prompts: list[str]) -> tuple[Tensor, Tensor]:
        """Token ids and mask int64 [B, 35]."""
        encoded = self.tokenizer(
            prompts,
            padding="max_length",
            truncation=True,
            max_length=MAX_TOKENS,
            return_tensors="pt",
        )
        return encoded.input_ids, encoded.attention_mask

    def batch(self, pictures: list[Image.Image], prompts: list[str]) -> Tensor:
        pixels = self.pixels([centre_crop(p, self.network.image_size) for p in pictures])
        ids, mask = (x.to(self.device) for x in self.tokens(prompts))
        return self.network(pixels, ids, mask)


def bert_tokenizer(folder: Path) -> BertTokenizer:
    """BERT's tokenizer with BLIP's two tokens, [DEC] and [ENC]."""
    tokenizer = BertTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"bos_token": "[DEC]"})
    tokenizer.add_special_tokens({"additional_special_tokens": ["[ENC]"]})
    return tokenizer
