"""Broken ports whose mistakes must be named: what is changed, which cases are asked, the first stage that differs, the mutant.

Written from the mutants' descriptions, in the ports' own languages, before any of them was run. Those without a mutant carry
a mistake that is not among them: it must be found at the right stage, and get no wrong name.

    python tests/ports/named.py            runs what can be run here, and prints the table
"""

from __future__ import annotations

import importlib.util
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Broken:
    """One broken port."""

    changes: tuple[tuple[str, str, str], ...]
    """File, a text that stands in it once, and what it becomes."""
    pattern: str
    """Which cases are asked."""
    stage: str
    """The first tensor that differs in the first failing case."""
    mutant: str = ""
    """The mistake that must be named; empty if it has no name."""
    also: tuple[str, ...] = ()
    """Mistakes that explain the same answers as well, and may be named beside it."""


PORT, MODEL, SEARCH = "port.mjs", "gpt2.mjs", "generate.mjs"
_BLOCKS = "const blocks = [2 * layer, 2 * layer + 1];"
_CELL = "const cell = token * width + block * size + within;"
_TANH = "const activation = map(hidden, Math.tanh);"
_SECOND = 'return affine(activation, transpose(parameter("2.weight")), parameter("2.bias"));'
_VISIBLE = "k <= past + q && (!mask || (k < width && mask.data[b * width + k] !== 0)) ? 1 : 0"
_ERF = (
    "((x) => { const t = 1 / (1 + Math.abs(x) / 2); let s = 0, term = x; for (let n = 0; n < 200; n++)"
    " { s += term / (2 * n + 1); term *= -x * x / (n + 1); } return Math.abs(x) > 6 ? Math.sign(x) : 2 / Math.sqrt(Math.PI) * s; })"
)
_ENCODE, _STAGES = "prefix_tuning/prefix_encode/*", "prefix_tuning/forward/stages-*"

