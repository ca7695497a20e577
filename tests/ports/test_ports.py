"""Real ports, judged: HF peft itself, a port in JavaScript, twelve broken copies of it, and the README's example.

Where each broken copy must be found was written down before it was run: the first stage of clause JG-6.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from ports.broken import EXPECTED
from support import need

from refpeft.oracle.budget import PROFILES
from refpeft.oracle.judge import Results, Selection, summarise
from refpeft.oracle.port import ProcessPort
from refpeft.oracle.run import judge
from refpeft.oracle.vectors import all_vectors, matches

HERE = Path(__file__).parent
ROOT = HERE.parent.parent


def judged(command: list[str], work: Path, profiles: tuple[str, ...] = (), pattern: str = "") -> Results:
    """What the oracle says of a port, asked in its profiles, or in some of them."""
    vectors = [v for v in all_vectors() if not pattern or matches(v.case.id, f"*{pattern}")]
    port = ProcessPort(command, timeout=120)
    try:
        wanted = profiles or tuple(port.abilities.profiles)
        selection = Selection(vectors, [PROFILES[name] for name in wanted])
        return summarise(port, selection, list(judge(port, selection, work, None)))
    finally:
        port.close()


def failures(results: Results) -> list[tuple[str, str, str]]:
    """Case, verdict and first difference of everything that did not conform."""
    return [
        (case.case, case.verdict, case.first.name if case.first else case.message)
        for case in results.cases
        if case.verdict not in ("CONFORMS", "SKIPPED")
    ]


# ---------------------------------------------------------------- honest ports


@pytest.mark.live
def test_hf_peft_conforms_to_its_own_vectors(tmp_path: Path) -> None:
    """In plain float32, after `.double()` with HF's float32 islands, and in bfloat16."""
    for module in ("torch", "transformers", "peft"):
        need(module)
    results = judged([sys.executable, str(HERE / "hf_peft.py")], tmp_path)
    assert failures(results) == []
    assert results.profiles == ["float32", "float64-islands", "bfloat16"]
    undecided = [case for case in results.cases if case.verdict == "SKIPPED"]
    assert all("decides nothing" in c.message or "nothing is decided" in c.message for c in undecided)
    assert {case.profile for case in undecided} == {"bfloat16"}
    assert len(undecided) < 50 < results.summary.counts["CONFORMS"] / 30


def test_the_javascript_port_conforms_and_is_float64_exact(tmp_path: Path) -> None:
    results = judged([need("node"), str(HERE / "node" / "port.mjs")], tmp_path)
    assert failures(results) == []
    assert results.summary.verdict == "CONFORMS"
    assert results.summary.float64_exact
    skipped = {case.question for case in results.cases if case.verdict == "SKIPPED"}
    assert skipped == {"init"}, "only torch's random numbers are beyond it"


# ---------------------------------------------------------------- twelve broken copies

BROKEN: dict[str, tuple[str, str, str, str]] = {
    "trap 1: all keys, then all values": (
        "[2 * layer, 2 * layer + 1];", "[layer, layers + layer];",
        "prefix_tuning/prefix_encode/*", "prefix.layers.0.value",
    ),
    "trap 2: values before keys": (
        "const [keyBlock, valueBlock] = blocks;", "const [valueBlock, keyBlock] = blocks;",
        "prefix_tuning/prefix_encode/*", "prefix.layers.0.key",
    ),
    "trap 3: head_dim outermost within a block": (
        "const within = head * headDim + channel;", "const within = channel * heads + head;",
        "prefix_tuning/prefix_encode/*", "prefix.layers.0.key",
    ),
    "trap 5: the virtual token is not the row": (
        "const cell = token * width + block * size + within;", "const cell = (block * n + token) * size + within;",
        "prefix_tuning/prefix_encode/*", "prefix.layers.0.key",
    ),
    "trap 11: relu for tanh": (
        "const activation = map(hidden, Math.tanh);", "const activation = map(hidden, (x) => Math.max(x, 0));",
        "prefix_tuning/forward/stages-projected", "prefix.projection_activation",
    ),
    "trap 12: a square weight read as inputs × outputs": (
        'const first = transpose(parameter("0.weight"));',
        'const first = { shape: [...parameter("0.weight").shape].reverse(), data: parameter("0.weight").data };',
        "prefix_tuning/*square", "prefix.projection_hidden",
    ),
    "trap 15: TEXT init padded with the last token": (
        "ids[row % ids.length])", "ids[Math.min(row, ids.length - 1)])",
        "prompt_tuning/init/text-repeated", "parameters.prompt_encoder.embedding.weight",
    ),
    "trap 16: TEXT init without special tokens": (
        "const textIds = [...inputs.text_token_ids.data];",
        ('const special = JSON.parse(readFileSync(join(model, "tokenizer.json"), "utf8")).added_tokens.map((t) => t.id);\n'
         "const textIds = [...inputs.text_token_ids.data].filter((id) => !special.includes(id));"),
        "prompt_tuning/init/text-[ef]*", "parameters.prompt_encoder.embedding.weight",
    ),
    "trap 20: the mask is not extended": (
        "const n = virtual; // decision: the mask", "const n = 0; // decision: the mask",
        "prefix_tuning/inputs/*", "inputs.attention_mask",
    ),
    "trap 23: positions begin at 0 beside a prefix": (
        "const offset = n;", "const offset = 0;",
        "prefix_tuning/forward/*padding", "inputs.position_ids",
    ),
    "trap 33: the mean of a prompt's loss over m − 1 terms": (
        "const from = 0;", "const from = prefix ? 0 : config.num_virtual_tokens;",
        "prompt_tuning/forward/*padding", "loss",
    ),
    "trap 37: a folded projection put through tanh again": (
        "const flat = runsNetwork ? project(table, parameters, record) : table;",
        ("const flat = runsNetwork ? project(table, parameters, record)"
         " : config.prefix_projection ? map(table, Math.tanh) : table;"),
        "prefix_tuning/checkpoint/load-folded*", "prefix.flat",
    ),
}  # fmt: skip
"""What is changed in the port, and where it must be found: cases, and the first stage that differs."""

