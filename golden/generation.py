"""Recipes of the question `generate`, and HF's answers to them.

HF generates twice, in true float64 and in plain float32, and must choose the same tokens. What the cases of HAPPENS are about must
happen: HF is asked again with something changed, and must answer otherwise. Of the others, rows that can end must do so at
different steps, and nothing more is asked; `beams-end` and `beams-never` search to their maximum lengths.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from answers import Answer, _adapted, _described, _store
from draws import draw_parameters, draw_text
from hf import Tensors, arithmetic, set_parameters
from peft import PeftModel
from recipes import PROJECTED, Recipe, Text
from transformers import LogitsProcessorList, MinNewTokensLengthLogitsProcessor

from refpeft.oracle.questions import PREFIX, PROMPT


def _generate(
    method: str, name: str, title: str, clauses: str, model: str, text: Text, n: int, new: int, *,
    config: dict[str, Any] | None = None, **arguments: Any,
) -> Recipe:  # fmt: skip
    given = {"max_new_tokens": new, "eos_token_id": None, "pad_token_id": None, **arguments}
    return Recipe(
        method, "generate", name, title, clauses, f"gpt2-{model}", {"num_virtual_tokens": n, **(config or {})}, given,
        text=text,
    )  # fmt: skip


GENERATION_RECIPES = (
    _generate(PROMPT, "greedy", "the likeliest token, nine times", "GN-3 GN-4 GN-5", "odd", Text(2, 7), 5, 9),
    _generate(PROMPT, "greedy-left-padding", "positions count the padding: a prompt goes on otherwise than without it",
              "GN-2 GN-3 GN-4", "even", Text(2, 8, "left"), 20, 9),
    _generate(PROMPT, "greedy-end", "one row ends before the other and is filled", "GN-4 GN-5", "even",
              Text(2, 8), 5, 9, eos_token_id=52, pad_token_id=17),
    _generate(PROMPT, "beams", "three beams, the two best returned, left padding", "GN-6 GN-7", "even",
              Text(5, 9, "left"), 1, 8, num_beams=3, num_return_sequences=2),
    _generate(PREFIX, "greedy", "the prefix stands in the cache once, before the first step", "GN-3 GN-4 GN-5", "odd",
              Text(2, 7), 5, 9),
    _generate(PREFIX, "greedy-projected", "20 virtual tokens through a projection", "GN-3 GN-4 PX-1 PX-2", "even",
              Text(2, 7), 20, 8, config=PROJECTED),
    _generate(PREFIX, "greedy-left-padding", "positions skip the padding: a prefix goes on as without it",
              "GN-2 GN-3 GN-4", "even", Text(5, 8, "left"), 2, 9),
    _generate(PREFIX, "greedy-right-padding", "rows go on from behind their padding, positions from 0",
              "GN-2 GN-3 GN-4", "even", Text(2, 8, "right"), 5, 9),
    _generate(PREFIX, "greedy-mask-inferred", "no mask is given, but a token to pad with", "GN-1 GN-2", "odd",
              Text(5, 8, "left", pad=13), 2, 9, pad_token_id=13),
    _generate(PREFIX, "greedy-pad-is-end", "the token to pad with ends rows too: no mask is inferred", "GN-1 GN-5", "odd",
              Text(2, 8, "left", pad=16), 5, 9, eos_token_id=16, pad_token_id=16),
    _generate(PREFIX, "greedy-several-ends", "any of three tokens ends a row; the first of them fills it", "GN-4 GN-5",
              "even", Text(5, 8), 2, 7, eos_token_id=[34, 27, 9]),
    _generate(PREFIX, "greedy-min-new-tokens", "a row does not end before its fifth new token", "GN-4", "even",
              Text(2, 8), 5, 9, eos_token_id=27, pad_token_id=17, min_new_tokens=5),
    _generate(PREFIX, "beams", "three beams, the two best returned: the cache follows the beams", "GN-6 GN-7", "even",
              Text(5, 11), 9, 8, num_beams=3, num_return_sequences=2),
    _generate(PREFIX, "beams-padded", "three beams behind left padding, one returned", "GN-2 GN-3 GN-6", "even",
              Text(2, 11, "left"), 5, 9, num_beams=3),
    _generate(PREFIX, "beams-early-stopping", "rows stop at three finished beams, which are shorter than allowed",
              "GN-7 GN-8", "even", Text(2, 10), 9, 9, num_beams=3, early_stopping=True, eos_token_id=[9, 36],
              pad_token_id=50, length_penalty=2.0),
    _generate(PREFIX, "beams-end", "short beams are penalised less; rows stop when none can improve", "GN-7 GN-8", "even",
              Text(2, 8), 5, 7, num_beams=3, eos_token_id=28, pad_token_id=50,
              length_penalty=-1.0),
    _generate(PREFIX, "beams-never", "long beams are preferred, and rows stop only when none can ever be better",
              "GN-7 GN-8", "even", Text(2, 11, "left"), 7, 8, num_beams=3, early_stopping="never", eos_token_id=36,
              pad_token_id=17, length_penalty=2.0),
    _generate(PREFIX, "greedy-pad-in-text", "the token to pad with stands within the text: the inferred mask has a hole",
              "GN-1 GN-2", "even", Text(5, 8), 2, 9, pad_token_id=14),
    _generate(PREFIX, "greedy-pad-in-masked-text", "a mask is given: the token to pad with is text where it says so",
              "GN-1 GN-2", "even", Text(5, 8, "left"), 2, 9, pad_token_id=21),
    _generate(PREFIX, "greedy-min-new-tokens-several-ends", "none of three ends before the fifth new token", "GN-4", "even",
              Text(5, 8), 2, 9, eos_token_id=[36, 9, 40], pad_token_id=3, min_new_tokens=5),
    _generate(PREFIX, "beams-min-new-tokens", "scores are not normalised again where the ends are forbidden", "GN-4 GN-6",
              "even", Text(2, 8), 5, 10, num_beams=2, eos_token_id=[21, 9, 37], pad_token_id=17, min_new_tokens=3,
              length_penalty=0.5),
    _generate(PREFIX, "beams-pad-is-0", "filled with the end, for 0 is no token to pad with; cut to the longest returned",
              "GN-7", "even", Text(1, 8), 5, 10, num_beams=3, num_return_sequences=2, eos_token_id=27, pad_token_id=0,
              length_penalty=-1.0),
    _generate(PREFIX, "beams-stop-early", "a row closes while the other goes on, and takes nothing more", "GN-8", "even",
              Text(2, 8), 5, 14, num_beams=2, eos_token_id=13, pad_token_id=17, length_penalty=1.5),
    _generate(PREFIX, "beams-never-stops-early", "a row goes on where it would have closed, and a longer beam wins", "GN-8",
              "even", Text(2, 8), 5, 14, num_beams=2, early_stopping="never", eos_token_id=17, pad_token_id=3,
              length_penalty=1.3),
    _generate(PROMPT, "greedy-forced-end", "rows that reach their maximum length end with a forced token", "GN-4 GN-9", "odd",
              Text(2, 7), 5, 9, forced_eos_token_id=11),
    _generate(PROMPT, "greedy-pad-is-end", "the token to pad with ends rows too: no mask is inferred", "GN-1 GN-5", "odd",
              Text(2, 8, "left", pad=16), 5, 9, eos_token_id=16, pad_token_id=16),
    _generate(PROMPT, "greedy-ends-not-at-once", "any of three tokens ends a row, from its fourth new token on", "GN-4 GN-5", "even",
              Text(5, 8), 2, 9, eos_token_id=[13, 16, 27], pad_token_id=3, min_new_tokens=3),
    _generate(PROMPT, "beams-stop-early", "a row closes while the other goes on, and takes nothing more", "GN-8", "even",
              Text(2, 8), 5, 9, num_beams=2, eos_token_id=17, pad_token_id=3, length_penalty=1.5),
)  # fmt: skip
"""Every case of generation."""


@dataclass(frozen=True)
class Again:
    """HF in float64, asked again what a case asks, with something changed."""

    recipe: Recipe
    model: PeftModel
    text: Tensors
    sequences: torch.Tensor
    """What it answers to the case itself."""

    def sequences_with(self, **changes: Any) -> torch.Tensor:
        """HF's answer with other arguments or another mask."""
        mask = {"attention_mask": changes.pop("attention_mask")} if "attention_mask" in changes else {}
        arguments = {**self.recipe.arguments, **changes}
        sequences: torch.Tensor = _run(self.model, {**self.text, **mask}, arguments, torch.float64).sequences
        return sequences

    def differs(self, **changes: Any) -> bool:
        """Whether they lead to other sequences."""
        return not torch.equal(self.sequences_with(**changes), self.sequences)

    def steps_of_rows(self) -> list[int]:
        """How many steps HF searches for each row alone."""
        rows = [
            {name: tensor[i : i + 1] for name, tensor in self.text.items()}
            for i in range(len(self.sequences))
        ]
        return [len(_run(self.model, row, self.recipe.arguments, torch.float64).scores) for row in rows]

    def first_end_alone(self) -> bool:
        """Whether it matters that all ends are forbidden, not the first alone."""
        ids, given = self.text["input_ids"], self.recipe.arguments
        forbidding = MinNewTokensLengthLogitsProcessor(
            ids.shape[1], given["min_new_tokens"], given["eos_token_id"][0]
        )
        return self.differs(min_new_tokens=None, logits_processor=LogitsProcessorList([forbidding]))

    @property
    def no_pad(self) -> torch.Tensor:
        """1 wherever the text has another token than that to pad with."""
        return self.text["input_ids"].ne(self.recipe.arguments["pad_token_id"]).long()


