"""HF's models in true float64: what HF computes in float32 whatever the model's format is computed in float64 instead.

Two decisions stay in float32, as they are HF's in every format: T5's buckets of distances, and Falcon's slopes, which are
rounded to bfloat16. Written against HF alone; golden/hf.py, which makes the golden vectors, has its own.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any
from unittest import mock

from support import need

torch = need("torch")
transformers = need("transformers")

from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS  # noqa: E402
from transformers.models.t5.modeling_t5 import T5Attention  # noqa: E402


class TrueFloat64(torch.overrides.TorchFunctionMode):
    """Turns casts to float32, and tensors made as float32, into float64."""

    paused = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self.paused:
            return func(*args, **kwargs)
        if func is torch.Tensor.float:
            return args[0].double()
        args = tuple(torch.float64 if a is torch.float32 else a for a in args)
        return func(*args, **{k: torch.float64 if v is torch.float32 else v for k, v in kwargs.items()})


@contextlib.contextmanager
def true_float64() -> Iterator[None]:
    """`TrueFloat64`, but for T5's buckets."""
    decide = T5Attention._relative_position_bucket

    def in_float32(*args: Any, **kwargs: Any) -> Any:
        mode.paused = True
        try:
            return decide(*args, **kwargs)
        finally:
            mode.paused = False

    patched = mock.patch.object(T5Attention, "_relative_position_bucket", staticmethod(in_float32))
    with patched, TrueFloat64() as mode:
        yield


def as_float64(model: Any) -> Any:
    """The model in float64, in evaluation mode, with rotary frequencies and Gemma's scale of embeddings unrounded."""
    model = model.double().eval()
    with TrueFloat64():
        for module in model.modules():
            if hasattr(module, "rope_type"):
                _widen_frequencies(module)
            if isinstance(getattr(module, "embed_scale", None), torch.Tensor):
                module.embed_scale = torch.tensor(module.scalar_embed_scale, dtype=torch.float64)
    return model


def _widen_frequencies(rotary: Any) -> None:
    """Of a module with one kind of rotation, or with one for each kind of layer."""
    kinds = rotary.rope_type if isinstance(rotary.rope_type, dict) else {None: rotary.rope_type}
    for layer_type, rope_type in kinds.items():
        default = rotary.compute_default_rope_parameters
        compute = default if rope_type == "default" else ROPE_INIT_FUNCTIONS[rope_type]
        frequencies, _ = compute(rotary.config, **({"layer_type": layer_type} if layer_type else {}))
        name = f"{layer_type}_inv_freq" if layer_type else "inv_freq"
        assert getattr(rotary, name).shape == frequencies.shape
        assert frequencies.dtype == torch.float64
        setattr(rotary, name, frequencies)
