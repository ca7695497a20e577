"""A base model elsewhere: how it gets there, and everything that a user does with it, beside the same on the host.

Elsewhere are arrays that refuse what a GPU's would (foreign.py); the same on a GPU is in test_gpu.py.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy
import pytest
from elsewhere import Elsewhere, Remote
from foreign import Foreign, fetch
from support import (
    ASKED,
    EVERY_CASE,
    MODELS,
    VIRTUAL,
    outputs_of,
    relative_error,
    save_base,
    tiny_adapter,
    tiny_model,
    tiny_question,
    tiny_values,
)

import refpeft
from refpeft import arrays, devices, shared_prompt, steps
from refpeft.errors import ConfigError
from refpeft.oracle.budget import PROFILES
from refpeft.oracle.judge import Selection
from refpeft.oracle.run import judge
from refpeft.oracle.vectors import all_vectors
from refpeft.peft_model import PeftModel

METHODS = ["prompt", "prefix", "projected"]
BOTH = ["prompt", "projected"]
"""Without a projection a prefix takes the same steps but three."""
WRITES = ("CAUSAL_LM", "SEQ_2_SEQ_LM")
GENERATING = [name for name, task in ASKED if task in WRITES]


# ---------------------------------------------------------------- the way there


def fake_cupy(count: Callable[[], int] = lambda: 2) -> tuple[Any, list[int]]:
    """What is used of CuPy, with arrays that are no GPU's; and which devices were made the current one."""
    current: list[int] = []

    def make(number: int) -> Any:
        return SimpleNamespace(use=lambda: current.append(number))

    class Unregistered(Foreign):
        pass

    cuda = SimpleNamespace(runtime=SimpleNamespace(getDeviceCount=count), Device=make)
    return SimpleNamespace(ndarray=Unregistered, asarray=Unregistered, asnumpy=fetch, cuda=cuda), current


