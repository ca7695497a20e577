"""What HF peft does that nobody expects, one by one: seen in HF itself, and found again in refpeft. Needs the extra `golden`."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy
import pytest
from support import need, relative_error, tiny_values

import refpeft

pytestmark = [pytest.mark.live, pytest.mark.filterwarnings("ignore")]
torch, peft = need("torch"), need("peft")

from live_families import load_hf, write_base  # noqa: E402
from live_rounds import ask_hf, outputs_apart, trained  # noqa: E402
from true_float64 import as_float64, true_float64  # noqa: E402

from refpeft.transformer.weights import BaseModel  # noqa: E402

TOLERANCE = 1e-12
VIRTUAL, SEEN = 3, 1e-6
"""Virtual tokens; and a difference that is none of rounding."""
IDS = numpy.array([[5, 9, 3, 7, 11], [4, 8, 12, 6, 10]])
TABLE = "prompt_encoder.embedding.weight"


@dataclass
class Pair:
    """An adapter with HF and the same with refpeft."""

    theirs: Any
    ours: refpeft.PeftModel
    directory: Path
    task: str

    def ask(self, **inputs: Any) -> tuple[Any, refpeft.Output]:
        """Both answers, which are the same."""
        given = {"input_ids": IDS, **inputs}
        answer, output = ask_hf(self.theirs, given, differentiate=True), self.ours(**given)
        assert outputs_apart(output, answer) < TOLERANCE
        if answer.get("loss") is not None:
            numpy.testing.assert_allclose(output.loss, answer.loss.item(), rtol=TOLERANCE)  # NaN is NaN
        return answer, output

    def gradients(self, **inputs: Any) -> tuple[numpy.ndarray, numpy.ndarray]:
        """Both gradients of the virtual tokens, which are the same."""
        self.ask(**inputs)
        hf = trained(self.theirs)[TABLE].grad.numpy()
        ours = self.ours.value_and_grad(**{"input_ids": IDS, **inputs})[1][TABLE]
        assert relative_error(ours, hf) < TOLERANCE
        return hf, ours

    def change(self, table: numpy.ndarray) -> None:
        """Other virtual tokens for both."""
        with torch.no_grad():
            trained(self.theirs)[TABLE].copy_(torch.tensor(table))
        self.ours.load_trainable_parameters({**self.ours.trainable_parameters(), TABLE: table})

    def table(self) -> numpy.ndarray:
        return self.ours.trainable_parameters()[TABLE].copy()


def pair(
    tmp_path: Path,
    family: str,
    method: str,
    task: str = "CAUSAL_LM",
    adapter: dict[str, Any] | None = None,
    attention: str = "eager",
    **changes: Any,
) -> Pair:
    """A tiny base model of the family, `changes` in its config.json, and an adapter on it on both sides."""
    name = "PromptTuningConfig" if method == "prompt" else "PrefixTuningConfig"
    fields = {"task_type": task, "num_virtual_tokens": VIRTUAL, **(adapter or {})}
    torch.manual_seed(0)
    directory = write_base(tiny_values(family, **changes), task, 1, tmp_path / "base")
    theirs = as_float64(
        peft.get_peft_model(load_hf(directory, task, attention), getattr(peft, name)(**fields))
    )
    ours = refpeft.get_peft_model(refpeft.load_base_model(directory), getattr(refpeft, name)(**fields))
    values = {name: parameter.detach().numpy() for name, parameter in trained(theirs).items()}
    ours.load_trainable_parameters(values)
    return Pair(theirs, ours, directory, task)  # fmt: skip


ENCODER_DECODERS: dict[str, dict[str, Any]] = {
    "t5": {"d_model": 20},
    "bart": {"encoder_attention_heads": 5, "decoder_attention_heads": 5},
}
LABELS = numpy.array([[3, 7, 5, 2], [6, 4, 9, 8]])


def layered(family: str, layers: int) -> dict[str, Any]:
    """Changes that give both stacks so many layers."""
    keys = ("num_layers", "num_decoder_layers") if family == "t5" else ("encoder_layers", "decoder_layers")
    return {**ENCODER_DECODERS[family], **dict.fromkeys(keys, layers)}


@pytest.mark.parametrize("layers", [1, 2, 3, 4])
@pytest.mark.parametrize("family", ENCODER_DECODERS)
def test_half_of_a_prefix_behind_an_encoder_is_dead_if_layers_are_even(
    tmp_path: Path, family: str, layers: int
) -> None:
    """Blocks 4l + 2 and 4l + 3 of a flat row get no gradient, and layers l and l + layers/2 share theirs."""
    models = pair(tmp_path, family, "prefix", "SEQ_2_SEQ_LM", **layered(family, layers))
    for gradient in models.gradients(labels=LABELS):
        blocks = gradient.reshape(VIRTUAL, 2 * layers, -1)
        dead = [block for block in range(2 * layers) if not blocks[:, block].any()]
        assert dead == [block for block in range(2 * layers) if layers % 2 == 0 and block % 4 > 1]
    with torch.no_grad():
        cache = models.theirs.get_prompt(1).self_attention_cache.layers
    mine = models.ours.get_prompt(1)
    for layer in range(layers):
        numpy.testing.assert_array_equal(mine[layer][0], cache[layer].keys.numpy())
        numpy.testing.assert_array_equal(mine[layer][1], cache[layer].values.numpy())
    if layers % 2 == 0:
        assert torch.equal(cache[0].keys, cache[layers // 2].keys)


@pytest.mark.parametrize("family", ENCODER_DECODERS)
def test_the_second_half_of_a_prompt_before_an_encoder_is_never_used(tmp_path: Path, family: str) -> None:
    models = pair(tmp_path, family, "prompt", "SEQ_2_SEQ_LM", **ENCODER_DECODERS[family])
    for gradient in models.gradients(labels=LABELS):
        assert gradient.shape[0] == 2 * VIRTUAL
        assert gradient[:VIRTUAL].all()
        assert not gradient[VIRTUAL:].any()
    before, _ = models.ask(labels=LABELS)
    models.change(numpy.concatenate([models.table()[:VIRTUAL], models.table()[VIRTUAL:] + 1]))
    after, _ = models.ask(labels=LABELS)
    assert torch.equal(before.logits, after.logits)


@pytest.mark.parametrize("family", ["bert", "roberta", "electra"])
def test_an_encoder_s_classifier_looks_at_the_first_virtual_token(tmp_path: Path, family: str) -> None:
    """Not at the text's first token, which stands behind them."""
    adapter = {"token_dim": 13} if family == "electra" else {}
    models = pair(tmp_path, family, "prompt", "SEQ_CLS", adapter)
    answer, _ = models.ask()
    base = models.theirs.get_base_model()
    with torch.no_grad():
        embedded = base.get_input_embeddings()(torch.tensor(IDS))
        prompts = models.theirs.get_prompt(2)
        hidden = ask_backbone(base, torch.cat([prompts, embedded], dim=1))
        at_zero, at_text = (classify(base, hidden[:, place:]) for place in (0, VIRTUAL))
    assert relative_error(at_zero.numpy(), answer.logits.detach().numpy()) < TOLERANCE
    assert relative_error(at_text.numpy(), answer.logits.detach().numpy()) > SEEN


