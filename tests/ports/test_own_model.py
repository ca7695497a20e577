"""Real ports on somebody's own model: HF peft conforms; broken copies are found where golden vectors find them."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from oracle.own_models import KINDS, adapter_directory, base_directory
from support import need

HERE = Path(__file__).parent


def _test_ports() -> Any:
    spec = importlib.util.spec_from_file_location("own_test_ports", HERE / "test_ports.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


PORTS = _test_ports()
SHOWN_BY = {
    "trap 1: all keys, then all values": "prefix",
    "trap 2: values before keys": "folded",
    "trap 3: head_dim outermost within a block": "prefix",
    "trap 5: the virtual token is not the row": "prefix",
    "trap 20: the mask is not extended": "prompt",
    "trap 23: positions begin at 0 beside a prefix": "prefix",
    "trap 33: the mean of a prompt's loss over m − 1 terms": "prompt",
    "trap 37: a folded projection put through tanh again": "folded",
}
"""The broken copies that a saved adapter can show, and a kind that does. A network that was folded shows nothing of traps
11 and 12, and no adapter shows how it was initialised (15 and 16)."""


def checked(work: Path, base: Path, adapter: Path, *port: str) -> tuple[int, Any]:
    """Exit status and results of `refpeft check --base`."""
    command = [sys.executable, "-m", "refpeft", "check", "--base", str(base), "--adapter", str(adapter), "--"]
    run = subprocess.run([*command, *port], cwd=work, capture_output=True, text=True, check=False)
    assert run.stdout, run.stderr
    return run.returncode, json.loads(run.stdout)


def test_every_broken_copy_is_placed() -> None:
    beyond = {"trap 11", "trap 12", "trap 15", "trap 16"}
    assert {trap.split(":")[0] for trap in PORTS.BROKEN} == {trap.split(":")[0] for trap in SHOWN_BY} | beyond


@pytest.mark.parametrize("kind", KINDS)
def test_the_javascript_port_conforms_and_is_float64_exact(tmp_path: Path, kind: str) -> None:
    adapter = adapter_directory(tmp_path / "adapter", kind)
    status, results = checked(
        tmp_path, base_directory(), adapter, need("node"), str(HERE / "node" / "port.mjs")
    )
    assert (status, results["summary"]["verdict"], results["summary"]["float64_exact"]) == (
        0,
        "CONFORMS",
        True,
    )
    assert results["not_asked"] == [f"own/{results['cases'][0]['method']}/gradients/labels"]


@pytest.mark.parametrize("trap", SHOWN_BY)
def test_a_broken_copy_is_found_at_the_stage_that_golden_vectors_find(trap: str, tmp_path: Path) -> None:
    old, new, _, stage = PORTS.BROKEN[trap]
    (tmp_path / "port").mkdir()
    adapter = adapter_directory(tmp_path / "adapter", SHOWN_BY[trap])
    status, results = checked(
        tmp_path, base_directory(), adapter, *PORTS.broken_copy(tmp_path / "port", (PORTS.PORT, old, new))
    )
    failed = [case for case in results["cases"] if case["verdict"] not in ("CONFORMS", "SKIPPED")]
    assert status == 1
    assert {case["verdict"] for case in failed} == {"NONCONFORMING"}
    assert {case["first"]["name"] for case in failed} == {stage}
    assert {case["profile"] for case in failed} == {"float32", "float64"}


@pytest.mark.live
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", KINDS)
def test_hf_peft_conforms_on_an_adapter_that_it_saved(tmp_path: Path, kind: str) -> None:
    """In plain float32, and after `.double()`; gradients too."""
    torch, transformers, peft = need("torch"), need("transformers"), need("peft")
    torch.manual_seed(0)
    base = transformers.AutoModelForCausalLM.from_pretrained(base_directory("gpt2-even"))
    fields = {"task_type": "CAUSAL_LM", "num_virtual_tokens": 5}
    if kind == "prompt":
        config = peft.PromptTuningConfig(**fields)
    else:
        config = peft.PrefixTuningConfig(**fields, prefix_projection=kind == "folded")
    peft.get_peft_model(base, config).save_pretrained(tmp_path / "adapter")
    port = [sys.executable, str(HERE / "hf_peft.py")]
    status, results = checked(tmp_path, base_directory("gpt2-even"), tmp_path / "adapter", *port)
    assert [case for case in results["cases"] if case["verdict"] != "CONFORMS"] == []
    assert (status, results["profiles"]) == (0, ["float32", "float64-islands"]), (
        "bfloat16 is left out of one's own model"
    )
    assert {case["level"] for case in results["cases"]} >= {"config", "model", "gradients", "checkpoint"}
