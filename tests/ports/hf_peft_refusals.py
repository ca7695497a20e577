"""What HF itself raises on: the questions that the port skips, with HF's message.

A question is skipped only if HF raises, and with a message that is expected for that family, method and task. All else
that is raised is an error of the port.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

PROMPT, PREFIX = "prompt_tuning", "prefix_tuning"
ENCODERS, ENCODER_DECODERS = ("bert", "roberta", "electra"), ("t5", "bart")
MASK_TOO_LONG = (
    r"The size of tensor a \(\d+\) must match the size of tensor b \(\d+\) at non-singleton dimension 3"
)
NO_DECODER_INPUT = (
    r"If no `decoder_input_ids` or `decoder_inputs_embeds` are passed, `input_ids` cannot be `None`"
)
NO_INPUT = "You must specify exactly one of input_ids or inputs_embeds"


@dataclass(frozen=True)
class Refusal:
    """Where HF raises, and what; an empty field means any."""

    message: str
    """A regular expression for the beginning of HF's message."""
    families: tuple[str, ...] = ()
    method: str = ""
    task_type: str = ""
    question: str = ""

    def covers(self, family: str, method: str, task_type: str, question: str) -> bool:
        return (
            (not self.families or family in self.families)
            and self.method in ("", method)
            and self.task_type in ("", task_type)
            and self.question in ("", question)
        )


REFUSALS = (
    # No class of that task: AutoModelFor… does not know the family.
    Refusal(r"Unrecognized configuration class .* for this kind of AutoModel: AutoModelFor\w+"),
    # Labels of the text alone beside logits of the virtual tokens, too.
    Refusal(
        r"Expected input batch_size \(\d+\) to match target batch_size \(\d+\)",
        method=PROMPT,
        task_type="TOKEN_CLS",
    ),
    Refusal(
        r"shape '\[\d+, \d+\]' is invalid for input of size \d+",
        ("bloom", "falcon"),
        PROMPT,
        "TOKEN_CLS",
    ),
    # The last token that is no padding is sought, and there is no padding token.
    Refusal("Cannot handle batch sizes > 1 if no padding token is defined", task_type="SEQ_CLS"),
    # As many outputs as labels are split into a start and an end.
    Refusal(r"too many values to unpack \(expected 2\)", ENCODERS, task_type="QUESTION_ANS"),
    # An encoder as a language model keeps no cache of the text: at the second step there is the prefix alone, and
    # the mask of all.
    Refusal(MASK_TOO_LONG, ENCODERS, PREFIX, "CAUSAL_LM", "generate"),
    # Encoder-decoders in tasks for which HF peft has no model that knows of their decoder.
    Refusal("Passing input embeddings is currently not supported for", ENCODER_DECODERS, PROMPT, "SEQ_CLS"),
    Refusal(MASK_TOO_LONG, ENCODER_DECODERS, PREFIX, "SEQ_CLS"),
    Refusal(r"'\w+' object has no attribute 'cls_layer_name'", ENCODER_DECODERS, PREFIX, "SEQ_CLS"),
    Refusal("Model does not support past key values", ("t5",), PREFIX, "TOKEN_CLS"),
    Refusal(NO_DECODER_INPUT, ENCODER_DECODERS, PROMPT, "QUESTION_ANS"),
    Refusal(MASK_TOO_LONG, ENCODER_DECODERS, PREFIX, "QUESTION_ANS"),
    Refusal("'Seq2SeqModelOutput' object has no attribute", ("bart",), PREFIX, "QUESTION_ANS"),
    Refusal(NO_DECODER_INPUT, ("bart",), PROMPT, "FEATURE_EXTRACTION"),
    Refusal(MASK_TOO_LONG, ENCODER_DECODERS, PREFIX, "FEATURE_EXTRACTION"),
    # Neither labels nor decoder_input_ids.
    Refusal(NO_INPUT, ("t5",)),
    Refusal(NO_DECODER_INPUT, ("bart",), PROMPT, "SEQ_2_SEQ_LM"),
    # Sizes that HF fills in and that do not fit the base: embeddings of another width than hidden states, …
    Refusal("Sizes of tensors must match except in dimension 1", ("opt", "electra"), PROMPT),
    # … keys and values of fewer heads than queries under a name that HF peft does not read, …
    Refusal("Sizes of tensors must match except in dimension 2", ("falcon", "t5", "bart"), PREFIX),
    # … a width that is not what the heads have together, and a decoder with more layers than the encoder.
    Refusal(r"shape '\[[\d, ]+\]' is invalid for input of size \d+", ("t5",), PREFIX),
    Refusal("list index out of range", ENCODER_DECODERS, PREFIX),
)


def refused(error: Exception, family: str, method: str, task_type: str, question: str) -> str | None:
    """HF's message in one line, if it is known that HF raises there."""
    shown = str(error).partition("\n")[0]
    for refusal in covering(family, method, task_type, question):
        if re.match(refusal.message, shown):
            return f"HF raises {type(error).__name__}: {shown}"
    return None


def covering(family: str, method: str, task_type: str, question: str) -> Iterator[Refusal]:
    """All that is known of HF there."""
    return (refusal for refusal in REFUSALS if refusal.covers(family, method, task_type, question))