JAVASCRIPT: dict[str, Broken] = {
    "layers in reverse": Broken(
        ((PORT, _BLOCKS, "const mirrored = 2 * (layers - 1 - layer), blocks = [mirrored, mirrored + 1];"),),
        _ENCODE, "prefix.layers.0.key", "M05",
    ),
    "heads and tokens reshaped, not transposed": Broken(
        ((PORT, _CELL, (
            "const at = (head * n + token) * headDim + channel;\n"
            "    const cell = Math.floor(at / size) * width + block * size + (at % size);"
        )),),
        _ENCODE, "prefix.layers.0.key", "M04",
    ),
    "the index of the layer forgotten": Broken(
        ((PORT, _BLOCKS, "const blocks = [0, 1];"),), _ENCODE, "prefix.layers.1.key", "M10",
    ),
    "one tensor for keys and values": Broken(
        ((PORT, _BLOCKS, "const blocks = [2 * layer, 2 * layer];"),), _ENCODE, "prefix.layers.0.value", "M11",
    ),
    "no activation in the projection": Broken(
        ((PORT, _TANH, "const activation = map(hidden, (x) => x);"),), _ENCODE, "prefix.projection_activation", "M71",
    ),
    "tanh at the end of the projection": Broken(
        (
            (PORT, _TANH, "const activation = hidden;"),
            (PORT, _SECOND, _SECOND.replace("return ", "return map(").replace(";", ", Math.tanh);")),
        ),
        _ENCODE, "prefix.projection_activation", "M17",
    ),
    "the second bias of the projection forgotten": Broken(
        ((PORT, _SECOND, _SECOND.replace('parameter("2.bias")', 'map(parameter("2.bias"), () => 0)')),),
        _ENCODE, "prefix.flat", "M72",
    ),
    "the prompt as a suffix": Broken(
        ((PORT, (
            "t < n ? prompt.data[(b * n + t) * hidden + h] : tokens.data[(b * m + t - n) * hidden + h]);"
        ), "t < m ? tokens.data[(b * m + t) * hidden + h] : prompt.data[(b * n + t - m) * hidden + h]);"),),
        "prompt_tuning/forward/*padding", "inputs.embeddings", "M24",
    ),
    "virtual tokens masked": Broken(
        ((PORT, "(k < n ? 1 : mask.data[b * m + k - n])", "(k < n ? 0 : mask.data[b * m + k - n])"),),
        "prefix_tuning/forward/*padding", "inputs.attention_mask", "M41",
    ),
    "the triangle to the top left": Broken(
        ((PORT, _VISIBLE, _VISIBLE.replace("k <= past + q", "k <= q")),), "prefix_tuning/forward/*padding", "decoder.visible", "M45",
    ),
    "no triangle": Broken(
        ((PORT, _VISIBLE, _VISIBLE.replace("k <= past + q && ", "")),), _STAGES, "decoder.visible", "M75",
    ),
    "the padding seen": Broken(
        ((PORT, _VISIBLE, "k <= past + q ? 1 : 0"),), "prompt_tuning/forward/*padding", "decoder.visible", "M74",
    ),
    "scores without their scale": Broken(
        ((MODEL, "return sum * scale;", "return sum;"),), _STAGES, "decoder.layers.0.attention.scores", "M94",
    ),
    "epsilon a tenth": Broken(
        ((MODEL, "Math.sqrt(variance + this.config.layer_norm_epsilon)", "Math.sqrt(variance + this.config.layer_norm_epsilon / 10)"),),
        _STAGES, "decoder.layers.0.input_norm", "M102",
    ),
    "the exact gelu": Broken(
        ((MODEL, (
            "const geluNew = (x) => 0.5 * x * (1 + Math.tanh(Math.sqrt(2 / Math.PI) * (x + 0.044715 * x ** 3)));"
        ), f"const erf = {_ERF};\nconst geluNew = (x) => 0.5 * x * (1 + erf(x / Math.SQRT2));"),),
        _STAGES, "decoder.layers.0.mlp.activation", "M101",
    ),
    "labels padded with zeros": Broken(
        ((PORT, "(t < n ? -100 : labels.data[b * m + t - n])", "(t < n ? 0 : labels.data[b * m + t - n])"),),
        "prompt_tuning/forward/*padding", "inputs.labels", "M54",
    ),
    "a row does not end": Broken(
        ((SEARCH, "ended[row] ||= ends.includes(best);", "ended[row] ||= false;"),),
        "prompt_tuning/generate/greedy-end", "sequences", "M159", ("M161",),
    ),
    # ---- mistakes without a name
    "attention's output a hundredth too large": Broken(
        ((MODEL, "return record(`${name}.output`, this.conv1d(context, `h.${layer}.attn.c_proj`));", (
            "return record(`${name}.output`, map(this.conv1d(context, `h.${layer}.attn.c_proj`), (x) => 1.01 * x));"
        )),),
        _STAGES, "decoder.layers.0.attention.output",
    ),
    "positions from 1": Broken(
        ((PORT, "const offset = n;", "const offset = n + 1;"),), "prefix_tuning/inputs/*", "inputs.position_ids",
    ),
    "heads joined in reverse": Broken(
        ((MODEL, "const h = Math.floor(column / headDim), d = column % headDim;", (
            "const h = heads - 1 - Math.floor(column / headDim), d = column % headDim;"
        )),),
        _STAGES, "decoder.layers.0.attention.context",
    ),
    "the network's input is not normed": Broken(
        ((MODEL, "const again = record(`${name}.post_attention_norm`, this.norm(middle, `h.${layer}.ln_2`));", (
            "const again = record(`${name}.post_attention_norm`, middle);"
        )),),
        _STAGES, "decoder.layers.0.post_attention_norm",
    ),
    "labels smoothed": Broken(
        ((PORT, "sum += largest + Math.log(row.reduce((total, x) => total + Math.exp(x - largest), 0)) - row[label];", (
            "sum += largest + Math.log(row.reduce((total, x) => total + Math.exp(x - largest), 0))"
            " - 0.9 * row[label] - 0.1 * row.reduce((total, x) => total + x, 0) / vocab;"
        )),),
        _STAGES, "loss",
    ),
}  # fmt: skip
"""Copies of the port in JavaScript."""

_THREADS = "torch.set_num_threads(1)"


def _patched(code: str) -> tuple[tuple[str, str, str], ...]:
    """HF in torch, something of it replaced before any model is loaded."""
    return (("hf_peft.py", _THREADS, f"{_THREADS}\n{code}"),)


