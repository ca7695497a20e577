"""Which parameters a base model has, how large each is, and which of HF's tensors holds it."""

from __future__ import annotations

from refpeft.transformer.columns import LAYER, Source
from refpeft.transformer.config import ModelConfig
from refpeft.transformer.families import family_of

HEADS = "heads."
"""Before HF's name of a head of classification, or of the pooler."""


def parameter_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """The canonical names of a base model's parameters and their shapes; a tied head has its own name here too.

    Source: transformers 5.23.0 `models/*/modeling_*.py`, `__init__` of each module.
    """
    return {name: shape for name, (_, shape) in expected_tensors(config).items()}


def _sizes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Module -> the shape of its weight; a bias is as long as the weight's first axis."""
    hidden, inner, width = config.hidden_size, config.intermediate_size, config.embedding_width
    queries = config.num_attention_heads * config.head_dim
    key_values = config.num_key_value_heads * config.head_dim
    return {
        "embeddings.tokens": (config.vocab_size, width),
        "embeddings.positions": (config.position_rows, width if config.token_types else hidden),
        "embeddings.token_types": (config.token_types, width),
        "embeddings.norm": (width if config.token_types else hidden,),
        "embeddings.projection": (hidden, width),
        "output_projection": (width, hidden),
        "relative_bias": (config.relative_buckets, config.num_attention_heads),
        "head": (config.vocab_size, config.output_width),
        "attention.query": (queries, hidden),
        "attention.key": (key_values, hidden),
        "attention.value": (key_values, hidden),
        "attention.output": (hidden, queries),
        "attention.query_norm": (config.head_dim,),
        "attention.key_norm": (config.head_dim,),
        "mlp.gate": (inner, hidden),
        "mlp.up": (inner, hidden),
        "mlp.down": (hidden, inner),
    }


def _shape_of(canonical: str, config: ModelConfig) -> tuple[int, ...]:
    module, kind = canonical.rsplit(".", 1)
    if canonical == "head.bias" and config.kind == "encoder_decoder":
        return (1, config.vocab_size)  # HF keeps it as a row
    for stack in ("encoder", "decoder"):
        if module.startswith(f"{stack}."):
            config, module = config.stack(stack), module.removeprefix(f"{stack}.")
    module = module.removeprefix(LAYER).replace("cross_attention", "attention")
    shape = _sizes(config).get(module, (config.hidden_size,))  # what is left are norms
    return shape if kind == "weight" else shape[:1]


def expected_tensors(config: ModelConfig) -> dict[str, tuple[Source, tuple[int, ...]]]:
    """Canonical name -> where HF keeps it, and the shape it gets.

    Source: transformers 5.23.0 `models/*/modeling_*.py`, `__init__` of each module.
    """
    expected: dict[str, tuple[Source, tuple[int, ...]]] = {}
    for name, source in family_of(config.family).weights(config).items():
        shape = _shape_of(name, config)
        if LAYER not in name:
            expected[name] = (source, shape)
            continue
        layers = config.stack("decoder").num_layers if name.startswith("decoder.") else config.num_layers
        for layer in range(layers):
            located = Source(
                source.name.format(layer=layer), source.transposed, source.fused, source.part, source.optional
            )
            expected[name.format(layer=layer)] = (located, shape)
    for name, shape in _head_shapes(config).items():
        expected[HEADS + name] = (Source(name, optional=True), shape)
    return expected


def _head_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """HF's tensors of the heads of classification, and of the pooler."""
    hidden, width = config.hidden_size, config.output_width
    shapes: dict[str, tuple[int, ...]] = {}
    if config.pooler:
        shapes |= {"pooler.dense.weight": (hidden, hidden), "pooler.dense.bias": (hidden,)}
    for head in family_of(config.family).heads.values():
        classes, module = (2 if head.form == "span" else config.num_labels), head.module
        if head.form == "first_token":
            shapes |= {f"{module}.dense.weight": (hidden, hidden), f"{module}.dense.bias": (hidden,)}
            module += ".out_proj"
        shapes[f"{module}.weight"] = (classes, width)
        if head.bias:
            shapes[f"{module}.bias"] = (classes,)
    return shapes
