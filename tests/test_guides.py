"""The guides of specs/guides/: their adapters conform, what they quote is what is printed."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from pages import ROOT, written
from support import need

GUIDES = sorted((Path(__file__).resolve().parents[1] / "specs" / "guides").glob("*.md"))
HERE = GUIDES[0].parent
PLAYED = [
    ROOT / "README.md",
    *(HERE / f"{name}.md" for name in ("tune", "compile", "load", "find-the-bug")),
]
"""Pages that do what they say, from their first block to the last; what the others show is in the tests below."""
MARKED = re.compile(r"<!-- (?:example|output): (.+?) -->\n```\w+\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LONGEST = 80
"""Lines of an adapter."""

LIBRARY = '''
"""Somebody's library, with the two functions that the guide calls."""

import numpy
import refpeft
from refpeft import prefix_encoder
from refpeft.config import PromptLearningConfig


def key_values(parameters, config):
    config = PromptLearningConfig.from_dict(config)
    pairs = prefix_encoder.forward(parameters, config, 1)
    return [tuple(numpy.transpose(half[0], (1, 0, 2)) for half in pair) for pair in pairs]


def forward(directory, config, parameters, **text):
    base = refpeft.load_base_model(directory, dtype="float32")
    model = refpeft.get_peft_model(base, PromptLearningConfig.from_dict(config), seed=0)
    model.load_trainable_parameters(parameters)
    output = model(**text)
    return output.logits, output.loss