def ask_backbone(base: Any, embeds: Any) -> Any:
    """The last hidden states of embeddings."""
    with true_float64():
        return base.base_model(inputs_embeds=embeds).last_hidden_state


def classify(base: Any, hidden: Any) -> Any:
    """HF's classifier, which looks at the first of these positions."""
    pooled = base.bert.pooler(hidden) if hasattr(base, "bert") else hidden
    return base.classifier(pooled)


PADDED = numpy.array([[5, 9, 3, 7, 11], [4, 8, 12, 2, 2]])
"""The second row is padded on the right; 2 is the padding token."""
MASK = (PADDED != 2).astype(numpy.int64)
DECODERS = ["gpt2", "llama", "bloom"]


@pytest.mark.parametrize("family", DECODERS)
def test_a_prompt_makes_a_decoder_s_classifier_look_at_padding(tmp_path: Path, family: str) -> None:
    """HF hands embeddings over, and without ids no padding is found; a prefix leaves the ids, and it is."""
    for method, padding_matters in (("prompt", True), ("prefix", False)):
        models = pair(tmp_path / method, family, method, "SEQ_CLS", pad_token_id=2)
        padded, _ = models.ask(input_ids=PADDED, attention_mask=MASK)
        alone, _ = models.ask(input_ids=PADDED[1:, :3])
        apart = relative_error(padded.logits[1:].detach().numpy(), alone.logits.detach().numpy())
        assert (apart > SEEN) == padding_matters


