"""Twelve more broken copies: where each must be found, written down before any vector was made for them.

A key names the mistake; the value says which cases are asked, and the first stage that must differ in every failing one.
"""

EXPECTED: dict[str, tuple[str, str]] = {
    "trap 21: the mask is extended twice, and cut to length": ("*/inputs/right-padding", "inputs.attention_mask"),
    "trap 24: given positions are shifted twice": (
        "prefix_tuning/inputs/position-ids-shifted", "inputs.position_ids",
    ),
    "trap 25: the caller's positions are honoured beside a prompt": (
        "prompt_tuning/inputs/position-ids-ignored", "inputs.position_ids",
    ),
    "trap 31: prompts multiplied by the root of the width": ("prompt_tuning/inputs/*", "prompt.embeddings"),
    "trap 31: a prefix's keys divided by the root of head_dim": (
        "prefix_tuning/prefix_encode/*", "prefix.layers.0.key",
    ),
    "trap 34: the softmax rounded to bfloat16": (
        "prefix_tuning/forward/stages-*", "decoder.layers.0.attention.weights",
    ),
    "trap 34: the embedding rounded to bfloat16 before the projection": (
        "prefix_tuning/prefix_encode/full-float32-parameters", "prefix.projection_hidden",
    ),
    "trap 35: a projection's own embedding is saved": (
        "prefix_tuning/checkpoint/save-*", "prompt_embeddings",
    ),
    "trap 36: parameters are saved under the network's names": ("*/checkpoint/save-*", "prompt_embeddings"),
    "trap 38: a prefix of zeros is taken for no prefix": ("prefix_tuning/forward/*zero*", "logits"),
    "trap 40: the cache is not reordered with the beams": ("prefix_tuning/generate/beams-e*", "sequences"),
    "trap 41: the prefix is put in front again at each step": (
        "prefix_tuning/generate/greedy-right-padding", "generation.logits",
    ),
    "trap 42: the mask is extended again at each step": (
        "prefix_tuning/generate/greedy-left-padding", "generation.logits",
    ),
}  # fmt: skip
"""Trap 19, decoder rows of an encoder-decoder's prompt, needs an encoder-decoder: no case of GPT-2 can show it."""