'''
KEY_VALUES = """
export function keyValues(parameters, config) {
  if (config.prefix_projection && !config.inference_mode) throw new Error("no projection yet");
  const { shape: [virtual, width], data } = parameters["embedding.weight"];
  const heads = config.num_attention_heads, dim = config.token_dim / heads, layers = config.num_layers;
  const block = (number) => {
    const cut = new data.constructor(virtual * heads * dim);
    for (let token = 0; token < virtual; token++)
      for (let i = 0; i < heads * dim; i++) cut[token * heads * dim + i] = data[token * width + number * heads * dim + i];
    return { shape: [virtual, heads, dim], data: cut };
  };
  return Array.from({ length: layers }, (_, layer) => ({ key: block(2 * layer), value: block(2 * layer + 1) }));
}
"""


def marked(page: str) -> dict[str, str]:
    """The blocks of a guide that have a name."""
    return dict(MARKED.findall((HERE / f"{page}.md").read_text(encoding="utf-8")))


def refpeft(directory: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(directory), str(HERE.parents[1]), str(Path(__file__).parent)])
    return subprocess.run(
        [sys.executable, "-m", "refpeft", *arguments],
        cwd=directory,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )


def summary(result: subprocess.CompletedProcess[str]) -> dict[str, int]:
    assert result.stdout, result.stderr
    counts: dict[str, int] = json.loads(result.stdout)["summary"]["counts"]
    return counts


@pytest.mark.parametrize("page", PLAYED, ids=lambda page: page.stem)
def test_a_page_does_what_it_says(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert written(page) == page.read_text(encoding="utf-8"), f"python tests/pages.py {page}"


def test_adapters_are_short() -> None:
    blocks = {
        name: text.count("\n") for page in GUIDES for name, text in marked(page.stem).items() if "." in name
    }
    assert set(blocks) >= {"adapter.py", "answers.mjs", "prefix.rs", "answer.rs", "my_port.py"}
    assert {name: lines for name, lines in blocks.items() if lines > LONGEST} == {}


def test_the_python_adapter_conforms(tmp_path: Path) -> None:
    (tmp_path / "adapter.py").write_text(marked("python")["adapter.py"], encoding="utf-8")
    (tmp_path / "my_library.py").write_text(LIBRARY, encoding="utf-8")
    asked = ("-k", "encode/odd-layers", "-k", "encode/projected", "-k", "forward/left-padding")
    counts = summary(refpeft(tmp_path, "check", *asked, "adapter:Port"))
    assert list(counts) == ["CONFORMS"]
    assert counts["CONFORMS"] >= 5
    (tmp_path / "my_library.py").write_text(
        LIBRARY.replace("half in pair)", "half in pair[::-1])"), encoding="utf-8"
    )
    wrong = summary(refpeft(tmp_path, "check", "-k", "encode/odd-layers", "adapter:Port"))
    assert wrong == {"NONCONFORMING": 1}


def test_the_javascript_answers_conform(tmp_path: Path) -> None:
    node, port = need("node"), tmp_path / "my" / "port.mjs"
    assert refpeft(tmp_path, "init", "javascript", "my").returncode == 0
    text = port.read_text(encoding="utf-8")
    imported, _, answers = marked("javascript")["answers.mjs"].partition("\n")
    text = text.replace(
        "const ANSWERS = new Map([\n",
        f'{answers}\nconst ANSWERS = new Map([\n  ["prefix.encode", prefixEncode],\n',
    )
    text = text.replace('  ["prefix.encode", "PX-4"],\n', "")
    port.write_text(f"{imported}\n{text}", encoding="utf-8")
    (tmp_path / "my/my-library.mjs").write_text(KEY_VALUES, encoding="utf-8")
    counts = summary(
        refpeft(tmp_path / "my", "check", "-k", "*prefix_encode/*-layers", "--", node, "port.mjs")
    )
    assert counts == {"CONFORMS": 4}


def test_the_rust_function_cuts_as_refpeft_does(tmp_path: Path) -> None:
    rustc = need("rustc")
    main = """
        fn main() {
            let flat: Vec<f64> = (0..120).map(f64::from).collect();
            for (name, data) in key_values(&flat, 2, 3, 2, 2) { println!("{name} {data:?}"); }
        }
    """
    (tmp_path / "main.rs").write_text(marked("rust")["prefix.rs"] + main, encoding="utf-8")
    subprocess.run([rustc, "-o", "main", "main.rs"], cwd=tmp_path, check=True, capture_output=True)
    printed = subprocess.run([tmp_path / "main"], capture_output=True, text=True, check=True).stdout
    found = {line.partition(" ")[0]: json.loads(line.partition(" ")[2]) for line in printed.splitlines()}

    import numpy

    from refpeft import prefix_encoder
    from refpeft.config import PrefixTuningConfig

    config = PrefixTuningConfig(
        task_type="CAUSAL_LM", num_virtual_tokens=5, num_layers=2, num_attention_heads=3, token_dim=6
    )
    flat = {"prompt_encoder.embedding.weight": numpy.arange(120.0).reshape(5, 24)}
    expected = {
        f"prefix.layers.{layer}.{half}": array.ravel().tolist()
        for layer, pair in enumerate(prefix_encoder.forward(flat, config, 2))
        for half, array in zip(("key", "value"), pair, strict=True)
    }
    assert found == expected


@pytest.fixture(scope="module")
def failed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """Where the failing port of the guide was judged, and what was printed."""
    directory = tmp_path_factory.mktemp("failed")
    asked = (
        "check",
        "--format",
        "pretty",
        "-k",
        "prefix_encode/odd-layers",
        "oracle.fake_ports:KeysForValues",
    )
    return directory, refpeft(directory, *asked).stdout.splitlines()


def test_what_is_quoted_is_what_is_printed(failed: tuple[Path, list[str]]) -> None:
    directory, printed = failed
    blocks = marked("my-port-fails")
    quoted = blocks["refpeft check -k prefix_encode/odd-layers PORT"].splitlines()
    assert [line.rstrip() for line in printed if line.strip()][4:-1] == quoted
    where = directory / ".refpeft/failures/prefix_tuning.prefix_encode.odd-layers.float32"
    compared = subprocess.run(
        [sys.executable, "compare.py"], cwd=where, capture_output=True, text=True, check=True
    ).stdout
    assert compared.splitlines()[:3] == blocks["compare.py"].splitlines()
