"""A tokenizer without a vocabulary, for networks without their checkpoint."""

from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast


def stand_in_tokenizer(begin: str | None, end: str) -> PreTrainedTokenizerFast:
    """One unknown token for each word and punctuation mark, between `begin` and `end`.

    Texts get about as many tokens as from the real one, all alike.
    """
    known = ["<pad>", end, "<unk>", *([begin] if begin else [])]
    ids = {token: i for i, token in enumerate(known)}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{begin or ''} $A {end}".strip(),
        special_tokens=[(token, ids[token]) for token in (begin, end) if token],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token=end,
        unk_token="<unk>",
        model_input_names=["input_ids", "attention_mask"],
    )