TORCH: dict[str, Broken] = {
    "relu in peft's PrefixEncoder": Broken(
        _patched(
            "import peft.tuners.prefix_tuning.model as wrong\n"
            "made = wrong.PrefixEncoder.__init__\n"
            "def make(self, config):\n"
            "    made(self, config)\n"
            "    if hasattr(self, 'transform'):\n"
            "        self.transform[1] = torch.nn.ReLU()\n"
            "wrong.PrefixEncoder.__init__ = make\n"
        ),
        "prefix_tuning/prefix_encode/*projected*", "prefix.layers.0.key", "M16",
    ),
    "Gemma's embeddings not scaled": Broken(
        _patched(
            "import transformers.models.gemma.modeling_gemma as wrong\n"
            "wrong.GemmaTextScaledWordEmbedding.forward = torch.nn.Embedding.forward\n"
        ),
        "prompt_tuning/forward/gemma-odd*", "logits", "M77",
    ),
    "Gemma-2's attention without its cap": Broken(
        _patched(
            "import transformers.models.gemma2.modeling_gemma2 as wrong\n"
            "eager = wrong.eager_attention_forward\n"
            "wrong.eager_attention_forward = lambda *a, softcap=None, **k: eager(*a, softcap=None, **k)\n"
        ),
        "*/forward/gemma2-odd*", "logits", "M95",
    ),
    "LLaMA turns neighbours": Broken(
        _patched(
            "import transformers.models.llama.modeling_llama as wrong\n"
            "def turned(q, k, cos, sin, unsqueeze_dim=1):\n"
            "    half = cos.shape[-1] // 2\n"
            "    cos, sin = (x[..., :half].repeat_interleave(2, -1).unsqueeze(unsqueeze_dim) for x in (cos, sin))\n"
            "    def other(x):\n"
            "        return torch.stack((-x[..., 1::2], x[..., ::2]), -1).flatten(-2)\n"
            "    return q * cos + other(q) * sin, k * cos + other(k) * sin\n"
            "wrong.apply_rotary_pos_emb = turned\n"
        ),
        "*/forward/llama-even*", "logits", "M84",
    ),
    "T5 without its relative bias": Broken(
        _patched(
            "import transformers.models.t5.modeling_t5 as wrong\n"
            "bias = wrong.T5Attention.compute_bias\n"
            "wrong.T5Attention.compute_bias = lambda self, *a, **k: 0 * bias(self, *a, **k)\n"
        ),
        "*/forward/t5-odd-stages*", "logits", "M97",
    ),
    "BLOOM's slopes for any number of heads": Broken(
        _patched(
            "import transformers.models.bloom.modeling_bloom as wrong\n"
            "wrong._get_alibi_slopes = lambda n, device: torch.tensor([2.0 ** (-8 * (i + 1) / n) for i in range(n)])\n"
        ),
        "*/forward/bloom-odd-stages*", "logits", "M122",
    ),
    "Qwen3 without its norms of queries and keys": Broken(
        _patched(
            "import transformers.models.qwen3.modeling_qwen3 as wrong\n"
            "normed = wrong.Qwen3RMSNorm.forward\n"
            "def forward(self, x):\n"
            "    return x if x.dim() == 4 else normed(self, x)\n"
            "wrong.Qwen3RMSNorm.forward = forward\n"
        ),
        "*/forward/qwen3-odd*", "logits", "M114",
    ),
    "GPT-2's epsilon outside the root": Broken(
        _patched(
            "def outside(self, x):\n"
            "    centred = x - x.mean(-1, keepdim=True)\n"
            "    return centred / (centred.square().mean(-1, keepdim=True).sqrt() + self.eps) * self.weight + self.bias\n"
            "torch.nn.LayerNorm.forward = outside\n"
        ),
        "*/forward/stages-*", "logits", "M103",
    ),
    "OPT's relu is leaky": Broken(
        _patched(
            "import transformers.models.opt.modeling_opt as wrong\n"
            "wrong.ACT2FN = {'relu': torch.nn.LeakyReLU(0.2)}\n"
        ),
        "*/forward/opt-odd-stages*", "logits",
    ),
    "Mistral's values a twentieth too large": Broken(
        _patched(
            "import transformers.models.mistral.modeling_mistral as wrong\n"
            "eager = wrong.eager_attention_forward\n"
            "wrong.eager_attention_forward = lambda m, q, k, v, *a, **o: eager(m, q, k, 1.05 * v, *a, **o)\n"
        ),
        "*/forward/mistral-odd-stages*", "logits",
    ),
}  # fmt: skip
"""HF peft itself, with something of it replaced."""