REVERSED = ("const token = position;", "const token = n - 1 - position;")
"""Trap 8: the virtual tokens in reverse."""


PORT, MODEL, SEARCH = "port.mjs", "gpt2.mjs", "generate.mjs"


def broken_copy(directory: Path, *changes: tuple[str, str, str]) -> list[str]:
    """The JavaScript port with some lines changed, each of which stands once in its file, as a command."""
    sources = {path.name: path.read_text(encoding="utf-8") for path in (HERE / "node").glob("*.mjs")}
    for name, old, new in changes:
        assert sources[name].count(old) == 1, f"{old!r} must stand once in {name}"
        sources[name] = sources[name].replace(old, new)
    for name, source in sources.items():
        (directory / name).write_text(source, encoding="utf-8")
    return [need("node"), str(directory / PORT)]


@pytest.mark.parametrize("trap", BROKEN)
def test_a_broken_copy_is_found_at_the_expected_stage(trap: str, tmp_path: Path) -> None:
    """In float32 and in float64; in every failing case that is about the mistake, first at that stage."""
    old, new, pattern, stage = BROKEN[trap]
    (tmp_path / "port").mkdir()
    results = judged(broken_copy(tmp_path / "port", (PORT, old, new)), tmp_path / "work", pattern=pattern)
    assert results.summary.verdict == "NONCONFORMING"
    for profile in ("float32", "float64"):
        found = [
            c for c in results.cases if c.profile == profile and c.verdict not in ("CONFORMS", "SKIPPED")
        ]
        assert {c.verdict for c in found} == {"NONCONFORMING"}
        assert {c.first.name for c in found if c.first} == {stage}


def test_reversed_slots_are_visible_in_the_cache_and_invisible_in_the_logits(tmp_path: Path) -> None:
    """Trap 8. Every failure is at a layer's prefix keys; with only logits and loss to go by, nothing is seen."""
    (tmp_path / "port").mkdir()
    command = broken_copy(tmp_path / "port", (PORT, *REVERSED))
    results = judged(command, tmp_path / "work", pattern="prefix_tuning/[!g]*")
    found = [c for c in results.cases if c.verdict == "NONCONFORMING"]
    assert {c.first.name for c in found if c.first} == {"prefix.layers.0.key"}
    assert {c.question for c in found} == {"prefix.encode", "forward"}
    for case in found:
        ends = {d.name: d.ok for d in case.differences if d.name in ("logits", "loss")}
        assert all(ends.values()), "the logits do not depend on the order of the slots"
    forward = [c for c in results.cases if c.question == "forward" and c.method == "prefix_tuning"]
    assert any(c.verdict == "CONFORMS" for c in forward)


# ---------------------------------------------------------------- twelve more, their verdicts written down before

BFLOAT16 = (
    "((x) => { const f = Float32Array.of(x), u = new Uint32Array(f.buffer);"
    " u[0] = (u[0] + 0x7fff + ((u[0] >> 16) & 1)) & 0xffff0000; return f[0]; })"
)
"""In JavaScript: the nearest bfloat16."""
ENCODED = "const past = prefix ? encodePrefix(config, parameters, inputs.input_ids.shape[0], record) : null;"
ONCE = "const past = first && prefix ? encodePrefix(config, this.parameters, rows, record) : this.past; // decision: once"

