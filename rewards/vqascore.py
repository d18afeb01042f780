"""VQAScore (arXiv 2404.01291) with CLIP-FlanT5, as inference on transformers' CLIP and T5.

The score is the probability of answering "Yes" to 'Does this figure show "PROMPT"?': the picture's
CLIP features stand in the question as tokens, and T5 reads it.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from transformers import (
    AutoTokenizer,
    CLIPVisionConfig,
    CLIPVisionModel,
    T5Config,
    T5ForConditionalGeneration,
)

from rewards.checkpoints import checkpoint_folder, fill, read_weights, weight_files
from rewards.network import NetworkReward
from rewards.preprocess import padded_square
from rewards.stand_in import stand_in_tokenizer
from srrl.models.random_weights import RANDOM, fill_random

SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives "
    "helpful, detailed, and polite answers to the user's questions."
)
BEFORE = SYSTEM + " USER: "
AFTER = '\nDoes this figure show "{}"? Please answer yes or no. ASSISTANT: '
ANSWER = "Yes"
MAX_TOKENS = 2048  # a longer question is cut, as in the original
# Sizes of the published checkpoints' parts: FLAN-T5 xl and xxl, CLIP ViT-L/14 at 336 pixels.
T5 = {
    "vocab_size": 32128,
    "d_kv": 64,
    "num_layers": 24,
    "feed_forward_proj": "gated-gelu",
    "tie_word_embeddings": False,
    "decoder_start_token_id": 0,
}
FLAN_T5 = {
    "xl": {**T5, "d_model": 2048, "d_ff": 5120, "num_heads": 32},
    "xxl": {**T5, "d_model": 4096, "d_ff": 10240, "num_heads": 64},
}
CLIP = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 336,
    "patch_size": 14,
    "projection_dim": 768,
}
EMBEDDINGS = ("shared.weight", "encoder.embed_tokens.weight", "decoder.embed_tokens.weight")
VISION_PREFIX = "vision_tower.vision_tower."


class Network(nn.Module):
    """CLIP's vision tower, a two-layer projector and T5."""

    def __init__(self, t5: T5Config, vision: CLIPVisionConfig, layer: int):
        super().__init__()
        self.layer, self.image_size, self.words = layer, vision.image_size, t5.vocab_size
        self.vision = CLIPVisionModel(vision)
        self.mm_projector = nn.Sequential(
            nn.Linear(vision.hidden_size, t5.d_model), nn.GELU(), nn.Linear(t5.d_model, t5.d_model)
        )
        self.t5 = T5ForConditionalGeneration(t5)
        # FLAN-T5's output layer is its own; transformers ties it to the input embeddings.
        self.t5.lm_head.weight = nn.Parameter(torch.empty_like(self.t5.lm_head.weight))

    def tie(self) -> None:
        """Let T5's two halves share their input embeddings, as FLAN-T5 does."""
        shared = self.t5.shared.weight
        self.t5.encoder.embed_tokens.weight = self.t5.decoder.embed_tokens.weight = shared

    def picture_tokens(self, pixels: Tensor) -> Tensor:
        """[B, patches, d_model] of pixels [B, 3, H, W]: CLIP's features of a layer, without CLS."""
        features = self.vision(pixels, output_hidden_states=True).hidden_states[self.layer]
        return self.mm_projector(features[:, 1:])

    def forward(
        self, pixels: Tensor, before: Tensor, after: list[Tensor], answer: Tensor
    ) -> Tensor:
        """exp(mean log p) float32 [B] of the answer's tokens after B questions.

        before: int64 [L1], the ids before each picture; after: B times int64 [L2], those behind it;
        answer: int64 [L3], with the end of the sequence.
        """
        embed = self.t5.get_input_embeddings()
        token_ids = [
            torch.cat([embed(before), picture, embed(ids)])
            for picture, ids in zip(self.picture_tokens(pixels), after, strict=True)
        ]
        inputs = nn.utils.rnn.pad_sequence(token_ids, batch_first=True)
        lengths = torch.tensor([len(ids) for ids in token_ids], device=inputs.device)
        mask = torch.arange(inputs.shape[1], device=inputs.device) < lengths[:, None]
        labels = answer.repeat(len(token_ids), 1)
        logits = self.t5(inputs_embeds=inputs, attention_mask=mask.long(), labels=labels).logits
        log_probs = logits[..., : self.words].float().log_softmax(-1)
        return log_probs.gather(-1, labels[..., None]).squeeze(-1).mean(-1).exp()


def blank_network(
    t5: T5Config | None = None, vision: CLIPVisionConfig | None = None, layer: int = -2
) -> Network:
    """The network on the meta device; by default of the published xl's sizes."""
    with torch.device("meta"):
        return Network(t5 or T5Config(**FLAN_T5["xl"]), vision or CLIPVisionConfig(**CLIP), layer)


