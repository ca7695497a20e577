"""Several adapters, counts and prefixes from caches against the real HF peft, in true float64. Needs the extra `golden`.

Sequences of operations are drawn: both sides do each of them, and have to warn, fail, name, count and compute alike.
"""

from __future__ import annotations

import contextlib
import copy
import io
import json
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy
import pytest
from hypothesis import given, note, settings
from hypothesis import strategies as st
from live_families import FAMILIES, draw_config, load_hf, tasks_of, write_base
from live_rounds import PREFIX, PROMPT, sizes_that_hf_misses
from safetensors.numpy import load_file
from support import need, relative_error
from true_float64 import as_float64, true_float64

import refpeft

pytestmark = [pytest.mark.live, pytest.mark.filterwarnings("ignore")]

torch = need("torch")
transformers = need("transformers")
peft = need("peft")

TOLERANCE = 1e-12
"""True float64 on both sides."""
IDS = numpy.array([[3, 1, 4, 1, 5], [9, 2, 6, 0, 0]])
MASK = numpy.array([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
NAMES = st.sampled_from(["default", "b", "c", "prompt", "zz"])
DECODERS = [family for family in FAMILIES if "CAUSAL_LM" in tasks_of(family)]


def configs(method: str, task_type: str, **fields: Any) -> tuple[Any, refpeft.PromptLearningConfig]:
    """HF's and refpeft's configuration; HF changes what it is given."""
    name = "PromptTuningConfig" if method == PROMPT else "PrefixTuningConfig"
    fields = {
        "task_type": task_type,
        **({"prefix_projection": True} if method == "projected" else {}),
        **fields,
    }
    return getattr(peft, name)(**copy.deepcopy(fields)), getattr(refpeft, name)(**fields)


# ---------------------------------------------------------------- sequences of operations

BASES = {
    "CAUSAL_LM": {"model_type": "gpt2", "vocab_size": 31, "n_embd": 12, "n_layer": 2, "n_head": 3, "n_positions": 24,
                  "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2},
    "SEQ_CLS": {"model_type": "bert", "vocab_size": 31, "hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 3,
                "intermediate_size": 7, "max_position_embeddings": 24, "num_labels": 3},
}  # fmt: skip


class World:
    """A base model on both sides, and saved adapters for it: of each method, with 2 or 3 virtual tokens, some with a head."""

    def __init__(self, task: str, path: Path, saved: dict[tuple[str, int, bool], Path]) -> None:
        self.task, self.saved = task, saved
        self.base, self.hf = refpeft.load_base_model(path), load_hf(path, task)


@pytest.fixture(scope="module", params=BASES)
def world(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> World:
    """One for each task."""
    task, directory = request.param, tmp_path_factory.mktemp(request.param)
    path = write_base(BASES[task], task, 0, directory / "base")
    saved: dict[tuple[str, int, bool], Path] = {}
    for method in (PROMPT, PREFIX, "projected"):
        for virtual in (2, 3):
            for head in (False, True) if task == "CAUSAL_LM" else (True,):
                extra = {"modules_to_save": ["lm_head"]} if head and task == "CAUSAL_LM" else {}
                torch.manual_seed(virtual)
                model = peft.get_peft_model(
                    load_hf(path, task), configs(method, task, num_virtual_tokens=virtual, **extra)[0]
                )
                with torch.no_grad():
                    for parameter in model.parameters():
                        if parameter.requires_grad:
                            parameter.add_(torch.randn_like(parameter))
                saved[method, virtual, head] = directory / f"{method}-{virtual}-{head}"
                model.save_pretrained(saved[method, virtual, head])
    return World(task, path, saved)


@st.composite
def sequences(draw: Any) -> tuple[str, dict[str, Any], list[tuple[Any, ...]]]:
    """A method, the first adapter's fields, and what is done then."""
    virtual, heads, flags = st.integers(2, 3), st.booleans(), st.booleans()
    operation = st.one_of(
        st.tuples(st.just("add"), NAMES, virtual, heads, st.integers(0, 9)),
        st.tuples(st.just("set"), NAMES, flags),
        st.tuples(st.just("delete"), NAMES),
        st.tuples(st.just("load"), NAMES, virtual, heads),
        st.tuples(st.just("move"), st.integers(0, 9)),
        st.tuples(st.just("add other"), NAMES),
        st.tuples(st.just("disable"), flags),
        st.tuples(st.just("save")),
    )
    method = draw(st.sampled_from([PROMPT, PREFIX, "projected"]))
    return method, {"num_virtual_tokens": draw(virtual)}, draw(st.lists(operation, min_size=1, max_size=9))


class Pair:
    """HF's model and refpeft's, to which the same is done."""

    def __init__(self, world: World, method: str, fields: dict[str, Any], directory: Path) -> None:
        self.task, self.method, self.world, self.directory = world.task, method, world, directory
        theirs, ours = configs(method, self.task, **fields)
        self.ours = refpeft.get_peft_model(world.base, ours)
        torch.manual_seed(0)
        self.theirs = peft.get_peft_model(copy.deepcopy(world.hf), theirs)
        self.synchronise()

    def synchronise(self) -> None:
        """HF's parameters, which it draws in float32, become refpeft's."""
        self.theirs = as_float64(self.theirs)
        for name, own in self.ours._adapters.every.items():
            assert [f"prompt_encoder.{key}" for key in self.theirs.prompt_encoder[name].state_dict()] == list(
                own.prompt
            )
            for key, parameter in self.theirs.prompt_encoder[name].named_parameters():
                value = own.prompt[f"prompt_encoder.{key}"]
                assert numpy.abs(parameter.detach().numpy() - value).max() <= 4e-6, (name, key)
                parameter.data = torch.tensor(value)

    def head_fields(self, head: bool) -> dict[str, Any]:
        return {"modules_to_save": ["lm_head"]} if head and self.task == "CAUSAL_LM" else {}

    def act(self, operation: tuple[Any, ...]) -> bool:
        """Do it on both sides; False if that is the end."""
        name, *given = operation
        return bool(getattr(self, "_" + name.replace(" ", "_"))(*given))

    def both(self, theirs: Callable[[], Any], ours: Callable[[], Any], *, words: bool = True) -> bool:
        """Whether it went well; then with the same warnings, else with the same words, or refpeft's begin with HF's."""
        outcomes = []
        for call in (theirs, ours):
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                error: Exception | None = None
                try:
                    call()
                except Exception as raised:
                    error = raised
            said = [
                str(w.message) for w in caught if w.category is UserWarning and "dapter" in str(w.message)
            ]
            outcomes.append((error, said))
        (hf_error, hf_said), (error, said) = outcomes
        assert (hf_error is None) == (error is None), (hf_error, error)
        if error is None:
            assert hf_said == said
            return True
        assert isinstance(error, refpeft.RefpeftError)
        assert not words or str(error) == str(hf_error)
        return False

    def _add(self, name: str, virtual: int, head: bool, seed: int) -> bool:
        theirs, ours = configs(self.method, self.task, num_virtual_tokens=virtual, **self.head_fields(head))

        def hf_add() -> None:
            torch.manual_seed(seed)
            self.theirs.add_adapter(name, theirs)

        if self.both(hf_add, lambda: self.ours.add_adapter(name, ours, seed=seed)):
            self.synchronise()
        return True

    def _add_other(self, name: str) -> bool:
        other = PREFIX if self.method == PROMPT else PROMPT
        theirs, ours = configs(other, self.task, num_virtual_tokens=2)
        assert not self.both(
            lambda: self.theirs.add_adapter(name, theirs), lambda: self.ours.add_adapter(name, ours)
        )
        return True

    def _set(self, name: str, inference_mode: bool) -> bool:
        self.both(
            lambda: self.theirs.set_adapter(name, inference_mode=inference_mode),
            lambda: self.ours.set_adapter(name, inference_mode=inference_mode),
        )
        return True

    def _delete(self, name: str) -> bool:
        if list(self.ours.peft_config) == [name]:
            with pytest.raises(refpeft.InputError, match=f"Adapter {name} is the only one"):
                self.ours.delete_adapter(name)
            return True
        known = name in self.ours.peft_config
        done = self.both(
            lambda: self.theirs.delete_adapter(name), lambda: self.ours.delete_adapter(name), words=not known
        )
        return done or not known  # HF has deleted half of it

    def _load(self, name: str, virtual: int, head: bool) -> bool:
        head = head or self.task != "CAUSAL_LM"
        directory, there = self.world.saved[self.method, virtual, head], name in self.ours.peft_config
        if there and head and not self.ours._adapters.every[name].head:
            with pytest.raises((refpeft.CheckpointError, refpeft.ConfigError)):  # HF leaves the head out
                self.ours.load_adapter(directory, name)
            return True
        done = self.both(
            lambda: self.theirs.load_adapter(str(directory), name),
            lambda: self.ours.load_adapter(directory, name),
            words=False,
        )
        if done:
            self.synchronise()
        return done  # HF may have loaded half of it

    def _move(self, seed: int) -> bool:
        """Other values for all that has a gradient."""
        random = numpy.random.default_rng(seed)
        moved = {n: v + random.normal(size=v.shape) for n, v in self.ours.trainable_parameters().items()}
        self.ours.load_trainable_parameters(moved)
        prompt = self.theirs.prompt_encoder[self.theirs.active_adapter]
        with torch.no_grad():
            for name, value in moved.items():
                if name.startswith("prompt_encoder."):
                    prompt.get_parameter(name.removeprefix("prompt_encoder.")).copy_(torch.tensor(value))
                else:
                    module, rest = name.removeprefix("base_model.").split(".", 1)
                    wrapper = self.theirs.base_model.get_submodule(module)
                    copied = wrapper.modules_to_save[wrapper.active_adapters[0]]
                    copied.get_parameter(rest).copy_(torch.tensor(value))
        return True

    def _disable(self, nested: bool) -> bool:
        if self.task != "CAUSAL_LM":
            return not self.both(
                lambda: self.theirs.disable_adapter().__enter__(),
                lambda: self.ours.disable_adapter().__enter__(),
                words=False,
            )
        with self.theirs.disable_adapter(), self.ours.disable_adapter():
            self.compare()
            if nested:
                with self.theirs.disable_adapter(), self.ours.disable_adapter():
                    self.compare()
            left = numpy.where(MASK[:, ::-1] == 1, IDS[:, ::-1], 0)
            options = {
                "max_new_tokens": 3,
                "do_sample": False,
                "return_dict_in_generate": True,
                "output_logits": True,
            }
            with true_float64(), torch.no_grad():
                expected = self.theirs.generate(
                    input_ids=torch.tensor(left), attention_mask=torch.tensor(MASK[:, ::-1].copy()), **options
                )
            given = self.ours.generate(
                left, attention_mask=MASK[:, ::-1], max_new_tokens=3, return_dict_in_generate=True
            )
            assert given.sequences.tolist() == expected.sequences.tolist()
            assert relative_error(given.logits, torch.stack(expected.logits, dim=1).numpy()) < TOLERANCE
            positions = {"position_ids": numpy.array([[4, 3, 2, 1, 0]] * 2), "labels": IDS}
            assert (
                relative_error(self.ours(IDS, MASK, **positions).loss, self.ask(**positions).loss.item())
                < TOLERANCE
            )
        return True

    def _save(self) -> bool:
        for side, model in (("theirs", self.theirs), ("ours", self.ours)):
            model.save_pretrained(self.directory / side)
        trees = [
            sorted(p.relative_to(self.directory / s) for p in (self.directory / s).rglob("*.*"))
            for s in ("ours", "theirs")
        ]
        assert trees[0] == [path for path in trees[1] if path.name != "README.md"]
        for path in trees[0]:
            ours, theirs = self.directory / "ours" / path, self.directory / "theirs" / path
            if path.suffix == ".json":
                assert json.loads(ours.read_text()) == json.loads(theirs.read_text())
            else:
                tensors, expected = load_file(ours), load_file(theirs)
                assert tensors.keys() == expected.keys()
                assert all(relative_error(tensors[name], expected[name]) < TOLERANCE for name in tensors)
        return True

    def ask(self, **inputs: Any) -> Any:
        given = {"input_ids": IDS, "attention_mask": MASK, **inputs}
        with true_float64(), torch.no_grad():
            return self.theirs(**{name: torch.tensor(value) for name, value in given.items()})

    def compare(self) -> None:
        """Names, counts and outputs."""
        ours, theirs = self.ours, self.theirs
        assert (ours.active_adapter, ours.active_adapters) == (theirs.active_adapter, theirs.active_adapters)
        assert list(ours.peft_config) == list(theirs.peft_config)
        assert [c.modules_to_save for c in ours.peft_config.values()] == [
            c.modules_to_save for c in theirs.peft_config.values()
        ]
        assert ours.trainable_parameter_names() == [
            n for n, p in theirs.named_parameters() if p.requires_grad
        ]
        assert ours.get_nb_trainable_parameters() == theirs.get_nb_trainable_parameters()
        assert relative_error(ours(IDS, MASK).logits, self.ask().logits.numpy()) < TOLERANCE


@settings(deadline=None, print_blob=True)
@given(what=sequences())
def test_sequences_of_operations(
    world: World, what: tuple[str, dict[str, Any], list[tuple[Any, ...]]],
    tmp_path_factory: pytest.TempPathFactory,
) -> None:  # fmt: skip
    method, fields, operations = what
    pair = Pair(world, method, fields, tmp_path_factory.mktemp("saved"))
    pair.compare()
    for operation in operations:
        note(f"{operation}: {pair.ours._adapters.active}, {list(pair.ours.peft_config)}")
        if not pair.act(operation):
            return
        pair.compare()


def test_gradients_while_disabled_are_of_the_head_alone(tmp_path: Path) -> None:
    path = write_base(BASES["CAUSAL_LM"], "CAUSAL_LM", 0, tmp_path / "base")
    theirs, ours = configs(PREFIX, "CAUSAL_LM", num_virtual_tokens=2, modules_to_save=["lm_head"])
    model, hf = refpeft.get_peft_model(refpeft.load_base_model(path), ours), load_hf(path, "CAUSAL_LM")
    hf = as_float64(peft.get_peft_model(hf, theirs))
    with hf.disable_adapter(), model.disable_adapter(), true_float64():
        hf(input_ids=torch.tensor(IDS), labels=torch.tensor(IDS)).loss.backward()
        _, gradients = model.value_and_grad(IDS, labels=IDS)
    found = {name: parameter.grad for name, parameter in hf.named_parameters() if parameter.grad is not None}
    assert list(found) == ["base_model.lm_head.modules_to_save.default.weight"]
    assert list(gradients) == ["base_model.lm_head.weight"]
    (expected,), (gradient,) = found.values(), gradients.values()
    assert relative_error(gradient, expected.numpy()) < TOLERANCE


# ---------------------------------------------------------------- counts


@pytest.mark.parametrize("family", FAMILIES)
@settings(deadline=None, print_blob=True)
@given(data=st.data())
def test_counts(family: str, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Of every family and task, with one or two adapters, and a directory that holds other tasks' heads too."""
    task = data.draw(st.sampled_from(tasks_of(family)))
    config = draw_config(data.draw, family, 12, task)
    method = data.draw(st.sampled_from([PROMPT, PREFIX, "projected"]))
    path = write_base(config, task, 0, tmp_path_factory.mktemp("counts") / "base")
    fields = {"num_virtual_tokens": data.draw(st.integers(1, 5)), **sizes_that_hf_misses(config, method)}
    if task in ("CAUSAL_LM", "SEQ_2_SEQ_LM") and data.draw(st.booleans()):
        fields["modules_to_save"] = ["lm_head"]
    theirs, ours = configs(method, task, **fields)
    hf = peft.get_peft_model(load_hf(path, task), theirs)
    model = refpeft.get_peft_model(refpeft.load_base_model(path), ours)
    if data.draw(st.booleans()):
        theirs, ours = configs(method, task, **{**fields, "num_virtual_tokens": 2})
        hf.add_adapter("b", theirs)
        model.add_adapter("b", ours)
    assert model.trainable_parameter_names() == [n for n, p in hf.named_parameters() if p.requires_grad]
    said = []
    for side in (hf, model):
        with contextlib.redirect_stdout(io.StringIO()) as out:
            side.print_trainable_parameters()
        said.append(out.getvalue())
    assert said[0] == said[1]
    assert model.get_nb_trainable_parameters() == hf.get_nb_trainable_parameters()


@pytest.mark.parametrize("family", ["bert", "roberta", "gpt2", "llama"])
def test_heads_of_other_tasks_in_the_directory_are_not_counted(family: str, tmp_path: Path) -> None:
    """All classes' tensors in one file, of which each class takes its own."""
    from safetensors.torch import load_file as load_torch
    from safetensors.torch import save_file as save_torch

    wanted: dict[str, int] = {}
    whole: dict[str, Any] = {}
    config = {"model_type": family, "vocab_size": 31, "hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 3,
              "intermediate_size": 7, "max_position_embeddings": 24, "num_labels": 2, "pad_token_id": 1}  # fmt: skip
    for task in tasks_of(family):
        path = write_base(config, task, 0, tmp_path / task)
        wanted[task] = peft.get_peft_model(
            load_hf(path, task), configs(PREFIX, task, num_virtual_tokens=2)[0]
        ).get_nb_trainable_parameters()[1]
        tensors = load_torch(path / "model.safetensors")
        if task == "FEATURE_EXTRACTION":
            start = {"gpt2": "transformer.", "llama": "model."}.get(family, f"{family}.")
            tensors = {start + name: tensor for name, tensor in tensors.items()}
        if family == "llama" and task in (
            "QUESTION_ANS",
            "TOKEN_CLS",
        ):  # its class has other names; two heads have one
            tensors = {name: t for name, t in tensors.items() if name.startswith("qa_outputs.")}
        whole = {**tensors, **whole}
    merged = tmp_path / "merged"
    merged.mkdir()
    (merged / "config.json").write_text(json.dumps(config))
    save_torch(
        {n: t.clone() for n, t in whole.items()}, merged / "model.safetensors", metadata={"format": "pt"}
    )
    base = refpeft.load_base_model(merged)
    for task, number in wanted.items():
        if family == "llama" and task == "TOKEN_CLS":
            continue
        model = refpeft.get_peft_model(base, configs(PREFIX, task, num_virtual_tokens=2)[1])
        assert model.get_nb_trainable_parameters()[1] == number, task


# ---------------------------------------------------------------- prefixes from caches and texts


def make_tokenizer(directory: Path, vocabulary: int, *, special: bool = False) -> Path:
    """A tokenizer.json of the words t0, t1, …, which may put t1 before and t2 behind a text."""
    tokenizers = need("tokenizers")
    words = {f"t{i}": i for i in range(vocabulary)}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="t0"))  # noqa: S106
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    if special:
        tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
            single="t1 $A t2", special_tokens=[("t1", 1), ("t2", 2)]
        )
    directory.mkdir()
    tokenizer.save(str(directory / "tokenizer.json"))
    return directory


def started_by_text(model: Any, tokenizer: Any, initialise: Callable[..., Any], **given: Any) -> Any:
    """The flat prefix, or the words of the error."""
    try:
        return initialise(model, tokenizer, **given)
    except ValueError as error:
        return str(error)


@pytest.mark.parametrize("family", [*DECODERS, "bart"])
@settings(deadline=None, print_blob=True)
@given(data=st.data())
def test_a_prefix_from_a_text(
    family: str, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """The same flat prefix as HF's, or the same words; and the adapted model goes on as the base model behind the text."""
    task = "SEQ_2_SEQ_LM" if family == "bart" else "CAUSAL_LM"
    directory = tmp_path_factory.mktemp("text")
    config = draw_config(data.draw, family, 14, task)
    path = write_base(config, task, data.draw(st.integers(0, 99)), directory / "base")
    virtual, tokens = data.draw(st.integers(1, 5)), data.draw(st.integers(1, 4))
    special, max_length = data.draw(st.booleans()), data.draw(st.none() | st.integers(3, 7))
    words = data.draw(st.lists(st.integers(0, config["vocab_size"] - 1), min_size=1, max_size=7))
    text = " ".join(f"t{word}" for word in words)
    fields = {"num_virtual_tokens": virtual, **sizes_that_hf_misses(config, PREFIX)}
    theirs, ours = configs(PREFIX, task, **fields)
    hf, base = as_float64(peft.get_peft_model(load_hf(path, task), theirs)), refpeft.load_base_model(path)
    model = refpeft.get_peft_model(base, ours)
    made = make_tokenizer(directory / "tokenizer", config["vocab_size"], special=special)
    fast = transformers.PreTrainedTokenizerFast(tokenizer_file=str(made / "tokenizer.json"))
    given = {"text": text, "max_length": max_length}
    with true_float64():
        expected = started_by_text(hf, fast, peft.initialize_kv_prefix_from_text, **given)
    flat = started_by_text(model, made, refpeft.initialize_kv_prefix_from_text, **given)
    if isinstance(expected, str) or isinstance(flat, str):
        assert flat == expected
        return
    assert relative_error(flat, expected.numpy()) < TOLERANCE
    assert numpy.array_equal(model.parameters()["prompt_encoder.embedding.weight"], flat)
    ids = fast(text, truncation=max_length is not None, max_length=max_length)["input_ids"]
    if task == "SEQ_2_SEQ_LM" or not holds_all(base, len(ids)):
        return  # the prefix is of the shifted text, or of its last tokens
    following = numpy.arange(tokens)[None] % config["vocab_size"]
    with model.disable_adapter():
        whole = model(numpy.concatenate([[ids[:virtual]], following], axis=1)).logits
    assert relative_error(model(following).logits, whole[:, virtual:]) < 1e-11


def holds_all(base: refpeft.BaseModel, tokens: int) -> bool:
    """Whether the cache of every layer holds so many tokens (with a window of 1 it is never cut)."""
    return all(window in (None, 1) or tokens < window for window in base.config.sliding_windows or ())


@pytest.mark.parametrize("family", ["t5", "bart"])
def test_a_prefix_from_a_cache_of_a_decoder_behind_an_encoder(family: str, tmp_path: Path) -> None:
    """HF lays it out as for a decoder alone, though it reads it otherwise."""
    sizes = {"t5": {"d_model": 12, "d_kv": 4, "d_ff": 7, "num_layers": 2, "num_heads": 3, "decoder_start_token_id": 0},
             "bart": {"d_model": 12, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 3,
                      "decoder_attention_heads": 3, "encoder_ffn_dim": 7, "decoder_ffn_dim": 7,
                      "max_position_embeddings": 24}}[family]  # fmt: skip
    path = write_base({"model_type": family, "vocab_size": 31, **sizes}, "SEQ_2_SEQ_LM", 0, tmp_path / "base")
    theirs, ours = configs(PREFIX, "SEQ_2_SEQ_LM", num_virtual_tokens=3)
    hf = as_float64(peft.get_peft_model(load_hf(path, "SEQ_2_SEQ_LM"), theirs))
    model = refpeft.get_peft_model(refpeft.load_base_model(path), ours)
    given = {"input_ids": IDS[:1], "decoder_input_ids": numpy.array([[0, 7, 2, 9]])}
    with hf.disable_adapter(), model.disable_adapter(), true_float64(), torch.no_grad():
        cache = hf(**{name: torch.tensor(value) for name, value in given.items()}).past_key_values
        past = model(**given).past_key_values
    expected = peft.initialize_kv_prefix_from_past_key_values(hf, past_key_values=cache)
    flat = refpeft.initialize_kv_prefix_from_past_key_values(model, past_key_values=past)
    assert flat.shape == tuple(expected.shape) == (3, 48)
    assert relative_error(flat, expected.numpy()) < TOLERANCE
    with true_float64(), torch.no_grad():
        answer = hf(**{name: torch.tensor(value) for name, value in given.items()})
    assert relative_error(model(**given).logits, answer.logits.numpy()) < TOLERANCE


def test_composing_as_hf_composes_cartridges(tmp_path: Path) -> None:
    """HF composes adapters of its method CARTRIDGE, whose files are those of prefixes."""
    path = write_base(BASES["CAUSAL_LM"], "CAUSAL_LM", 0, tmp_path / "base")
    base, ours, theirs = refpeft.load_base_model(path), [], []
    for number, virtual in enumerate((2, 1, 3)):
        model = refpeft.get_peft_model(
            base, configs(PREFIX, "CAUSAL_LM", num_virtual_tokens=virtual)[1], seed=number
        )
        model.save_pretrained(tmp_path / f"ours-{number}")
        hf = peft.get_peft_model(
            load_hf(path, "CAUSAL_LM"),
            peft.CartridgeConfig(task_type="CAUSAL_LM", num_virtual_tokens=virtual),
        ).double()
        flat = model.trainable_parameters()["prompt_encoder.embedding.weight"]
        hf.prompt_encoder["default"].load_prompt_embeddings(torch.tensor(flat))
        hf.save_pretrained(tmp_path / f"theirs-{number}")
        ours.append(tmp_path / f"ours-{number}")
        theirs.append(tmp_path / f"theirs-{number}")
    peft.compose_cartridge_adapters(theirs, output_path=tmp_path / "theirs")
    refpeft.compose_prefix_adapters(ours, output_path=tmp_path / "ours")
    expected, found = (
        load_file(tmp_path / side / "adapter_model.safetensors") for side in ("theirs", "ours")
    )
    assert list(found) == list(expected)
    assert found["prompt_embeddings"].dtype == expected["prompt_embeddings"].dtype
    assert numpy.array_equal(found["prompt_embeddings"], expected["prompt_embeddings"])
    files = [json.loads((tmp_path / side / "adapter_config.json").read_text()) for side in ("theirs", "ours")]
    alike = files[0].keys() & files[1].keys() - {"peft_type"}
    assert {name: files[0][name] for name in alike} == {name: files[1][name] for name in alike}
    hf = as_float64(peft.PeftModel.from_pretrained(load_hf(path, "CAUSAL_LM"), tmp_path / "ours"))
    with true_float64(), torch.no_grad():
        answer = hf(input_ids=torch.tensor(IDS)).logits
    loaded = refpeft.PeftModel.from_pretrained(base, tmp_path / "ours")
    hf.prompt_encoder["default"].load_prompt_embeddings(torch.tensor(found["prompt_embeddings"]))
    assert loaded.config.num_virtual_tokens == 6
    with true_float64(), torch.no_grad():
        answer = hf(input_ids=torch.tensor(IDS)).logits
    assert relative_error(loaded(IDS).logits, answer.numpy()) < TOLERANCE