_JAX, _STEP, _TABLE = "jax_port.py", "training.steps.{}.", "prompt_encoder.embedding.weight"
"""Mistakes of training were written down at training.losses; a port that answers each step is found out earlier."""
JAX: dict[str, Broken] = {
    "LLaMA's prefix turned with the text": Broken(
        (
            (_JAX, "for both in zip(past, (key, value), strict=True))\n", (
                "for both in zip((early(past[0], view), past[1]), (key, value), strict=True))\n"
            )),
            (_JAX, "def turned(x, cosine, sine):", (
                "def early(past, view):\n"
                "    if 'turn' not in view:\n"
                "        return past\n"
                "    step = view['turn'][0][:, :, 1:2], view['turn'][1][:, :, 1:2]\n"
                "    one = view['turn'][0][:, :, 0:1], view['turn'][1][:, :, 0:1]\n"
                "    angle = jnp.arctan2(step[1], step[0]) - jnp.arctan2(one[1], one[0])\n"
                "    at = jnp.arange(past.shape[2], dtype=past.dtype)[:, None] * angle\n"
                "    return turned(past, jnp.cos(at), jnp.sin(at))\n\n\n"
                "def turned(x, cosine, sine):"
            )),
        ),
        "prefix_tuning/forward/llama-even*", "decoder.layers.0.attention.key_states", "M36",
    ),
    "ε of AdamW inside the root": Broken(
        ((_JAX, "update = first / (jnp.sqrt(second) / corrections[1] + epsilon)", (
            "update = first / jnp.sqrt(second / corrections[1] ** 2 + epsilon)"
        )),),
        "prefix_tuning/training/constant-warmup-epsilon", f"{_STEP.format(1)}parameters.{_TABLE}", "M141",
    ),
    "the last micro-batch's gradient alone": Broken(
        ((_JAX, "total = {name: total[name] + gradient / count for name, gradient in gradients.items()}", (
            "total = {name: gradient / count for name, gradient in gradients.items()}"
        )),),
        "prefix_tuning/training/projected-everything", f"{_STEP.format(0)}gradients.{_TABLE}", "M154",
    ),
    "the loss of T5 shifted again": Broken(
        ((_JAX, "cross_entropy(logits, labels, base.encoder is None)", "cross_entropy(logits, labels, True)"),),
        "*/forward/t5-odd-stages*", "loss", "M134",
    ),
    "the decoder reads its labels": Broken(
        ((_JAX, 'ids = numpy.concatenate([start, inputs["labels"][:, :-1]], axis=1)', (
            'ids = inputs["labels"] + 0 * start'
        )),),
        "prompt_tuning/forward/t5-odd-stages*", "inputs.decoder_input_ids", "M137",
    ),
    "T5 reads its blocks in order": Broken(
        ((_JAX, "first = 2 * layer * adapter.submodules % blocks", "first = 2 * layer"),),
        "prefix_tuning/forward/t5-*", "prefix.layers.1.key", "M12",
    ),
    # ---- mistakes without a name
    "a norm's weight squared": Broken(
        ((_JAX, 'return x * layer[f"{name}.weight"] + layer.get(f"{name}.bias", 0.0)', (
            'return x * layer[f"{name}.weight"] ** 2 + layer.get(f"{name}.bias", 0.0)'
        )),),
        "*/forward/llama-even*", "decoder.layers.0.input_norm",
    ),
    "the prefix a tenth larger": Broken(
        ((_JAX, 'stages["prefix.flat"] = flat\n', 'flat = stages["prefix.flat"] = 1.1 * flat\n'),),
        "prefix_tuning/prefix_encode/*", "prefix.flat",
    ),
    "the learning rate halved": Broken(
        ((_JAX, "return peak * max(0.0, left.get(kind, 1.0))", "return 0.5 * peak * max(0.0, left.get(kind, 1.0))"),),
        "prompt_tuning/training/constant", "training.learning_rates",
    ),
}  # fmt: skip
"""Copies of the port in JAX."""


# ---------------------------------------------------------------- running them