def read_settings(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "config.json").read_text(encoding="utf-8"))


def renamed(tensors: dict[str, Tensor], known: set[str]) -> Iterator[tuple[str, Tensor]]:
    """The published checkpoint's tensors under this network's names."""
    for name, tensor in tensors.items():
        if name.startswith(VISION_PREFIX):
            name = "vision." + name.removeprefix(VISION_PREFIX)
            yield name if name in known else name.replace("vision_model.", ""), tensor
        elif name.startswith("mm_projector."):
            yield name, tensor
        elif name.endswith("embed_tokens.weight") or name.endswith("position_ids"):
            continue  # copies of shared.weight, constants
        elif name == "shared.weight":
            yield from ((f"t5.{place}", tensor) for place in EMBEDDINGS)
        else:
            yield "t5." + name, tensor


class VQAScore(NetworkReward):
    """score(): the probability of "Yes", 0 to 1.

    model: hub name or folder of a CLIP-FlanT5 (zhiqiulin/clip-flant5-xl or -xxl), or "random" (xl's
    architecture without its weights); tokenizer: of its T5, by default the checkpoint folder's own,
    else google/flan-t5-xl's; vision: of its CLIP, by default what its config names; settings: those
    of NetworkReward.
    """

    name, batch_size = "vqascore", 8

    def __init__(
        self,
        model: str = "zhiqiulin/clip-flant5-xl",
        tokenizer: str | None = None,
        vision: str | None = None,
        **settings: Any,
    ):
        super().__init__(**settings)
        if model == RANDOM:
            self.network = fill_random(blank_network(), self.dtype, self.device)
            self.tokenizer = stand_in_tokenizer(None, "</s>")
        else:
            self._load(model, tokenizer, vision)
            # T5's vocabulary is padded (32,128 for 32,100 words); the original cuts it off.
            self.network.words = len(self.tokenizer)
        self.network.tie()
        self.use(self.network)
        self.before, self.answer = self.ids(BEFORE), self.ids(ANSWER)

    @classmethod
    def folders(
        cls, model: str, tokenizer: str | None = None, vision: str | None = None
    ) -> tuple[Path, Path, Path]:
        """Of the checkpoint, the vision tower and the tokenizer."""
        folder = checkpoint_folder(cls.name, model, ["*.json", "*.bin", "*.safetensors", "*.model"])
        vision = vision or read_settings(folder)["mm_vision_tower"]
        tower = checkpoint_folder(cls.name, vision, ["*.json", "*.bin", "*.safetensors"])
        if tokenizer is None and not list(folder.glob("spiece.model")):
            tokenizer = "google/flan-t5-xl"
        patterns = ["spiece.model", "tokenizer*", "special_tokens_map.json"]
        words = checkpoint_folder(cls.name, tokenizer, patterns) if tokenizer else folder
        return folder, tower, words

    def _load(self, model: str, tokenizer: str | None, vision: str | None) -> None:
        folder, tower, words = self.folders(model, tokenizer, vision)
        self.network = blank_network(
            T5Config.from_pretrained(folder),
            CLIPVisionConfig.from_pretrained(tower),
            read_settings(folder).get("mm_vision_select_layer", -2),
        )
        fill(self.name, self.network, self._tensors(folder, tower), self.dtype)
        self.tokenizer = AutoTokenizer.from_pretrained(words)

    def _tensors(self, folder: Path, tower: Path) -> Iterator[tuple[str, Tensor]]:
        """Shard by shard; a checkpoint without its vision tower takes the original CLIP's."""
        known, vision = set(self.network.state_dict()), False
        for file in weight_files(self.name, folder):
            for name, tensor in renamed(read_weights(self.name, file), known):
                vision |= name.startswith("vision.")
                yield name, tensor
        if not vision:
            for file in weight_files(self.name, tower):
                for name, tensor in read_weights(self.name, file).items():
                    if name.startswith("vision_model.") and not name.endswith("position_ids"):
                        ours = "vision." + name
                        yield ours if ours in known else ours.replace("vision_model.", ""), tensor

    def ids(self, text: str) -> Tensor:
        """Token ids int64 [L], `</s>` at the end."""
        return torch.tensor(self.tokenizer(text).input_ids, device=self.device)

    def batch(self, pictures: list[Image.Image], prompts: list[str]) -> Tensor:
        pixels = self.pixels([padded_square(p, self.network.image_size) for p in pictures])
        room = MAX_TOKENS - 1 - len(self.before)  # the picture counts as one
        after = [self.ids(AFTER.replace("{}", prompt))[:room] for prompt in prompts]
        return self.network(pixels, self.before, after, self.answer)