@pytest.mark.parametrize("family", ["gpt2", "bert"])
def test_answers_are_looked_for_where_the_virtual_tokens_stand(tmp_path: Path, family: str) -> None:
    """A prompt's logits begin with the virtual tokens', and the caller's positions are not moved behind them."""
    models = pair(
        tmp_path, family, "prompt", "QUESTION_ANS", **({"num_labels": 2} if family == "bert" else {})
    )
    start, end = numpy.array([1, 4]), numpy.array([2, 4])
    answer, _ = models.ask(start_positions=start, end_positions=end)
    assert answer.start_logits.shape == (2, VIRTUAL + 5)

    def loss(moved: int) -> float:
        entropy = torch.nn.functional.cross_entropy
        both = [
            entropy(logits, torch.tensor(at + moved)).item()
            for logits, at in ((answer.start_logits, start), (answer.end_logits, end))
        ]
        return sum(both) / 2

    assert relative_error(answer.loss.item(), loss(0)) < TOLERANCE
    assert relative_error(answer.loss.item(), loss(VIRTUAL)) > SEEN


def test_positions_outside_the_text_do_not_count(tmp_path: Path) -> None:
    """What is too large counts nothing; what is negative counts as 0; and the virtual tokens make more places."""
    models = pair(tmp_path, "gpt2", "prompt", "QUESTION_ANS")
    inside = {"start_positions": numpy.array([1, 7]), "end_positions": numpy.array([0, 3])}
    first, _ = models.ask(**inside)
    same, _ = models.ask(start_positions=inside["start_positions"], end_positions=numpy.array([-4, 3]))
    assert first.loss.item() == same.loss.item()
    one, _ = models.ask(start_positions=numpy.array([1, 8]), end_positions=numpy.array([0, 900]))
    entropy = torch.nn.functional.cross_entropy
    wanted = [
        entropy(one.start_logits[:1], torch.tensor([1])),
        entropy(one.end_logits[:1], torch.tensor([0])),
    ]
    assert relative_error(one.loss.item(), sum(wanted).item() / 2) < TOLERANCE
    none, _ = models.ask(start_positions=numpy.array([8, 8]), end_positions=numpy.array([0, 1]))
    assert numpy.isnan(none.loss.item())


@pytest.mark.parametrize("family", DECODERS)
def test_a_prompt_s_loss_has_a_term_for_the_first_token(tmp_path: Path, family: str) -> None:
    """As many terms as tokens for a row, from the last virtual token on; one fewer beside a prefix."""
    for method, terms in (("prompt", 5), ("prefix", 4)):
        models = pair(tmp_path / method, family, method)
        answer, _ = models.ask(labels=IDS)
        logits = answer.logits[:, -terms - 1 : -1].reshape(2 * terms, -1)
        mean = torch.nn.functional.cross_entropy(logits, torch.tensor(IDS[:, -terms:]).reshape(-1))
        assert relative_error(answer.loss.item(), mean.item()) < TOLERANCE


@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma"])
def test_grouped_heads_overwrite_what_the_caller_gives(tmp_path: Path, family: str) -> None:
    models = pair(tmp_path, family, "prefix", adapter={"token_dim": 999, "num_attention_heads": 9})
    for config in (models.theirs.active_peft_config, models.ours.config):
        assert (config.token_dim, config.num_attention_heads) == (30, 3)
    models.ask()


@pytest.mark.parametrize(("family", "changes"), [
    ("mistral", {"sliding_window": 4, "num_hidden_layers": 1}),
    ("qwen2", {"sliding_window": 4, "max_window_layers": 0, "num_hidden_layers": 1}),
    ("gemma2", {"sliding_window": 4, "num_hidden_layers": 1}),
    ("gemma3_text", {"sliding_window": 4, "num_hidden_layers": 1}),
])  # fmt: skip
def test_a_prefix_falls_out_of_a_window(tmp_path: Path, family: str, changes: dict[str, Any]) -> None:
    """Virtual tokens are counted: of a window of 4 the fourth token of the text sees no prefix any more."""
    models = pair(tmp_path, family, "prefix", **changes)
    before, _ = models.ask()
    models.change(models.table() + 1)
    after, _ = models.ask()
    moved = (before.logits - after.logits).abs().amax(dim=(0, 2)) > 0
    assert moved.tolist() == [True, True, True, False, False]


