"""A vision-language model as a policy over tokens: it looks at a picture, answers and writes.

Qwen2-VL, Qwen2.5-VL, Qwen3-VL and Qwen3.5 through transformers' AutoModelForImageTextToText, with a
peft LoRA on the language model where it is trained. One picture a conversation, before the text.
"""

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import HfHubHTTPError
from PIL import Image
from safetensors import SafetensorError
from torch import Tensor
from transformers import (
    AutoImageProcessor,
    AutoModelForImageTextToText,
    AutoTokenizer,
    BaseImageProcessor,
    GenerationConfig,
    LogitsProcessorList,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from srrl.errors import UserError
from srrl.models.conversations import Completions, Conversations, Draw, Packed
from srrl.models.hub import hub_folder
from srrl.models.language_lora import LanguageLora
from srrl.models.random_vlm import random_vlm
from srrl.models.random_weights import RANDOM

FILES = ["*.json", "*.txt", "*.jinja", "*.safetensors"]  # of a model on the hub
ANSWERS = (("yes", "Yes"), ("no", "No"))


class VLM(LanguageLora):
    """A Qwen vision-language model; a Trainee once it has a LoRA.

    `batch_size` bounds the rows of one call without gradient. `nfe` counts rows that went through
    the network, `tokens` their tokens, those of the picture included; a token that is written
    counts once.
    """

    def __init__(
        self,
        network: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        pictures: BaseImageProcessor,
        *,
        batch_size: int = 32,
        side: int | None = None,
        device: torch.device | str = "cpu",
    ):
        self.network = network.eval().requires_grad_(False).to(device)
        self.talk = Conversations(tokenizer, network.config.image_token_id)
        self.pictures, self.side = pictures, side
        self.batch_size, self.device, self.dtype = batch_size, torch.device(device), network.dtype
        self.nfe = self.tokens = 0
        self.merged = network.config.vision_config.spatial_merge_size**2
        seen = {network.config.image_token_id, network.config.video_token_id}
        self.unwritten = torch.tensor(sorted(seen))
        self.options = [self.talk.single_tokens(words) for words in ANSWERS]
        # Recurrent layers read a row from its first token to its last: it cannot be shared out.
        kinds = getattr(network.config.get_text_config(), "layer_types", None) or ()
        self.packs = all(kind == "full_attention" for kind in kinds)

    @classmethod
    def load(
        cls,
        model: str | Path,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        **settings: Any,
    ) -> "VLM":
        """Load a folder's or the hub's model, or "random:Qwen2.5-VL-7B": that architecture, random
        weights. Raises UserError if it cannot be had or is no Qwen vision-language model."""
        if str(model).startswith(RANDOM + ":"):
            return cls(*random_vlm(str(model), dtype, device), device=device, **settings)
        try:
            folder = hub_folder(str(model), FILES)
            network = AutoModelForImageTextToText.from_pretrained(folder, dtype=dtype)
            pictures = AutoImageProcessor.from_pretrained(folder)
            tokenizer = AutoTokenizer.from_pretrained(folder)
        except (OSError, ValueError, KeyError, SafetensorError, HfHubHTTPError) as error:
            remedy = "the files there are incomplete, damaged or of another kind"
            if not Path(model).exists():
                remedy = (
                    f"is it spelled right, and can this machine reach the hub? If it cannot, run "
                    f"`hf download {model} --local-dir DIR` where there is a network and give DIR"
                )
            reason = " ".join(str(error).split())[:160]
            raise UserError(f"cannot load the VLM {str(model)!r}: {remedy} ({reason})") from error
        if not hasattr(network.model, "get_rope_index"):
            kind = type(network).__name__
            raise UserError(f"the VLM {str(model)!r} is a {kind}: only Qwen's (2 to 3.5) are read")
        return cls(network, tokenizer, pictures, device=device, **settings)

    def sharing(self, batch_size: int, side: int | None) -> "VLM":
        """The same network for another use, which counts for itself."""
        other = copy.copy(self)
        other.batch_size, other.side, other.nfe, other.tokens = batch_size, side, 0, 0
        return other

    # ------------------------------------------------------------------ seeing

    def look(self, images: Tensor) -> dict[str, Tensor]:
        """The network's own form of pictures uint8 [B, 3, H, W]."""
        made = [Image.fromarray(x) for x in images.permute(0, 2, 3, 1).cpu().numpy()]
        if self.side:
            scale = self.side / min(made[0].size)
            made = [p.resize([max(1, round(scale * s)) for s in p.size]) for p in made]
        vision = self.pictures(images=made, return_tensors="pt")
        return {
            "pixel_values": vision.pixel_values.to(self.device, self.dtype),
            "image_grid_thw": vision.image_grid_thw.to(self.device),
        }

    def visual_tokens(self, vision: dict[str, Tensor]) -> int:
        """How many tokens each of these pictures, all of one size, has."""
        return int(vision["image_grid_thw"][0].prod()) // self.merged

    def positions(self, ids: Tensor, mask: Tensor, vision: dict[str, Tensor]) -> Tensor:
        """int64 [3, B, L]: time, row and column of each token."""
        kinds = (ids == self.talk.image).int()
        given = {"image_grid_thw": vision["image_grid_thw"], "attention_mask": mask}
        return self.network.model.get_rope_index(ids, kinds, **given)[0]

    def given(self, texts: Sequence[str], vision: dict, left: bool = False) -> list[Tensor]:
        """Token ids and mask [B, L] of requests about pictures."""
        rows = self.talk.rows(texts, self.visual_tokens(vision))
        return [tensor.to(self.device) for tensor in self.talk.padded(rows, left)]

    def logits(self, ids: Tensor, mask: Tensor, positions: Tensor, vision: dict) -> Tensor:
        """float [B, L, V]; mask [B, L], or bool [B, 1, L, L] of who sees whom."""
        self.nfe += len(ids)
        self.tokens += int((ids != self.talk.pad).sum())
        with self.bare(not self.adapted):
            return self.network(
                input_ids=ids,
                attention_mask=mask,
                position_ids=positions,
                mm_token_type_ids=(ids == self.talk.image).int(),
                use_cache=False,
                **vision,
            ).logits

    # ------------------------------------------------------------------ answering

    @torch.no_grad()
    def p_yes(self, images: Tensor, questions: Sequence[Sequence[str]]) -> list[Tensor]:
        """P(yes), against no, of each picture's questions: B tensors float32 [questions].

        images uint8 [B, 3, H, W]. Packed, a picture's questions share one row, in which each sees
        the picture and itself alone: the same as asked apart.
        """
        if len(images) != len(questions):
            raise ValueError(f"{len(images)} pictures for {len(questions)} lists of questions")
        found: list[Tensor] = []
        for start in range(0, len(images), self.batch_size):
            part = slice(start, start + self.batch_size)
            ask = self.packed_answers if self.packs else self.separate_answers
            found += ask(images[part], questions[part])
        return found

    def packed_answers(self, images: Tensor, questions: Sequence[Sequence[str]]) -> list[Tensor]:
        segments: list[list[tuple[str, list[int]]]] = [
            [(q, []) for q in some] for some in questions
        ]
        rows = [i for i, some in enumerate(questions) if some]
        answers = [torch.zeros(0) for _ in questions]
        if rows:
            vision = self.look(images[rows])
            packed = self.pack([segments[i] for i in rows], vision)
            logits = self.logits(packed.ids, packed.mask, packed.positions, vision)
            for i, row, places in zip(rows, logits, packed.places, strict=True):
                answers[i] = self.yes_of(row[places])
        return answers

    def separate_answers(self, images: Tensor, questions: Sequence[Sequence[str]]) -> list[Tensor]:
        counts = [len(some) for some in questions]
        every = images.repeat_interleave(torch.tensor(counts), 0)
        asked, answers = [q for some in questions for q in some], []
        for start in range(0, len(asked), self.batch_size):
            part = slice(start, start + self.batch_size)
            vision = self.look(every[part])
            ids, mask = self.given(asked[part], vision)
            logits = self.logits(ids, mask, self.positions(ids, mask, vision), vision)
            last = mask.sum(1) - 1
            answers.append(self.yes_of(logits[torch.arange(len(ids)), last]))
        return list(torch.cat(answers or [torch.zeros(0)]).split(counts))

    def yes_of(self, logits: Tensor) -> Tensor:
        """float32 [N] of logits [N, V]: the mass of yes over that of yes and no."""
        yes, no = (logits.float()[:, ids].logsumexp(-1) for ids in self.options)
        return (yes - no).sigmoid().cpu()

    def pack(self, rows: Sequence[Sequence[tuple[str, Sequence[int]]]], vision: dict) -> Packed:
        """Conversations.pack on the network's device; pictures of one size."""
        visual = self.visual_tokens(vision)
        ids, mask = self.talk.padded([[*self.talk.prefix(visual), self.talk.end]])
        first = {"image_grid_thw": vision["image_grid_thw"][:1]}
        positions = self.positions(ids.to(self.device), mask.to(self.device), first)[:, 0].cpu()
        packed = self.talk.pack(rows, visual, positions)
        return Packed(
            packed.ids.to(self.device),
            packed.labels.to(self.device),
            packed.positions.to(self.device),
            packed.mask.to(self.device),
            packed.places,
        )

    # ------------------------------------------------------------------ writing

    @torch.no_grad()
    def write(
        self,
        images: Tensor,
        requests: Sequence[str],
        *,
        max_tokens: int,
        generators: Sequence[torch.Generator] | None = None,
        temperature: float = 1.0,
    ) -> Completions:
        """A completion of each request about its picture, images uint8 [B, 3, H, W].

        Each is drawn by its own generator, whatever else is in the batch (Gumbel's trick: the
        largest of logits / temperature + noise); without generators the likeliest token is taken.
        """
        if len(images) != len(requests):
            raise ValueError(f"{len(images)} pictures for {len(requests)} requests")
        vision = self.look(images)
        ids, mask = self.given(requests, vision, left=True)
        settings = GenerationConfig(
            do_sample=False,
            max_new_tokens=max_tokens,
            repetition_penalty=1.0,
            eos_token_id=self.talk.end,
            pad_token_id=self.talk.pad,
        )
        drawn = Draw(self.chances, generators, temperature)
        with self.bare(not self.adapted):
            made = self.network.generate(
                input_ids=ids,
                attention_mask=mask,
                mm_token_type_ids=(ids == self.talk.image).int(),
                generation_config=settings,
                logits_processor=LogitsProcessorList([drawn]),
                **vision,
            )
        tokens = made[:, ids.shape[1] :]
        ended = (tokens == self.talk.end).long().cumsum(1)
        counts = (ended == 0) | ((ended == 1) & (tokens == self.talk.end))
        log_probs = torch.stack(drawn.log_probs, 1)
        self.nfe += len(ids)
        self.tokens += int(mask.sum()) + int(counts.sum())
        texts = [
            self.talk.tokenizer.decode([t for t in row[n].tolist() if t != self.talk.end])
            for row, n in zip(tokens, counts, strict=True)
        ]
        return Completions(texts, tokens, counts, log_probs * counts)

    def log_probs(
        self,
        images: Tensor,
        requests: Sequence[str],
        tokens: Tensor,
        mask: Tensor,
        temperature: float = 1.0,
        least: int = 0,
    ) -> Tensor:
        """float32 [B, L] of completions' tokens [B, L], given at once; with gradient. 0 where mask
        [B, L] says that a token does not count. least: tokens of a row, the request's included, to
        pad to."""
        vision = self.look(images)
        asked = self.talk.rows(requests, self.visual_tokens(vision))
        lengths = mask.sum(1).tolist()
        rows = [a + t[:n].tolist() for a, t, n in zip(asked, tokens, lengths, strict=True)]
        ids, seen = (tensor.to(self.device) for tensor in self.talk.padded(rows, least=least))
        logits = self.logits(ids, seen, self.positions(ids, seen, vision), vision)
        found = torch.zeros(tokens.shape, device=self.device)
        for i, (before, n) in enumerate(zip(asked, lengths, strict=True)):
            at = slice(len(before) - 1, len(before) - 1 + n)
            row = self.chances(logits[i, at], temperature)
            found[i, :n] = row.gather(1, tokens[i, :n, None].to(self.device))[:, 0]
        return found

    def chances(self, logits: Tensor, temperature: float) -> Tensor:
        """float32 log-probs [..., V] of the next token. Tokens of pictures are never written."""
        logits = logits.float().index_fill(-1, self.unwritten.to(logits.device), -torch.inf)
        return (logits / temperature).log_softmax(-1)
