"""Prompts to token ids, the same for every engine that holds the model itself, and how much room they leave."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from jinja2.exceptions import TemplateError

from tilth.data.positions import positions
from tilth.errors import ModelError
from tilth.generate.base import Prompt, SamplingParams


@dataclass(frozen=True)
class Encoded:
    """A prompt's tokens and the most that its completions may have; or why it cannot be asked (`name: detail`).

    `ends` are tokens that end a completion, whatever the model says of itself: the tokenizer's own end, and the stop
    texts that are one special token, since a text is looked through without these.
    """

    ids: tuple[int, ...] = ()
    room: int = 0
    failure: str | None = None
    ends: tuple[int, ...] = ()


@dataclass(frozen=True)
class Encoder:
    """Writes chat turns by the template and tokenizes. `limit` is the model's: tokens of prompt and completion.

    `shared`: both together; of an encoder-decoder each has as many.
    """

    tokenizer: Any
    limit: int
    sampling: SamplingParams
    template: str | None = None
    shared: bool = True

    def __call__(self, prompts: Sequence[Prompt]) -> list[Encoded]:
        texts = [self._text(prompt) for prompt in prompts]
        return [
            Encoded(failure=text) if marks is None else self._measured(prompt, text, marks)
            for prompt, (text, marks) in zip(prompts, texts, strict=True)
        ]

    def _text(self, prompt: Prompt) -> tuple[str, bool | None]:
        """The text, and whether the tokenizer adds its marks; None instead where the template refuses the turns.

        A template writes the mark that begins a text itself, and so may whoever writes a plain prompt.
        """
        if isinstance(prompt.messages, str):
            begins = self.tokenizer.bos_token
            return prompt.messages, not (begins and prompt.messages.startswith(begins))
        if not (self.template or self.tokenizer.chat_template):
            raise ModelError(
                f"{self.tokenizer.name_or_path} has no chat template; set the generator's `chat_template`, "
                "name a model that was trained on conversations, or ask with plain texts"
            )
        turns = [dict(turn) for turn in prompt.messages]
        how = {"tokenize": False, "add_generation_prompt": True, "chat_template": self.template}
        try:
            return self.tokenizer.apply_chat_template(turns, **how), False
        except TemplateError as error:
            return f"chat_template: {error}", None

    def _measured(self, prompt: Prompt, text: str, marks: bool) -> Encoded:
        ids = tuple(self.tokenizer(text, add_special_tokens=marks, truncation=False, verbose=False).input_ids)
        if not ids:
            return Encoded(failure="empty: the prompt has no token")
        if len(ids) >= self.limit:
            return Encoded(failure=f"prompt_too_long: {len(ids)} tokens, the model reads {self.limit - 1} and answers")
        most = self.sampling.max_tokens if prompt.max_tokens is None else prompt.max_tokens
        room = min(most, self.limit - len(ids) if self.shared else self.limit)
        return Encoded(ids, room, ends=self._ends((*self.sampling.stop, *prompt.stop)))

    def _ends(self, stops: Sequence[str]) -> tuple[int, ...]:
        own = self.tokenizer.eos_token_id
        found = {self._special[stop] for stop in stops if stop in self._special}
        return tuple(sorted(found if own is None else {own, *found}))

    @cached_property
    def _special(self) -> dict[str, int]:
        """Tokens that are left out of decoded texts; not all of them have a role that the tokenizer names."""
        known = self.tokenizer.added_tokens_decoder.items()
        return {token.content: number for number, token in known if token.special}


def context(config: Any, tokenizer: Any, asked: int | None) -> int:
    """Tokens of prompt and completion together: what is `asked` for, else what the model has positions for."""
    known = [size for size in (positions(config), tokenizer.model_max_length) if size]
    own = int(min(known))
    if asked is not None and asked > own:
        name = tokenizer.name_or_path
        raise ModelError(f"max_model_len is {asked}, but {name} knows {own} positions; use at most {own}")
    return own if asked is None else asked