@pytest.mark.parametrize("window", [2, 3, 4, 5])
@pytest.mark.parametrize("family", ["gemma2", "gemma3_text"])
def test_gemma_s_cache_keeps_the_end_of_a_prefix(tmp_path: Path, family: str, window: int) -> None:
    """The last window − 1 virtual tokens, in layers with a window; Mistral's keeps all."""
    models = pair(tmp_path, family, "prefix", sliding_window=window)
    with torch.no_grad():
        cache = models.theirs.get_prompt(2).layers
    mine = models.ours.get_prompt(2)
    kept = []
    for layer, (key, value) in enumerate(mine):
        numpy.testing.assert_array_equal(key, cache[layer].keys.numpy())
        numpy.testing.assert_array_equal(value, cache[layer].values.numpy())
        kept.append(key.shape[2])
    cut = min(VIRTUAL, window - 1)
    assert kept == [cut, VIRTUAL, cut]  # layers 0 and 2 have the window
    models.ask()


def test_mistral_s_cache_keeps_a_whole_prefix(tmp_path: Path) -> None:
    models = pair(tmp_path, "mistral", "prefix", sliding_window=2)
    with torch.no_grad():
        cache = models.theirs.get_prompt(2).layers
    assert [layer.keys.shape[2] for layer in cache] == [VIRTUAL] * 3
    assert [key.shape[2] for key, _ in models.ours.get_prompt(2)] == [VIRTUAL] * 3


@pytest.mark.parametrize("method", ["prompt", "prefix"])
@pytest.mark.parametrize(
    ("family", "invariant"), [("gpt2", False), ("llama", False), ("opt", True), ("bloom", True)]
)
def test_padding_on_the_left_moves_positions(
    tmp_path: Path, family: str, invariant: bool, method: str
) -> None:
    """Positions are counted along the sequence, padding too; OPT and BLOOM count along the mask."""
    models = pair(tmp_path, family, method)
    mask = numpy.array([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])
    padded, _ = models.ask(attention_mask=mask)
    alone, _ = models.ask(input_ids=IDS[:1, 2:])
    apart = relative_error(padded.logits[:1, -3:].detach().numpy(), alone.logits[:, -3:].detach().numpy())
    assert (apart < TOLERANCE) == invariant


def test_left_padding_and_positions_beside_a_prefix_or_a_prompt(tmp_path: Path) -> None:
    """The caller's positions make up for it beside a prefix; beside a prompt HF drops them."""
    mask, positions = numpy.array([[0, 0, 1, 1, 1]]), numpy.array([[0, 0, 0, 1, 2]])
    for method, made_up in (("prefix", True), ("prompt", False)):
        models = pair(tmp_path / method, "llama", method)
        padded, _ = models.ask(input_ids=IDS[:1], attention_mask=mask, position_ids=positions)
        alone, _ = models.ask(input_ids=IDS[:1, 2:])
        apart = relative_error(padded.logits[:, -3:].detach().numpy(), alone.logits[:, -3:].detach().numpy())
        assert (apart < TOLERANCE) == made_up


def test_falcon_adds_its_bias_twice_in_eager_attention(tmp_path: Path) -> None:
    """Before and after it scales the scores; its default, sdpa, adds it once. refpeft follows the attention it says."""
    changes = {"alibi": True, "multi_query": False, "parallel_attn": False, "bias": True}
    eager = pair(tmp_path / "eager", "falcon", "prefix", **changes)
    sdpa = pair(tmp_path / "sdpa", "falcon", "prefix", attention="sdpa", **changes)
    numpy.testing.assert_array_equal(eager.table(), sdpa.table())
    answers = [ask_hf(models.theirs, {"input_ids": IDS}).logits.numpy() for models in (eager, sdpa)]
    assert relative_error(answers[0], answers[1]) > SEEN
    assert relative_error(eager.ours(IDS).logits, answers[0]) < TOLERANCE
    base = eager.ours.base
    once = replace(base.config, alibi_times=base.config.alibi_times / 2)
    halved = refpeft.PeftModel(
        BaseModel(once, base.parameters), eager.ours.config, eager.ours.trainable_parameters()
    )
    assert relative_error(halved(IDS).logits, answers[1]) < TOLERANCE