@dataclass(frozen=True)
class Found:
    """What the oracle says of one broken port."""

    stages: frozenset[str]
    """The first tensors that differ, over the failing cases."""
    names: tuple[str, ...]
    """The mutants of the first finding."""
    cases: int
    """How many cases fail."""
    explained: int
    """Of these, how many the first finding explains."""
    seconds: float
    """How long the diagnosis took."""

    def is_right(self, broken: Broken) -> bool:
        """Found where it was expected, and named as it was expected: rightly, or not at all."""
        if broken.stage not in self.stages:
            return False
        if not broken.mutant:
            return not self.names
        return broken.mutant in self.names and set(self.names) <= {broken.mutant, *broken.also}


def copied(folder: str, main: str, broken: Broken, directory: Path) -> Path:
    """The sources of a port with the changes made, each in a text that stands once; the program to start."""
    directory.mkdir(parents=True)
    sources = {
        path.name: path.read_text(encoding="utf-8") for path in (HERE / folder).glob("*.*") if path.is_file()
    }
    for name, old, new in broken.changes:
        if sources[name].count(old) != 1:
            raise ValueError(f"{old!r} must stand once in {name}")
        sources[name] = sources[name].replace(old, new)
    for name, source in sources.items():
        if Path(name).suffix == Path(main).suffix:
            (directory / name).write_text(source, encoding="utf-8")
    return directory / main


def find(command: list[str], pattern: str, work: Path, patience: float = 4.0) -> Found:
    """Judge a broken port in float32, and look at its failures."""
    import time

    from refpeft.oracle.budget import PROFILES
    from refpeft.oracle.diagnosis import with_diagnosis
    from refpeft.oracle.evidence import Evidence
    from refpeft.oracle.judge import Selection, summarise
    from refpeft.oracle.port import ProcessPort
    from refpeft.oracle.run import judge
    from refpeft.oracle.vectors import all_vectors, matches

    chosen = [v for v in all_vectors() if matches(v.case.id, f"*/{pattern}")]
    port, evidence = ProcessPort(command, timeout=300), Evidence()
    try:
        selection = Selection(chosen, [PROFILES["float32"]])
        cases = list(judge(port, selection, work, None, evidence=evidence))
        started = time.perf_counter()
        results = with_diagnosis(summarise(port, selection, cases), evidence, port, seconds=patience)
        seconds = time.perf_counter() - started
    finally:
        port.close()
    failed = [case for case in cases if case.verdict == "NONCONFORMING"]
    finding = results.diagnosis[0] if results.diagnosis else None
    return Found(
        frozenset(case.first.name for case in failed if case.first),
        tuple(finding.mutants) if finding else (),
        len(failed),
        len(finding.cases) if finding and finding.mutants else 0,
        seconds,
    )


def command_of(language: str, broken: Broken, directory: Path) -> list[str]:
    """How to start a broken copy."""
    if language == "JavaScript":
        return ["node", str(copied("node", PORT, broken, directory))]
    return [
        sys.executable,
        str(copied("", "hf_peft.py" if language == "torch" else "jax_port.py", broken, directory)),
    ]


TABLES = {"JavaScript": JAVASCRIPT, "torch": TORCH, "jax": JAX}
"""By language."""
NEEDS = {"JavaScript": "node", "torch": "torch", "jax": "jax"}
"""What must be there to run them."""


def main() -> None:
    """Print the table."""
    rows, right, seconds = [], 0, []
    for language, table in TABLES.items():
        if not (shutil.which(NEEDS[language]) or importlib.util.find_spec(NEEDS[language])):
            print(f"{language}: not here")
            continue
        for name, broken in table.items():
            with tempfile.TemporaryDirectory() as work:
                found = find(
                    command_of(language, broken, Path(work) / "port"), broken.pattern, Path(work) / "work"
                )
            good = found.is_right(broken)
            right += good
            seconds.append(found.seconds)
            rows.append(
                f"{'right' if good else 'WRONG':6} {language:10} {name:45} {broken.stage:40} {broken.mutant or '-':5} "
                f"{', '.join(found.names) or '-':10} {found.explained}/{found.cases} {found.seconds:.1f} s"
                + ("" if good else f"  found first: {', '.join(sorted(found.stages)) or 'nothing'}")
            )
            print(rows[-1], flush=True)
    print(f"{right} of {len(rows)} as written down; a diagnosis takes {max(seconds):.1f} s at most")


if __name__ == "__main__":
    main()
