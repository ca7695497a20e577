"""One round of the live comparison: everything drawn, refpeft and HF peft asked, and the answers compared.

    python tests/live_rounds.py --rounds 50            # a table of the largest differences, family by family
    python tests/live_rounds.py --rounds 500 --seed 7 llama t5

`compare` asserts what has to be equal and returns how far the numbers are apart.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

if __name__ == "__main__":
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import hypothesis
import numpy
from hypothesis import strategies as st
from live_families import (
    ENCODERS,
    FAMILIES,
    LANGUAGE,
    Draw,
    draw_config,
    load_hf,
    sometimes,
    tasks_of,
    write_base,
)
from support import need, relative_error
from true_float64 import as_float64, true_float64

import refpeft
from refpeft.oracle import drawn_inputs

torch = need("torch")
peft = need("peft")

PROMPT, PREFIX, PROJECTED = "prompt", "prefix", "projected"
TENSORS = ("logits", "start_logits", "end_logits", "last_hidden_state", "pooler_output")
"""What a model may answer."""
HEADS = {
    "SEQ_CLS": ("classifier", "score"), "TOKEN_CLS": ("classifier", "score"), "QUESTION_ANS": ("qa_outputs",),
    "CAUSAL_LM": ("lm_head",), "SEQ_2_SEQ_LM": ("lm_head",),
}  # fmt: skip
PROBLEMS = ("regression", "single_label_classification", "multi_label_classification")


@dataclass(frozen=True)
class Round:
    """Everything that a round depends on."""

    seed: int
    config: dict[str, Any]
    """Of config.json."""
    own_head: bool
    task_type: str
    method: str
    adapter: dict[str, Any]
    """Arguments of the adapter's configuration."""
    perturbed: bool
    """Whether the trainable parameters are moved from their initial values."""
    batch: int
    tokens: int
    decoder_tokens: int
    inputs: dict[str, Any]
    """Which optional inputs there are, and of what kind."""

    @property
    def family(self) -> str:
        return str(self.config["model_type"])

    @property
    def virtual(self) -> int:
        return int(self.adapter["num_virtual_tokens"])


class Errors(NamedTuple):
    """The largest relative differences of a round, norm by norm."""

    outputs: float
    loss: float
    gradients: float


# ---------------------------------------------------------------- drawing


@st.composite
def rounds(draw: Any, family: str) -> Round:
    """A round of one family."""
    task_type = draw(st.sampled_from(tasks_of(family)))
    method = draw(st.sampled_from([PROMPT, PREFIX, PROJECTED]))
    virtual, batch, tokens = draw(st.integers(1, 6)), draw(st.integers(1, 3)), draw(st.integers(1, 6))
    decoder_tokens = draw(st.integers(1, 6))
    config = draw_config(draw, family, virtual + max(tokens, decoder_tokens), task_type)
    if task_type == "SEQ_CLS" and family not in ENCODERS and not has_padding(config):
        batch = 1
    inputs = draw_inputs(draw, config, task_type, method)
    if task_type == "SEQ_CLS":
        labels = config.get("num_labels", len(config.get("id2label", "")))
        if labels == 1 and inputs["labels"] == PROBLEMS[1]:  # HF refuses a single class
            inputs["labels"] = PROBLEMS[0]
        if (inputs["labels"] == PROBLEMS[0]) != (labels == 1) or draw(st.booleans()):
            config["problem_type"] = inputs["labels"]
    return Round(
        seed=draw(st.integers(0, 2**32 - 1)),
        config=config,
        own_head=task_type in LANGUAGE and draw(st.integers(0, 3)) == 0,
        task_type=task_type,
        method=method,
        adapter=draw_adapter(draw, config, task_type, method, virtual),
        perturbed=draw(st.booleans()),
        batch=batch,
        tokens=tokens,
        decoder_tokens=decoder_tokens,
        inputs=inputs,
    )


def has_padding(config: dict[str, Any]) -> bool:
    """Whether the base model has a padding token, by config.json or by default."""
    default = {"opt", "gemma", "gemma2", "gemma3_text"}
    return config.get("pad_token_id", config["model_type"] in default or None) is not None


