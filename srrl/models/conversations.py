"""Conversations with a vision-language model as rows of tokens: one by one, padded, or packed."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor
from transformers import LogitsProcessor, PreTrainedTokenizerBase

from srrl.errors import UserError


@dataclass(frozen=True)
class Packed:
    """B rows of questions about a picture each: ids, labels (-100 where no answer is) [B, L];
    positions [3, B, L]; mask bool [B, 1, L, L]; places: of a row, where answers are read."""

    ids: Tensor
    labels: Tensor
    positions: Tensor
    mask: Tensor
    places: list[list[int]]


@dataclass(frozen=True)
class Completions:
    """What was written for B requests.

    texts      without the end's token
    tokens     int64 [B, L], padded on the right; the end's token is the last that counts
    mask       bool [B, L], which of them count
    log_probs  float32 [B, L] of the tokens under the policy that wrote them; 0 elsewhere
    """

    texts: list[str]
    tokens: Tensor
    mask: Tensor
    log_probs: Tensor

    def __len__(self) -> int:
        return len(self.texts)


class Conversations:
    """A tokenizer with its chat template. One picture a conversation, before the text.

    image, end, pad: the tokens of a picture's part, of an answer's end, and of no meaning.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, image: int):
        self.tokenizer, self.image = tokenizer, image
        self.end = tokenizer.eos_token_id
        self.pad = self.end if tokenizer.pad_token_id is None else tokenizer.pad_token_id
        self.around = lru_cache(4096)(self._around)

    def tokens(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False).input_ids

    def single_tokens(self, words: Sequence[str]) -> list[int]:
        """The words' tokens, of those that are one token. Raises UserError where none is."""
        single = [ids[0] for ids in map(self.tokens, words) if len(ids) == 1]
        if not single:
            raise UserError(f"the VLM's tokenizer has no single token for {' or '.join(words)}")
        return single

    def _around(self, text: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The tokens of a request before those of its picture, and after them, up to the answer.

        Raises ValueError for a text with tokens of the conversation's own in it.
        """
        special = [t for t in self.tokenizer.all_special_tokens if t in text]
        if special:
            raise ValueError(f"{text!r} holds {special[0]!r}, which is the conversation's own")
        content = [{"type": "image"}, {"type": "text", "text": text}]
        written = self.tokenizer.apply_chat_template(
            [{"role": "user", "content": content}],
            tokenize=False,
            add_generation_prompt=True,
            enable_thinking=False,  # of those that think aloud first: the answer is what is read
        )
        before, found, after = written.partition(self.tokenizer.convert_ids_to_tokens(self.image))
        if not found:
            raise ValueError("the VLM's chat template leaves the picture out")
        return tuple(self.tokens(before)), tuple(self.tokens(after))

    def rows(self, texts: Sequence[str], visual_tokens: int) -> list[list[int]]:
        """Each request's tokens, with so many of its picture."""
        around = map(self.around, texts)
        return [[*before, *[self.image] * visual_tokens, *after] for before, after in around]

    def padded(
        self, rows: Sequence[Sequence[int]], left: bool = False, least: int = 0
    ) -> tuple[Tensor, Tensor]:
        """Token ids int64 [B, L], L at least `least`, and [B, L] which of them count (1)."""
        longest = max(least, *map(len, rows))
        ids = torch.full((len(rows), longest), self.pad)
        mask = torch.zeros(len(rows), longest, dtype=torch.long)
        for i, row in enumerate(rows):
            place = slice(longest - len(row), longest) if left else slice(0, len(row))
            ids[i, place], mask[i, place] = torch.tensor(row), 1
        return ids, mask

    def prefix(self, visual_tokens: int) -> list[int]:
        """What every request begins with: up to and with its picture's tokens."""
        return [*self.around("")[0], *[self.image] * visual_tokens]

    def pack(
        self,
        rows: Sequence[Sequence[tuple[str, Sequence[int]]]],
        visual_tokens: int,
        positions: Tensor,
    ) -> Packed:
        """Rows of (text, the answer's tokens) about a picture each: every pair sees the picture and
        itself alone, at the places that it would have by itself.

        positions int64 [3, P + 1]: those of the prefix and of the first token after it.
        """
        prefix, at, later = self.prefix(visual_tokens), positions[:, :-1], int(positions[0, -1])
        made = []
        for segments in rows:
            ids, labels = list(prefix), [-100] * len(prefix)
            owner = [0] * len(prefix)
            places: list[int] = []
            where: list[int] = []
            for number, (text, answer) in enumerate(segments, 1):
                head = self.around(text)[1]
                ids += [*head, *answer]
                labels += [-100] * len(head) + list(answer)
                length = len(head) + len(answer)
                owner += [number] * length
                places += range(later, later + length)
                where.append(len(ids) - len(answer) - 1)
            made.append((ids, labels, owner, places, where))
        longest = max(len(m[0]) for m in made)
        tokens, targets, owners = (
            torch.full((len(made), longest), v) for v in (self.pad, -100, -1)
        )
        positions = torch.zeros(3, len(made), longest, dtype=torch.long)
        for i, (a, b, c, places, _) in enumerate(made):
            n = len(a)
            tokens[i, :n], targets[i, :n], owners[i, :n] = map(torch.tensor, (a, b, c))
            positions[:, i, :n] = torch.cat([at, torch.tensor(places).expand(3, -1)], 1)
        sees = (owners[:, None, :] == 0) | (owners[:, None, :] == owners[:, :, None])
        causal = torch.ones(longest, longest, dtype=torch.bool).tril()
        return Packed(tokens, targets, positions, (sees & causal)[:, None], [m[4] for m in made])


class Draw(LogitsProcessor):
    """Draws each row's token by the row's own generator, or takes the likeliest.

    chances: log-probs of logits under a temperature. log_probs: of the tokens drawn so far, [B] for
    each step.
    """

    def __init__(
        self,
        chances: Callable[[Tensor, float], Tensor],
        generators: Sequence[torch.Generator] | None,
        temperature: float,
    ):
        if temperature <= 0:
            raise ValueError(f"temperature {temperature}: above 0")
        self.chances, self.generators, self.temperature = chances, generators, temperature
        self.log_probs: list[Tensor] = []

    def __call__(self, ids: Tensor, scores: Tensor) -> Tensor:
        chances = self.chances(scores, self.temperature)
        drawn = chances if self.generators is None else self.perturbed(chances)
        self.log_probs.append(chances.gather(1, drawn.argmax(1, keepdim=True))[:, 0])
        return drawn

    def perturbed(self, chances: Tensor) -> Tensor:
        """With Gumbel's noise: the largest is a draw."""
        width = chances.shape[1]
        uniform = torch.stack([torch.rand(width, generator=g) for g in self.generators or ()])
        waiting = -uniform.clamp(min=1e-20).log()  # exponential; its negative logarithm is Gumbel's
        return chances - waiting.clamp(min=1e-30).log().to(chances.device)