HAPPENS: dict[str, Callable[[Again], bool]] = {
    "greedy-pad-in-text": lambda again: (
        again.differs(attention_mask=torch.ones_like(again.no_pad))
        and again.differs(attention_mask=(again.no_pad.cumsum(1) > 0).long())
    ),
    "greedy-pad-in-masked-text": lambda again: again.differs(
        attention_mask=again.text["attention_mask"] * again.no_pad
    ),
    "greedy-min-new-tokens-several-ends": lambda again: (
        again.differs(min_new_tokens=4) and again.differs(min_new_tokens=6) and again.first_end_alone()
    ),
    "beams-min-new-tokens": lambda again: (
        again.differs(min_new_tokens=None) and again.differs(renormalize_logits=True)
    ),
    "beams-pad-is-0": lambda again: (
        not again.differs(pad_token_id=None)
        and again.differs(pad_token_id=50)
        and again.sequences_with(num_return_sequences=3).shape[1] > again.sequences.shape[1]
    ),
    "beams-stop-early": lambda again: (
        again.differs(early_stopping="never") and len(set(again.steps_of_rows())) > 1
    ),
    "beams-never-stops-early": lambda again: again.differs(early_stopping=False),
}
"""What shows that a case is about what it says, by the case's name."""


def answer_generate(recipe: Recipe) -> Answer:
    """HF's sequences, and the logits or the scores that they were chosen by."""
    assert recipe.text
    generator = torch.Generator().manual_seed(recipe.seed)
    model = _adapted(recipe)
    result = _described(recipe, model)
    parameters = draw_parameters(recipe, model, generator)
    text = draw_text(recipe.text, model.get_base_model().config.vocab_size, generator)
    result.inputs = {**{"parameters." + name: value for name, value in parameters.items()}, **text}
    for dtype in (torch.float64, torch.float32):
        model = _adapted(recipe, dtype)
        set_parameters(model, parameters)
        _store(result, dtype, _generated(model, text, recipe.arguments, dtype))
        if dtype is torch.float64 and recipe.name in HAPPENS:
            again = Again(recipe, model, text, result.double["sequences"])
            assert HAPPENS[recipe.name](again), f"{recipe.id}: what it is about does not happen"
    assert torch.equal(result.double["sequences"], result.single["sequences"]), (
        f"{recipe.id}: HF chooses other tokens in float32: its choices are too close"
    )
    _check(recipe, result.double["sequences"])
    return result