@pytest.mark.parametrize("task", ["SEQ_CLS", "TOKEN_CLS"])
def test_falcon_s_classifiers_drop_positions(tmp_path: Path, task: str) -> None:
    """HF's language model and backbone take them."""
    adapter = {"token_dim": 10, "num_attention_heads": 1}
    for kind, dropped in ((task, True), ("CAUSAL_LM", False), ("FEATURE_EXTRACTION", False)):
        models = pair(tmp_path / kind, "falcon", "prefix", kind, adapter)
        positions = numpy.array([[4, 0, 2, 2, 1], [0, 1, 2, 3, 4]])
        with_them, without = models.ask(position_ids=positions)[1], models.ask()[1]
        names = ("logits",) if kind != "FEATURE_EXTRACTION" else ("last_hidden_state",)
        assert all(numpy.array_equal(getattr(with_them, n), getattr(without, n)) for n in names) == dropped


def test_types_of_tokens_are_used_by_two_tasks_alone(tmp_path: Path) -> None:
    """SEQ_CLS and TOKEN_CLS; QUESTION_ANS and FEATURE_EXTRACTION drop them."""
    types = numpy.array([[0, 1, 2, 0, 1], [2, 2, 1, 1, 0]])
    for task, used in (
        ("SEQ_CLS", True),
        ("TOKEN_CLS", True),
        ("QUESTION_ANS", False),
        ("FEATURE_EXTRACTION", False),
    ):
        for method in ("prompt", "prefix"):
            models = pair(tmp_path / task / method, "bert", method, task, num_labels=2)
            with_them, without = models.ask(token_type_ids=types)[1], models.ask()[1]
            name = {"QUESTION_ANS": "start_logits", "FEATURE_EXTRACTION": "last_hidden_state"}.get(
                task, "logits"
            )
            assert (relative_error(getattr(with_them, name), getattr(without, name)) > SEEN) == used


@pytest.mark.parametrize("family", ["gemma", "gemma2", "gemma3_text", "bart"])
def test_a_prompt_is_not_scaled_but_starts_from_scaled_rows(tmp_path: Path, family: str) -> None:
    """HF draws tokens through the embedding module, which multiplies; what is trained is not multiplied again."""
    task, scaled = ("SEQ_2_SEQ_LM", {"scale_embedding": True}) if family == "bart" else ("CAUSAL_LM", {})
    models = pair(tmp_path, family, "prompt", task, {"prompt_tuning_init": "SAMPLE_VOCAB"}, **scaled)
    rows = models.ours.base.parameters["embeddings.tokens.weight"]
    width = rows.shape[1]
    nearest = numpy.abs(models.table()[:, None] - rows[None] * width**0.5).max(axis=2).min(axis=1)
    assert nearest.max() < 4e-6
    with torch.no_grad():
        numpy.testing.assert_array_equal(models.theirs.get_prompt(1)[0].numpy(), models.table())
    models.ask(**({"labels": LABELS} if family == "bart" else {}))


def test_a_start_token_that_no_file_states_is_refused_by_hf_alone(tmp_path: Path) -> None:
    """HF's configuration object has BART's default, but `generate` looks at what was written; refpeft takes the default (GN-9)."""
    from transformers import AutoModelForSeq2SeqLM

    stated = {"model_type": "bart", **tiny_values("bart")}
    sparse = {name: value for name, value in stated.items() if not name.endswith("_token_id")}
    directory = write_base(sparse, "SEQ_2_SEQ_LM", 0, tmp_path / "base")
    (directory / "config.json").write_text(json.dumps(sparse))
    (directory / "generation_config.json").unlink(missing_ok=True)
    model = AutoModelForSeq2SeqLM.from_pretrained(directory)
    assert model.config.decoder_start_token_id == 2
    with pytest.raises(ValueError, match="decoder_start_token_id"):
        model.generate(torch.tensor(IDS), max_new_tokens=2)
    base = refpeft.load_base_model(directory)
    config = refpeft.PrefixTuningConfig(task_type="SEQ_2_SEQ_LM", num_virtual_tokens=VIRTUAL)
    tokens = refpeft.get_peft_model(base, config, seed=0).generate(IDS, max_new_tokens=2)
    assert (tokens[:, 0] == 2).all()