CHANGES: dict[str, tuple[tuple[str, str, str], ...]] = {
    "trap 21: the mask is extended twice, and cut to length": (
        (PORT, "(k < n ? 1 : mask.data[b * m + k - n])", "(k < 2 * n ? 1 : mask.data[b * m + k - 2 * n])"),
    ),
    "trap 24: given positions are shifted twice": (
        (PORT, "offset + (given ? given.data[b * m + t] : t)", "offset + (given ? n + given.data[b * m + t] : t)"),
    ),
    "trap 25: the caller's positions are honoured beside a prompt": (
        (PORT, "const positions = prompt ? promptPositions(batch, query) :",
         ('const given = inputs.position_ids, honoured = (b, q) => q < n ? q : n + given.data[b * (query - n) + q - n];\n'
         'const positions = prompt ? given ? build([batch, query], honoured, "I64") : promptPositions(batch, query) :')),
    ),
    "trap 31: prompts multiplied by the root of the width": (
        (PORT, "(b, t, h) => table.data[t * hidden + h]);", "(b, t, h) => Math.sqrt(hidden) * table.data[t * hidden + h]);"),
    ),
    "trap 31: a prefix's keys divided by the root of head_dim": (
        (PORT, ".key`, prefixBlock(config, flat, keyBlock, batch));",
         (".key`, map(prefixBlock(config, flat, keyBlock, batch),"
         " (x) => x / Math.sqrt(config.token_dim / config.num_attention_heads)));")),
    ),
    "trap 34: the softmax rounded to bfloat16": (
        (MODEL, "weights[begin + i] = Math.exp(x - largest) / sum;",
         f"weights[begin + i] = {BFLOAT16}(Math.exp(x - largest) / sum);"),
    ),
    "trap 34: the embedding rounded to bfloat16 before the projection": (
        (PORT, 'affine(table, first, parameter("0.bias"))', f'affine(map(table, {BFLOAT16}), first, parameter("0.bias"))'),
    ),
    "trap 35: a projection's own embedding is saved": (
        (PORT, "const prompt_embeddings = prompt ? parameters[TABLE] : flatPrefix(config, parameters, keep);",
         "const prompt_embeddings = parameters[TABLE];"),
    ),
    "trap 36: parameters are saved under the network's names": (
        (PORT, '"adapter_model.safetensors"), { prompt_embeddings },', '"adapter_model.safetensors"), parameters,'),
    ),
    "trap 38: a prefix of zeros is taken for no prefix": (
        (PORT, ENCODED, ENCODED.replace("const past", "let past") + """
  if (past?.every(({ key, value }) => !key.data.some(Boolean) && !value.data.some(Boolean))) {
    past = null;
    question = { ...question, config: { ...config, num_virtual_tokens: 0 } };
  }"""),
    ),
    "trap 40: the cache is not reordered with the beams": (
        (PORT, "const taken = order;", "const taken = order.map((_, row) => row);"),
    ),
    "trap 41: the prefix is put in front again at each step": (
        (MODEL, "function concatenateKeys", "export function concatenateKeys"),
        (PORT, "import { Gpt2,", "import { concatenateKeys, Gpt2,"),
        (PORT, ONCE, """const prefixed = prefix ? encodePrefix(config, this.parameters, rows, record) : null;
    const past = prefixed && this.past ? prefixed.map(({ key, value }, layer) => ({
      key: concatenateKeys(key, this.past[layer].key), value: concatenateKeys(value, this.past[layer].value),
    })) : prefixed ?? this.past;"""),
    ),
    "trap 42: the mask is extended again at each step": (
        (PORT, "const textMask = this.mask;", "const textMask = mask;"),
    ),
}  # fmt: skip
"""What is changed in the port."""

SHIFTED = "trap 24: given positions are shifted twice"
DROPPED = "trap 38: a prefix of zeros is taken for no prefix"
REORDERED = "trap 40: the cache is not reordered with the beams"
MISSES: dict[str, tuple[str, set[str]]] = {
    # Its 20 virtual tokens, counted twice, lead beyond the position table: any port fails there, before it can answer.
    SHIFTED: ("ERRORED", set()),
    # A port that drops a prefix shows it in the inputs that it prepares; at the logits only if it answers nothing else.
    DROPPED: ("NONCONFORMING", {"inputs.attention_mask"}),
    # In one of two cases the best beams come out with the same tokens all the same, and only their scores are wrong.
    REORDERED: ("NONCONFORMING", {"sequences", "sequences_scores"}),
}
"""Found otherwise than was written down: the verdict, and the first tensors that differ."""


