"""The adapters that the guides write, in the real HF peft. Needs the extra `golden`.

Of `compile.md`: a soft prompt that was compiled into a prefix gives, loaded by HF, the logits that HF computes with the prompt.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy
import pytest
from pages import ROOT, written
from support import need, relative_error
from test_live import TOLERANCE, TrueFloat64

pytestmark = [pytest.mark.live, pytest.mark.filterwarnings("ignore")]

os.environ.setdefault("HF_HUB_OFFLINE", "1")
torch = need("torch")
transformers = need("transformers")
peft = need("peft")


@pytest.fixture(scope="module")
def guide(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the page's names mean when it has run, and where it ran."""
    directory, namespace = tmp_path_factory.mktemp("compile"), dict[str, Any]()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(directory)
        written(ROOT / "specs/guides/compile.md", namespace)
    return {**namespace, "directory": directory}


def logits(base: Path, adapter: Path, ids: Any) -> Any:
    """HF's, in true float64."""
    model = transformers.AutoModelForCausalLM.from_pretrained(
        base, attn_implementation="eager", dtype="float64"
    )
    adapted = peft.PeftModel.from_pretrained(model, adapter).double().eval()
    with torch.no_grad(), TrueFloat64():
        return adapted(input_ids=torch.tensor(ids)).logits.numpy()


def test_hf_loads_a_compiled_prefix_and_says_what_the_prompt_says(guide: dict[str, Any]) -> None:
    """HF rounds the table to float32 when it loads it, whatever is in the file: so does refpeft, here."""
    directory, ids, n = guide["directory"], guide["ids"], guide["n"]
    base, (name,) = directory / "gpt2-odd", guide["compiled"].trainable_parameters()
    rounded = guide["flat"].astype(numpy.float32).astype(numpy.float64)
    guide["loaded"].load_trainable_parameters({name: rounded})
    compiled = logits(base, directory / "compiled", ids)
    assert relative_error(compiled, guide["loaded"](ids).logits) <= TOLERANCE
    guide["soft_prompt"].save_pretrained(directory / "prompt")  # drawn in float32, as HF draws it
    prompted = logits(base, directory / "prompt", ids)
    assert relative_error(prompted[:, n:], guide["wanted"]) <= TOLERANCE
    assert relative_error(compiled, prompted[:, n:]) <= 8 * 2.0**-24  # one rounding of the table, by JG-3
    assert relative_error(compiled, prompted[:, :-n]) > 0.1, "these are other positions"