@pytest.mark.parametrize(("device", "used"), [("cuda", []), ("cuda:0", [0]), ("cuda:1", [1])])
def test_a_base_model_is_loaded_to_a_device(
    device: str, used: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = save_base(tmp_path / "base", tiny_model("gpt2"), tiny_values("gpt2"))
    cupy, current = fake_cupy()
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    base = refpeft.load_base_model(directory, "float32", device)
    expected = refpeft.load_base_model(directory, "float32")
    assert current == used
    assert list(base.parameters) == list(expected.parameters)
    for name, value in base.parameters.items():
        assert isinstance(value, cupy.ndarray)
        numpy.testing.assert_array_equal(arrays.to_host(value), expected.parameters[name])
    assert isinstance(base.place(numpy.ones(2)), cupy.ndarray)
    assert base.parameters["head.weight"] is base.parameters["embeddings.tokens.weight"]
    assert base.dtype == numpy.float32


def test_the_host_is_a_device() -> None:
    x = numpy.ones(2)
    assert devices.mover("cpu")(x) is x


def refused(device: str) -> str:
    with pytest.raises(ConfigError) as caught:
        devices.mover(device)
    return str(caught.value)


@pytest.mark.parametrize("device", ["gpu", "CUDA", "cuda:", "cuda:-1", "cuda:1 ", "", "mps"])
def test_other_names_are_no_devices(device: str) -> None:
    assert (
        refused(device)
        == f"device must be 'cpu', 'cuda' or, of several GPUs, one such as 'cuda:1'; not {device!r}."
    )


def test_without_cupy_there_is_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cupy", None)
    assert refused("cuda") == (
        "device is 'cuda', and arrays on a GPU are CuPy's, which cannot be imported: import of cupy halted; None in sys.modules. "
        "Install it with pip install 'refpeft[gpu]'."
    )


def test_a_gpu_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_driver() -> int:
        raise RuntimeError("cudaErrorInsufficientDriver")

    monkeypatch.setitem(sys.modules, "cupy", fake_cupy(no_driver)[0])
    assert refused("cuda") == (
        "device is 'cuda', but CuPy finds no GPU: cudaErrorInsufficientDriver. Install the GPU's driver, or compute on the 'cpu'."
    )
    monkeypatch.setitem(sys.modules, "cupy", fake_cupy()[0])
    assert refused("cuda:2") == "device is 'cuda:2', but the number of GPUs is 2. They are counted from 0."


def test_what_stays_in_its_file_is_on_no_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cupy", fake_cupy()[0])
    with pytest.raises(ConfigError) as caught:
        refpeft.load_base_model(tmp_path, device="cuda", lazy=True)
    assert str(caught.value) == (
        "lazy=True leaves matrices in their file, and device='cuda' takes them out of it. Give one of the two."
    )


# ---------------------------------------------------------------- what users do


def pair(name: str, method: str, task: str = "") -> tuple[PeftModel, PeftModel]:
    """The same model on the host and elsewhere."""
    family, changes = MODELS[name]
    base = tiny_model(family, **changes)
    return tiny_adapter(base, method, task), tiny_adapter(base.map(Remote), method, task)


def text(model: PeftModel) -> dict[str, Any]:
    """Two texts to go on from, the first padded on the left."""
    question = tiny_question(model)
    mask = question["attention_mask"].copy()
    mask[:, -1] = 1
    return {"input_ids": question["input_ids"], "attention_mask": mask}


def same(given: Any, expected: Any) -> None:
    """Arrays elsewhere, in tuples and dictionaries too, equal those of the host."""
    if isinstance(expected, dict):
        assert list(given) == list(expected)
        given, expected = tuple(given.values()), tuple(expected.values())
    if isinstance(expected, tuple):
        assert len(given) == len(expected)
        for one, other in zip(given, expected, strict=True):
            same(one, other)
        return
    assert isinstance(given, Remote)
    assert given.dtype == expected.dtype
    assert relative_error(fetch(given), expected) < 1e-15


@pytest.fixture(autouse=True)
def _definitions() -> Any:
    """Kernels do not serve arrays elsewhere, and round otherwise."""
    with steps.kernels():
        yield


@pytest.mark.parametrize("method", BOTH)
@pytest.mark.parametrize(("name", "task"), ASKED, ids=[f"{name}: {task}" for name, task in ASKED])
def test_every_model_computes_elsewhere(name: str, task: str, method: str) -> None:
    """Inputs are given as they are on the host, arrays or lists."""
    here, there = pair(name, method, task)
    same(there.parameters(), here.parameters())
    question = tiny_question(here)
    if method == "projected":
        question = {key: value.tolist() for key, value in question.items()}
    given, expected = there(**question), here(**question)
    same(dict(outputs_of(given)), dict(outputs_of(expected)))
    same(given.past_key_values, expected.past_key_values)
    if expected.loss is not None:
        same(given.loss, expected.loss)
        value, gradients = there.value_and_grad(**question)
        expected_value, expected_gradients = here.value_and_grad(**question)
        same(value, expected_value)
        same(gradients, expected_gradients)


@pytest.mark.parametrize("method", BOTH)
@pytest.mark.parametrize("name", GENERATING)
def test_every_model_generates_elsewhere(name: str, method: str) -> None:
    """Tokens, logits and scores come to the host, where they are chosen."""
    here, there = pair(name, method)
    question = text(here)
    for options in ({}, {"num_beams": 3, "num_return_sequences": 2}):
        told = {
            **question,
            "max_new_tokens": 4,
            "pad_token_id": 0,
            "return_dict_in_generate": True,
            **options,
        }
        given, expected = there.generate(**told), here.generate(**told)
        for field in ("sequences", "logits", "sequences_scores"):
            one, other = getattr(given, field), getattr(expected, field)
            assert type(one) is type(other)
            if other is not None:
                numpy.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("method", METHODS)
def test_prompts_shared_by_a_batch_are_shared_elsewhere(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_prompt, "WORTH", 0)
    here, there = pair("llama", method)
    question = tiny_question(here)
    with steps.kernels("shared_prompt.forward"):
        same(there(**question).logits, here(**question).logits)
        same(there.value_and_grad(**question)[1], here.value_and_grad(**question)[1])


@pytest.mark.parametrize("task", ["CAUSAL_LM", "SEQ_CLS"])
@pytest.mark.parametrize("method", METHODS)
def test_training_elsewhere_is_training(method: str, task: str, tmp_path: Path) -> None:
    """And goes on from what it kept."""
    here, there = pair("gpt2", method, task)
    question = tiny_question(here)
    batches = [
        {key: question[key] for key in ("input_ids", "labels", "attention_mask")},
        {"input_ids": question["input_ids"][:, ::-1], "labels": question["labels"]},
    ]
    arguments = refpeft.TrainingArguments(max_steps=5, learning_rate=0.1, weight_decay=0.1, warmup_steps=2)
    expected = refpeft.train(here, batches, arguments, progress=False)

    def stop(step: int, _: PeftModel) -> None:
        if step == 3:
            raise KeyboardInterrupt

    directory = tmp_path / "training" if task == "CAUSAL_LM" else None  # whose batches are checked beforehand
    if directory:
        with pytest.raises(KeyboardInterrupt):
            refpeft.train(there, batches, arguments, progress=False, directory=directory, on_step=stop)
    given = refpeft.train(there, batches, arguments, progress=False, directory=directory)
    for field in ("losses", "learning_rates", "gradient_norms"):
        numpy.testing.assert_allclose(getattr(given, field), getattr(expected, field), rtol=1e-14)
    for key, value in there.trainable_parameters().items():
        assert relative_error(fetch(value), here.trainable_parameters()[key]) < 1e-13, key


def test_training_elsewhere_that_diverges_is_told(tmp_path: Path) -> None:
    _, there = pair("gpt2", "prompt")
    batch = {key: value for key, value in tiny_question(there).items() if key != "attention_mask"}
    arguments = refpeft.TrainingArguments(max_steps=3, learning_rate=1e300)
    before = there.trainable_parameters()
    with pytest.raises(refpeft.InputError) as caught:
        refpeft.train(there, [batch], arguments, progress=False)
    assert str(caught.value).startswith("Training diverges at step 2: ")
    assert "Remote" not in str(caught.value)
    assert list(before) == list(there.trainable_parameters())


@pytest.mark.parametrize("task", ["CAUSAL_LM", "SEQ_CLS"])
@pytest.mark.parametrize("method", METHODS)
def test_adapters_elsewhere_are_saved_and_loaded(method: str, task: str, tmp_path: Path) -> None:
    """The files are the same bytes; a second adapter, a loaded one, one loaded again."""
    here, there = pair("gpt2", method, task)
    question = tiny_question(here)
    for model, directory in ((here, tmp_path / "here"), (there, tmp_path / "there")):
        model.add_adapter("other", model.config, seed=5)
        model.set_adapter("other")
        model.save_pretrained(directory)
    files = [path.relative_to(tmp_path / "here") for path in sorted((tmp_path / "here").rglob("*.*"))]
    assert len(files) == 4
    for file in files:
        assert (tmp_path / "there" / file).read_bytes() == (tmp_path / "here" / file).read_bytes()
    same(outputs_of(there(**question))["logits"], outputs_of(here(**question))["logits"])
    loaded = PeftModel.from_pretrained(there.base, tmp_path / "there")
    expected = PeftModel.from_pretrained(here.base, tmp_path / "here")
    same(loaded.parameters(), expected.parameters())
    loaded.load_adapter(tmp_path / "there" / "other", "other")
    loaded.load_adapter(tmp_path / "there", "other")
    loaded.set_adapter("other")
    same(loaded.parameters(), expected.parameters())


@pytest.mark.parametrize("method", METHODS)
def test_a_disabled_adapter_leaves_the_base_elsewhere(method: str) -> None:
    here, there = pair("gpt2", method)
    question = tiny_question(here)
    with here.disable_adapter(), there.disable_adapter():
        same(there(**question).logits, here(**question).logits)
        told = {**text(here), "max_new_tokens": 3}
        numpy.testing.assert_array_equal(there.generate(**told), here.generate(**told))


def test_parameters_and_inputs_may_come_from_there() -> None:
    """What is not elsewhere is brought there, what is stays; both are looked at on the host."""
    here, there = pair("gpt2", "prompt")
    question = tiny_question(here)
    new = {key: value + 1.0 for key, value in here.trainable_parameters().items()}
    here.load_trainable_parameters(new)
    for given in (new, {key: Remote(value) for key, value in new.items()}):
        there.load_trainable_parameters(given)
        same(there.trainable_parameters(), here.trainable_parameters())
    remote = {key: Remote(value) for key, value in question.items()}
    same(there(**remote).loss, here(**question).loss)
    told = text(here)
    numpy.testing.assert_array_equal(
        there.generate(**{key: Remote(value) for key, value in told.items()}, max_new_tokens=3),
        here.generate(**told, max_new_tokens=3),
    )
    same(there.get_prompt(2), here.get_prompt(2))
    for mask in (None, question["attention_mask"]):
        same(there.prepare_attention_mask(2, mask), here.prepare_attention_mask(2, mask))
    assert there.get_nb_trainable_parameters() == here.get_nb_trainable_parameters()
    assert relative_error(here(**remote).loss, here(**question).loss) == 0.0


def test_prefixes_elsewhere_start_from_caches() -> None:
    here, there = pair("gpt2", "prefix")
    for model in (here, there):
        with model.disable_adapter():
            past = model(numpy.arange(VIRTUAL + 2)[None] + 3).past_key_values
        refpeft.kv_prefix.initialize_kv_prefix_from_past_key_values(model, past_key_values=past)
    same(there.parameters(), here.parameters())


# ---------------------------------------------------------------- the golden vectors


@pytest.mark.parametrize("profile", ["float64", "float32"])
def test_every_golden_case_conforms_elsewhere(profile: str, tmp_path: Path) -> None:
    vectors = list(all_vectors())[:: 1 if EVERY_CASE else 4]
    selection = Selection(vectors, [PROFILES[profile]])
    verdicts = Counter(result.verdict for result in judge(Elsewhere(Remote), selection, tmp_path, None))
    assert verdicts == {"CONFORMS": len(vectors)}