def found_first(results: Results) -> dict[str, set[str]]:
    """For each profile, the first tensor that differs in each case that does not conform."""
    return {
        profile: {
            c.first.name
            for c in results.cases
            if c.verdict == "NONCONFORMING" and c.profile == profile and c.first
        }
        for profile in results.profiles
    }


def test_every_mistake_written_down_is_made() -> None:
    assert CHANGES.keys() == EXPECTED.keys()
    assert MISSES.keys() <= EXPECTED.keys()


@pytest.mark.parametrize("trap", EXPECTED)
def test_another_broken_copy_is_found_where_it_was_written_down(trap: str, tmp_path: Path) -> None:
    """In float32 and in float64, and nothing worse than a wrong answer."""
    pattern, stage = EXPECTED[trap]
    (tmp_path / "port").mkdir()
    results = judged(broken_copy(tmp_path / "port", *CHANGES[trap]), tmp_path / "work", pattern=pattern)
    verdict, expected = MISSES.get(trap, ("NONCONFORMING", {stage}))
    assert {case.verdict for case in results.cases} - {"CONFORMS", "SKIPPED"} == {verdict}
    assert found_first(results) == {"float32": expected, "float64": expected}


def test_positions_shifted_twice_are_found_where_the_table_has_room(tmp_path: Path) -> None:
    (tmp_path / "port").mkdir()
    command = broken_copy(tmp_path / "port", *CHANGES[SHIFTED])
    results = judged(command, tmp_path / "work", pattern="prefix_tuning/inputs/position-ids-with-room")
    stage = EXPECTED[SHIFTED][1]
    assert found_first(results) == {"float32": {stage}, "float64": {stage}}


def test_a_dropped_prefix_is_found_at_the_logits_of_a_port_that_answers_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "port").mkdir()
    changes = CHANGES[DROPPED]
    ends_only = (
        PORT,
        "(stages[name] = tensor);",
        "(/logits|loss/.test(name) ? stages[name] = tensor : tensor);",
    )
    pattern, stage = EXPECTED[DROPPED]
    results = judged(broken_copy(tmp_path / "port", *changes, ends_only), tmp_path / "work", pattern=pattern)
    assert found_first(results) == {"float32": {stage}, "float64": {stage}}


# ---------------------------------------------------------------- the README's example


def readme_example(name: str) -> str:
    """The code block that the README marks as an example of that name."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    found = re.search(rf"<!-- example: {re.escape(name)} -->\n```python\n(.*?)```", text, re.DOTALL)
    assert found, f"README.md has no example {name}"
    return found[1]


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("", "", None),
        ("rows[2 * layer]\n", "rows[layer]\n", "prefix.layers.1.key"),
        ("rows[2 * layer + 1]", "rows[layers + layer]", "prefix.layers.0.value"),
        ("np.tanh", "np.abs", "prefix.layers.0.key"),
    ],
)
def test_the_readme_example_conforms_until_it_is_broken(
    tmp_path: Path, old: str, new: str, expected: str | None
) -> None:
    """Run as the README says, through the command line, in its own process."""
    (tmp_path / "my_port.py").write_text(readme_example("my_port.py").replace(old, new), encoding="utf-8")
    command = [sys.executable, "-m", "refpeft", "check", "--", sys.executable, "my_port.py"]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    results = json.loads(run.stdout)
    assert results["implementation"]["name"] == "my-port"
    firsts = {case["first"]["name"] for case in results["cases"] if "first" in case}
    if expected is None:
        assert (run.returncode, results["summary"]["verdict"], firsts) == (0, "CONFORMS", set())
    else:
        assert (run.returncode, results["summary"]["verdict"], firsts) == (1, "NONCONFORMING", {expected})
        directory = tmp_path / next(case["reproduce"] for case in results["cases"] if "first" in case)
        shown = subprocess.run(
            [sys.executable, "compare.py"], cwd=directory, capture_output=True, text=True, check=True
        )
        assert expected in shown.stdout


def test_the_readme_example_passes_smoke(tmp_path: Path) -> None:
    (tmp_path / "my_port.py").write_text(readme_example("my_port.py"), encoding="utf-8")
    command = [
        sys.executable,
        "-m",
        "refpeft",
        "smoke",
        "--format",
        "pretty",
        "--",
        sys.executable,
        "my_port.py",
    ]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert run.returncode == 0
    assert run.stdout.splitlines()[1].endswith("tensors")