def _run(model: PeftModel, text: Tensors, arguments: dict[str, Any], dtype: torch.dtype) -> Any:
    with arithmetic(dtype), torch.no_grad():
        return model.generate(
            **text,
            do_sample=False,
            return_dict_in_generate=True,
            output_logits=True,
            output_scores=True,
            **arguments,
        )


def _generated(model: PeftModel, text: Tensors, arguments: dict[str, Any], dtype: torch.dtype) -> Tensors:
    output = _run(model, text, arguments, dtype)
    if arguments.get("num_beams", 1) > 1:
        return {"sequences": output.sequences, "sequences_scores": output.sequences_scores}
    return {"generation.logits": torch.stack(output.logits, dim=1), "sequences": output.sequences}


def _check(recipe: Recipe, sequences: torch.Tensor) -> None:
    """What is said to end must end, at different steps in different rows."""
    assert recipe.text
    new = sequences[:, recipe.text.tokens :]
    ends = recipe.arguments["eos_token_id"]
    if ends is None or recipe.name in HAPPENS:
        return
    reached = torch.isin(new, torch.tensor(ends))
    first = torch.where(reached.any(dim=1), reached.int().argmax(dim=1), new.shape[1])
    assert len(first.unique()) > 1, f"{recipe.id}: all rows end together, at {first.tolist()}"