def draw_adapter(
    draw: Draw, config: dict[str, Any], task_type: str, method: str, virtual: int
) -> dict[str, Any]:
    """Arguments of the adapter's configuration, with the sizes that HF does not find by itself."""
    adapter = {"num_virtual_tokens": virtual, **sizes_that_hf_misses(config, method)}
    if method == PROMPT:
        adapter |= sometimes(draw, prompt_tuning_init=st.sampled_from(["RANDOM", "SAMPLE_VOCAB"]))
    else:
        adapter |= sometimes(draw, init_weights=st.just("zero"))
    if method == PROJECTED:
        adapter |= {"prefix_projection": True, **sometimes(draw, encoder_hidden_size=st.integers(1, 7))}
    if draw(st.integers(0, 7)) == 0:
        adapter["inference_mode"] = True
    if draw(st.integers(0, 4)) == 0:
        adapter |= {"modules_to_save": list(HEADS.get(task_type, ())[-1:]) or None}
    return adapter


def sizes_that_hf_misses(config: dict[str, Any], method: str) -> dict[str, Any]:
    """What a caller has to give where HF peft fills in sizes that the base model's own tensors do not have."""
    family, prefix = config["model_type"], method != PROMPT
    if (
        family == "falcon"
        and prefix
        and config.get("multi_query", True)
        and not config.get("new_decoder_architecture")
    ):
        return {"token_dim": config["hidden_size"] // config["num_attention_heads"], "num_attention_heads": 1}
    if family == "opt" and not prefix:
        return {"token_dim": config.get("word_embed_proj_dim", config["hidden_size"])}
    if family == "electra" and not prefix:
        return {"token_dim": config["embedding_size"]}
    given: dict[str, Any] = {}
    if family == "t5" and prefix:
        layers, decoder = config["num_layers"], config.get("num_decoder_layers", 0)
        if config["num_heads"] * config["d_kv"] != config["d_model"]:
            given["token_dim"] = config["num_heads"] * config["d_kv"]
    elif family == "bart" and prefix:
        layers, decoder = config["encoder_layers"], config["decoder_layers"]
        if config["encoder_attention_heads"] != config["decoder_attention_heads"]:
            given["num_attention_heads"] = config["decoder_attention_heads"]
    else:
        return given
    return {**given, **({"num_layers": decoder} if decoder > layers else {})}


def draw_inputs(draw: Draw, config: dict[str, Any], task_type: str, method: str) -> dict[str, Any]:
    """Which optional inputs there are, and of what kind."""
    family = config["model_type"]
    kinds = st.sampled_from(["full", "left", "right", "holes"])
    formats = st.sampled_from(["int64", "bool", "float32", "float64"])
    found = sometimes(draw, mask=kinds, padded_with_pads=st.just(True))
    found["mask_format"] = draw(formats)
    if task_type == "SEQ_2_SEQ_LM":
        ways = ["labels", "decoder_input_ids", "both"]
        ways += ["neither"] if family == "bart" and method != PROMPT else []
        return {**found, "decoder": draw(st.sampled_from(ways)), **sometimes(draw, decoder_mask=kinds)}
    found |= sometimes(draw, positions=st.just(True))
    if family in ENCODERS or task_type not in ("SEQ_CLS", "TOKEN_CLS"):
        found |= sometimes(draw, token_types=st.just(True))
    if task_type == "SEQ_CLS":
        found["labels"] = draw(st.sampled_from(PROBLEMS))
    return found


def make_inputs(what: Round) -> dict[str, numpy.ndarray]:
    """The arrays of a round, from its seed."""
    random, kinds = numpy.random.default_rng(what.seed), what.inputs
    shape, pad = (what.batch, what.tokens), what.config.get("pad_token_id")
    ids = random.integers(0, what.config["vocab_size"], shape)
    inputs: dict[str, numpy.ndarray] = {"input_ids": ids}
    if "mask" in kinds:
        mask = make_mask(random, shape, kinds["mask"])
        inputs["attention_mask"] = mask.astype(kinds["mask_format"])
        if "padded_with_pads" in kinds and pad is not None:
            inputs["input_ids"] = ids = numpy.where(mask == 1, ids, pad)
    if "positions" in kinds:
        inputs["position_ids"] = random.integers(0, what.tokens, shape)
    if "token_types" in kinds:
        types = what.config.get("type_vocab_size", 2) if what.family in ENCODERS else 2
        inputs["token_type_ids"] = random.integers(0, types, shape)
    return {**inputs, **make_labels(what, random, ids)}


def make_mask(random: numpy.random.Generator, shape: tuple[int, int], kind: str) -> numpy.ndarray:
    """Ones; or padding on one side, in some rows; or anywhere, whole rows of it too."""
    if kind == "holes":
        return (random.random(shape) >= 0.4).astype(numpy.int64)
    mask = drawn_inputs.make_mask(random, shape, kind)
    assert mask is not None
    return mask


def make_labels(what: Round, random: numpy.random.Generator, ids: numpy.ndarray) -> dict[str, numpy.ndarray]:
    """What the task takes a loss of, some of it to be ignored; of an encoder-decoder, what its decoder reads too."""
    task = what.task_type

    def some(labels: numpy.ndarray) -> numpy.ndarray:
        return numpy.where(random.random(labels.shape) < 0.3, -100, labels)

    if task == "CAUSAL_LM":
        return {"labels": some(ids)}
    if task == "SEQ_2_SEQ_LM":
        return _decoder_inputs(what, random, some)
    if task == "QUESTION_ANS":
        last = what.tokens + (what.virtual if what.method == PROMPT else 0) + 3
        return {name: random.integers(-2, last, what.batch) for name in ("start_positions", "end_positions")}
    classes = what.config.get("num_labels", len(what.config.get("id2label", "")))
    if task == "TOKEN_CLS":
        shape = (what.batch, what.tokens + (what.virtual if what.method == PROMPT else 0))
        return {"labels": some(random.integers(0, classes, shape))}
    if task == "SEQ_CLS":
        kind = what.inputs["labels"]
        if kind == "single_label_classification":
            return {"labels": some(random.integers(0, classes, what.batch))}
        if kind == "multi_label_classification":
            return {"labels": random.integers(0, 2, (what.batch, classes)).astype(numpy.float64)}
        return {"labels": random.normal(0, 1, (what.batch, classes)[: 1 + (classes > 1)])}
    assert task == "FEATURE_EXTRACTION"
    return {}


def _decoder_inputs(what: Round, random: numpy.random.Generator, some: Any) -> dict[str, numpy.ndarray]:
    way, vocabulary = what.inputs["decoder"], what.config["vocab_size"]
    shape = (what.batch, what.tokens if way == "neither" else what.decoder_tokens)
    found: dict[str, numpy.ndarray] = {}
    if way in ("labels", "both"):
        found["labels"] = some(random.integers(0, vocabulary, shape))
    if way in ("decoder_input_ids", "both"):
        found["decoder_input_ids"] = random.integers(0, vocabulary, shape)
    if "decoder_mask" in what.inputs:
        mask = make_mask(random, shape, what.inputs["decoder_mask"])
        found["decoder_attention_mask"] = mask.astype(what.inputs["mask_format"])
    return found


# ---------------------------------------------------------------- comparing


def short(name: str) -> str:
    """HF's name of a parameter as adapter files have it: without the adapter's name."""
    return name.replace(".modules_to_save.default.", ".").replace(".default.", ".")


def trained(model: Any) -> dict[str, Any]:
    """HF's trainable parameters."""
    return {short(name): parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def configurations(what: Round) -> tuple[Any, refpeft.PromptLearningConfig]:
    """HF's and refpeft's configuration of the adapter; HF changes what it is given."""
    name = "PromptTuningConfig" if what.method == PROMPT else "PrefixTuningConfig"
    theirs, ours = dict(what.adapter), dict(what.adapter)
    if theirs.get("modules_to_save"):
        theirs["modules_to_save"] = list(theirs["modules_to_save"])
    return (
        getattr(peft, name)(task_type=what.task_type, **theirs),
        getattr(refpeft, name)(task_type=what.task_type, **ours),
    )


def ask_hf(model: Any, inputs: dict[str, numpy.ndarray], *, differentiate: bool = False) -> Any:
    """HF's answer in true float64."""
    with true_float64(), torch.set_grad_enabled(differentiate):
        answer = model(**{name: torch.tensor(value) for name, value in inputs.items()})
        if differentiate and answer.get("loss") is not None:
            answer.loss.backward()
    return answer


def outputs_apart(output: refpeft.Output, answer: Any) -> float:
    """The largest relative difference of what is answered; the same things are."""
    errors = [0.0]
    for name in TENSORS:
        ours, theirs = getattr(output, name), answer.get(name)
        assert (ours is None) == (theirs is None), name
        if theirs is not None:
            assert ours.shape == tuple(theirs.shape), name
            assert numpy.isfinite(ours).all(), name
            errors.append(relative_error(ours, theirs.detach().numpy()))
    return max(errors)


def compare(what: Round, directory: Path) -> Errors:
    """Ask both sides everything, in a fresh directory.

    Initial values agree to 4e-6 (HF draws in float32); names, order, number and files of the trainable parameters are the
    same; each side loads what the other writes, and answers as before. Outputs, losses and gradients are measured.
    """
    path = write_base(what.config, what.task_type, what.seed, directory / "base", own_head=what.own_head)
    hf_config, config = configurations(what)
    base = refpeft.load_base_model(path)
    torch.manual_seed(what.seed)
    theirs = peft.get_peft_model(load_hf(path, what.task_type), hf_config)
    ours = refpeft.get_peft_model(base, config, seed=what.seed)
    parameters = trained(theirs)
    _compare_initial_values(ours, parameters)
    assert ours.num_trainable_parameters() == theirs.get_nb_trainable_parameters()[0]
    generator = torch.Generator().manual_seed(what.seed)
    with torch.no_grad():
        for parameter in parameters.values() if what.perturbed else ():
            parameter.add_(0.5 * torch.randn(parameter.shape, generator=generator))
    theirs = as_float64(theirs)
    ours.load_trainable_parameters({name: value.detach().numpy() for name, value in parameters.items()})

    inputs = make_inputs(what)
    answer, output = ask_hf(theirs, inputs, differentiate=True), ours(**inputs)
    outputs = outputs_apart(output, answer)
    loss, gradients = _losses_apart(ours, inputs, output, answer, parameters)
    plain = {name: value for name, value in inputs.items() if not _wanted(name, what)}
    return Errors(max(outputs, _files_apart(what, directory, ours, theirs, plain, answer)), loss, gradients)


def _wanted(name: str, what: Round) -> bool:
    """Whether an input is there for the loss alone."""
    needed = what.task_type == "SEQ_2_SEQ_LM" and what.inputs["decoder"] == "labels"
    return name in ("start_positions", "end_positions") or (name == "labels" and not needed)


def _compare_initial_values(ours: refpeft.PeftModel, parameters: dict[str, Any]) -> None:
    values = ours.trainable_parameters()
    assert list(values) == list(parameters)
    for name, value in values.items():
        expected = parameters[name].detach().numpy()
        assert value.shape == expected.shape, name
        assert numpy.abs(value - expected).max() <= 4e-6, name


def _losses_apart(
    ours: refpeft.PeftModel,
    inputs: dict[str, Any],
    output: refpeft.Output,
    answer: Any,
    parameters: dict[str, Any],
) -> tuple[float, float]:
    """Relative differences of the loss and of its gradients. Where HF's of virtual tokens is zero, refpeft's is exactly that.

    What flows back is rounded at the size that it has, not at that of what is left of it: a bias to which all logits are equal
    has a gradient of zero but for rounding. So each parameter's difference is measured against all gradients together, and
    those against a thousandth at least of what enters: the logits' gradients, which are probabilities.
    """
    expected = answer.get("loss")
    assert (output.loss is None) == (expected is None)
    if expected is None:
        return 0.0, 0.0
    if numpy.isnan(expected.item()):
        assert numpy.isnan(output.loss)
        return 0.0, 0.0
    value, gradients = ours.value_and_grad(**inputs)
    assert abs(value - output.loss) <= 1e-13 * max(1.0, abs(output.loss))  # without logits, in other order
    assert list(gradients) == list(parameters)
    wanted = {
        name: numpy.zeros(parameter.shape) if parameter.grad is None else parameter.grad.numpy()
        for name, parameter in parameters.items()
    }
    for name, gradient in wanted.items():
        # A bias may be zero because all that reaches it cancels.
        if name.startswith("prompt_encoder.") and name.endswith("weight"):
            assert not gradients[name][gradient == 0].any(), f"{name}: not zero where HF's is"
    apart = max(numpy.linalg.norm(gradients[name] - gradient) for name, gradient in wanted.items())
    whole = numpy.sqrt(sum(numpy.sum(gradient**2) for gradient in wanted.values()))
    return relative_error(output.loss, expected.item()), float(apart / max(whole, 1e-3))


def _files_apart(
    what: Round,
    directory: Path,
    ours: refpeft.PeftModel,
    theirs: Any,
    inputs: dict[str, numpy.ndarray],
    answer: Any,
) -> float:
    """The largest relative difference from HF's answers once each side has loaded what the other has saved.

    HF loads in float32: refpeft is given the same rounded values then, and HF is asked anew.
    """
    ours.save_pretrained(directory / "ours")
    with mock.patch.object(
        theirs, "create_or_update_model_card"
    ):  # a README, which takes HF a tenth of a round
        theirs.save_pretrained(directory / "theirs")
    files = [(directory / side / "adapter_config.json").read_text() for side in ("ours", "theirs")]
    assert files[0] == files[1]

    again = refpeft.PeftModel.from_pretrained(ours.base, directory / "theirs")
    loaded = load_hf(directory / "base", what.task_type)
    hf_again = peft.PeftModel.from_pretrained(loaded, directory / "ours")
    assert again.num_trainable_parameters() == hf_again.get_nb_trainable_parameters()[0]
    parameters = trained(hf_again)
    assert list(again.trainable_parameters()) == list(parameters)
    first = outputs_apart(again(**inputs), answer)

    written = refpeft.PeftModel.from_pretrained(ours.base, directory / "ours").trainable_parameters()
    for name, parameter in parameters.items():
        assert numpy.array_equal(parameter.detach().numpy(), written[name].astype(numpy.float32)), name
    again.load_trainable_parameters({name: value.detach().numpy() for name, value in parameters.items()})
    second = outputs_apart(again(**inputs), ask_hf(as_float64(hf_again), inputs))
    return max(first, second)


# ---------------------------------------------------------------- the table


def measure(family: str, number: int, seed: int) -> Errors:
    """The largest differences of so many rounds."""
    worst = [Errors(0.0, 0.0, 0.0)]

    @hypothesis.seed(seed)
    @hypothesis.settings(
        max_examples=number, deadline=None, database=None, derandomize=False,
        suppress_health_check=list(hypothesis.HealthCheck),
    )  # fmt: skip
    @hypothesis.given(what=rounds(family))
    def run(what: Round) -> None:
        hypothesis.note(f"round: {what}")
        with tempfile.TemporaryDirectory() as directory:
            worst.append(compare(what, Path(directory)))

    run()
    return Errors(*(max(values) for values in zip(*worst, strict=True)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("families", nargs="*", help=f"of {', '.join(FAMILIES)}; all without any")
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    print(f"{'family':14}{'rounds':>7}{'outputs':>10}{'loss':>10}{'gradients':>10}")
    for family in options.families or FAMILIES:
        errors = measure(family, options.rounds, options.seed)
        print(f"{family:14}{options.rounds:7}" + "".join(f"{error:10.1e}" for error in errors), flush=True)


if __name__ == "__main__":
    import warnings

    warnings.simplefilter("ignore")
    sys.exit(main())
