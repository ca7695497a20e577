"""The user's own model: what is asked, with which inputs, how it is judged, and what a failure leaves behind."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy
import pytest
from oracle.own_models import KINDS, adapter_directory, base_directory

import refpeft
from refpeft.errors import CheckpointError, ConfigError, InputError
from refpeft.oracle import names, own, questions
from refpeft.oracle.budget import PROFILES
from refpeft.oracle.cases import ask_of, can_answer, in_order, stages_of
from refpeft.oracle.expected import derivation_of_floors
from refpeft.oracle.judge import CaseResult, Selection, judge_one, summarise
from refpeft.oracle.own import OwnModel, OwnVector, draw_texts, open_own_model, own_vectors, read_text
from refpeft.oracle.port import ReferencePort
from refpeft.oracle.protocol import RunCommand
from refpeft.oracle.questions import Answer, Arithmetic, Ask
from refpeft.oracle.reply import Reply
from refpeft.oracle.run import judge
from refpeft.oracle.vectors import all_vectors
from refpeft.steps import replaced
from refpeft.tensors import read_tensors, write_tensors

FLOAT32, FLOAT64, ISLANDS = (PROFILES[name] for name in ("float32", "float64", "float64-islands"))
METHOD = {"prompt": "prompt_tuning", "prefix": "prefix_tuning", "folded": "prefix_tuning"}


@pytest.fixture
def model(tmp_path: Path) -> OwnModel:
    return open_own_model(base_directory(), adapter_directory(tmp_path / "adapter", "prefix"))


def asked(model: OwnModel, work: Path, **options: Any) -> dict[str, OwnVector]:
    return {
        v.case.id: v
        for v in own_vectors(model, draw_texts(model), work / "asked", command="again", **options)
    }


class Mutant(ReferencePort):
    """refpeft with a step replaced."""

    def __init__(self, **steps: Any) -> None:
        super().__init__()
        self.steps = {name.replace("__", "."): step for name, step in steps.items()}

    def ask(self, ask: Ask, request: RunCommand) -> Reply:
        with replaced(self.steps):
            return super().ask(ask, request)


# ---------------------------------------------------------------- what is asked


@pytest.mark.parametrize("kind", KINDS)
def test_the_questions_in_the_order_of_asking(tmp_path: Path, kind: str) -> None:
    own_model = open_own_model(base_directory(), adapter_directory(tmp_path / "adapter", kind))
    ids = [v.case.id.split("/", 2)[1:] for v in in_order(list(asked(own_model, tmp_path).values()))]
    texts = ["labels", "left-padding", "no-mask", "right-padding"]
    encode = [] if kind == "prompt" else ["prefix_encode/adapter"]
    assert ids == [
        [METHOD[kind], rest]
        for rest in (
            *(
                "config/adapter-config",
                *encode,
                *(f"inputs/{t}" for t in texts),
                *(f"forward/{t}" for t in texts),
            ),
            *("gradients/labels", "checkpoint/left-padding"),
        )
    ]


def test_the_texts_are_the_same_each_time_and_within_the_model(model: OwnModel) -> None:
    texts, again = draw_texts(model), draw_texts(model)
    assert {name: sorted(text) for name, text in texts.items()} == {
        "no-mask": ["input_ids"],
        "right-padding": ["attention_mask", "input_ids"],
        "left-padding": ["attention_mask", "input_ids"],
        "labels": ["input_ids", "labels"],
    }
    for name, text in texts.items():
        assert all(value.shape == (2, 7) for value in text.values())
        assert 0 <= text["input_ids"].min() <= text["input_ids"].max() < model.base.config.vocab_size
        for key, value in text.items():
            numpy.testing.assert_array_equal(again[name][key], value)
    assert texts["left-padding"]["attention_mask"].tolist() == [[1] * 7, [0] * 3 + [1] * 4]
    assert texts["right-padding"]["attention_mask"].tolist() == [[1] * 7, [1] * 4 + [0] * 3]
    assert texts["left-padding"]["input_ids"][1, :3].tolist() == [1, 1, 1], "the end of text pads"
    assert (texts["labels"]["labels"] == -100).tolist() == [[False] * 7, [True] * 3 + [False] * 4]


@pytest.mark.parametrize(("virtual", "tokens"), [(44, 3), (46, 1)])
def test_few_positions_give_short_texts(tmp_path: Path, virtual: int, tokens: int) -> None:
    adapter = adapter_directory(tmp_path, "prefix", virtual=virtual)
    texts = draw_texts(open_own_model(base_directory(), adapter))
    assert {text["input_ids"].shape for text in texts.values()} == {(2, tokens)}


def test_no_position_left(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        draw_texts(open_own_model(base_directory(), adapter_directory(tmp_path, "prefix", virtual=47)))
    assert str(caught.value) == (
        "The adapter's 47 virtual tokens leave no position for a text: the base model has 47."
    )


def test_the_request_is_an_ordinary_one(model: OwnModel, tmp_path: Path) -> None:
    vectors = asked(model, tmp_path)
    requests: list[RunCommand] = []

    class Listening(ReferencePort):
        def ask(self, ask: Ask, request: RunCommand) -> Reply:
            requests.append(request)
            return super().ask(ask, request)

    for i, vector in enumerate(vectors.values()):
        assert judge_one(Listening(), vector, FLOAT32, tmp_path / str(i), i, None).verdict == "CONFORMS"
    by_id = {request.case: request for request in requests}
    forward, load = (
        by_id["own/prefix_tuning/forward/labels"],
        by_id["own/prefix_tuning/checkpoint/left-padding"],
    )
    assert (forward.model, forward.adapter) == (str(base_directory().resolve()), None)
    assert forward.config == {**model.config.to_dict(), "inference_mode": True}
    inputs = read_tensors(Path(str(forward.inputs)), "the inputs")
    assert {name: str(t.dtype) for name, t in inputs.items()} == {
        "input_ids": "int64", "labels": "int64", "parameters.prompt_encoder.embedding.weight": "float32",
    }  # fmt: skip
    assert (load.config, load.adapter) == (None, str((tmp_path / "adapter").resolve()))
    assert sorted(read_tensors(Path(str(load.inputs)), "the inputs")) == ["attention_mask", "input_ids"]
    trained = by_id["own/prefix_tuning/gradients/labels"].config or {}
    assert (trained["inference_mode"], trained["prefix_projection"]) == (False, False)
    resolve = by_id["own/prefix_tuning/config/adapter-config"]
    assert (resolve.model, resolve.inputs, sorted(resolve.arguments)) == (
        None,
        None,
        ["base_config", "config"],
    )


@pytest.mark.parametrize("kind", KINDS)
def test_the_stages_named_are_those_that_refpeft_computes(tmp_path: Path, kind: str) -> None:
    own_model = open_own_model(base_directory(), adapter_directory(tmp_path / "adapter", kind))
    for vector in asked(own_model, tmp_path).values():
        computed = list(questions.answer(ask_of(vector)).tensors)
        assert stages_of(vector) == list(vector.case.tensors) == computed
        for name, tensor in vector.case.tensors.items():
            step = names.step_of(name)
            assert step is None or (tensor.kind, tuple(tensor.axes)) == (step.kind, step.axes)


def test_gradients_of_a_large_model_are_asked_for_when_wanted(
    model: OwnModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(own, "AFFORDABLE", own._size(model) - 1)
    assert not any("/gradients/" in name for name in asked(model, tmp_path))
    assert any("/gradients/" in name for name in asked(model, tmp_path, gradients=True))
    monkeypatch.setattr(own, "AFFORDABLE", own._size(model))
    assert any("/gradients/" in name for name in asked(model, tmp_path))


def test_another_family_is_not_asked(model: OwnModel, tmp_path: Path) -> None:
    import msgspec

    abilities = msgspec.structs.replace(ReferencePort().abilities, families=["llama"])
    askable = {v.case.question for v in asked(model, tmp_path).values() if can_answer(abilities, v)}
    assert askable == {"config.resolve", "prefix.encode"}


# ---------------------------------------------------------------- judging


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("stored", ["float16", ml_dtypes.bfloat16, "float64"])
def test_refpeft_conforms_to_itself_whatever_the_numbers_are_stored_in(
    tmp_path: Path, kind: str, stored: Any
) -> None:
    """Rounded to float64 and moved off float32's grid, exact stages are within a budget."""
    base, random = tmp_path / "base", numpy.random.default_rng(0)
    base.mkdir()
    (base / "config.json").write_bytes((base_directory() / "config.json").read_bytes())
    tensors = read_tensors(base_directory() / "model.safetensors", "a base")
    write_tensors(
        base / "model.safetensors",
        {n: (t * (1 + 1e-9 * random.random(t.shape))).astype(stored) for n, t in tensors.items()},
    )
    adapter = adapter_directory(tmp_path / "adapter", kind)
    own_model = open_own_model(base, adapter)
    assert own_model.wide == (stored == "float64")
    vectors = list(asked(own_model, tmp_path).values())
    selection = Selection(vectors, [FLOAT32, FLOAT64])
    results = list(judge(ReferencePort(), selection, tmp_path / "work", None))
    assert {case.verdict for case in results} == {"CONFORMS"}
    assert summarise(ReferencePort(), selection, results).expected_from == "refpeft"


def test_every_line_says_whose_value_it_is(model: OwnModel, tmp_path: Path) -> None:
    vectors = asked(model, tmp_path)
    port = Mutant(prefix__value_row=lambda layer, layers: 2 * layer)
    result = judge_one(
        port, vectors["own/prefix_tuning/prefix_encode/adapter"], FLOAT32, tmp_path / "a", 1, None
    )
    first = result.first
    assert first is not None
    assert (result.verdict, first.name, first.golden) == ("NONCONFORMING", "prefix.layers.0.value", False)
    assert ", refpeft " in first.values
    assert first.derivation.endswith("; the floor is of 8 replays on your model (JG-11)")
    assert not any(d.golden for d in result.differences)
    assert not any("HF" in d.values + d.hint + d.reason for d in result.differences)


def test_how_floors_came_about() -> None:
    golden = next(iter(refpeft.oracle.vectors.all_vectors()))  # type: ignore[attr-defined]
    assert derivation_of_floors(golden, FLOAT32) == ""


@pytest.mark.parametrize(
    ("case", "step", "wrong", "stage"),
    [
        ("forward/labels", "loss", lambda kind, logits, labels: logits.sum() * 0 + 1.0, "loss"),
        ("forward/left-padding", "attention.scores", lambda q, k, v, s: q @ k.swapaxes(-1, -2) * s, "decoder.layers.0.attention.scores"),
        ("inputs/no-mask", "inputs.position_ids", lambda batch, m, past, given, like: numpy.arange(m)[None].repeat(batch, 0), "inputs.position_ids"),
        ("gradients/labels", "block.output", lambda hidden, out: hidden + 1.001 * out, "decoder.layers.0.output"),
        ("checkpoint/left-padding", "prefix.key_row", lambda layer, layers: 2 * layer + 1, "prefix.layers.0.key"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("profile", [FLOAT32, ISLANDS], ids=lambda p: p.name)
def test_a_mistake_is_found_where_it_is_made(
    model: OwnModel, tmp_path: Path, case: str, step: str, wrong: Any, stage: str, profile: Any
) -> None:
    vector = asked(model, tmp_path)[f"own/prefix_tuning/{case}"]
    result = judge_one(Mutant(**{step.replace(".", "__"): wrong}), vector, profile, tmp_path / "a", 1, None)
    assert result.first is not None
    assert (result.verdict, result.first.name) == ("NONCONFORMING", stage)


def test_a_wrong_document_is_refpeft_s_to_say(model: OwnModel, tmp_path: Path) -> None:
    vector = asked(model, tmp_path)["own/prefix_tuning/config/adapter-config"]

    class Wrong(ReferencePort):
        def ask(self, ask: Ask, request: RunCommand) -> Reply:
            config = dict(questions.answer(ask).document["config"])
            return Reply("ANSWERED", Answer(document={"config": {**config, "num_layers": 7}}))

    result = judge_one(Wrong(), vector, FLOAT32, tmp_path / "a", 1, None)
    assert result.first is not None
    assert result.first.reason == "has `num_layers` = 7; refpeft has 3"


def test_a_missing_tensor_and_one_too_many(model: OwnModel, tmp_path: Path) -> None:
    vector = asked(model, tmp_path)["own/prefix_tuning/forward/labels"]

    class Partly(ReferencePort):
        def ask(self, ask: Ask, request: RunCommand) -> Reply:
            tensors = dict(questions.answer(ask, Arithmetic(request.dtype)).tensors)
            return Reply("ANSWERED", Answer({"logits": tensors["logits"], "strange": numpy.zeros(2)}))

    result = judge_one(Partly(), vector, FLOAT32, tmp_path / "a", 1, None)
    assert [(d.name, d.ok) for d in result.differences] == [("logits", True), ("loss", False)]
    assert result.first is not None
    assert result.first.reason == "is missing from the answer, which has strange"


# ---------------------------------------------------------------- what a failure leaves behind


def test_a_failure_s_directory(model: OwnModel, tmp_path: Path) -> None:
    vector = asked(model, tmp_path)["own/prefix_tuning/forward/left-padding"]
    port = Mutant(prefix__key_row=lambda layer, layers: 2 * layer + 1)
    result: CaseResult = judge_one(port, vector, FLOAT32, tmp_path / "a", 1, tmp_path / "failures")
    directory = tmp_path / "failures/own.prefix_tuning.forward.left-padding.float32"
    assert result.reproduce == str(directory)
    here = "vectors/own/prefix_tuning/forward/left-padding"
    assert {p.relative_to(directory).as_posix() for p in directory.rglob("*") if p.is_file()} == {
        *("README.txt", "compare.py", "request.json", "answer.safetensors"),
        *(f"{here}/{name}" for name in ("case.json", "inputs.safetensors", "expected.safetensors")),
    }
    request = json.loads((directory / "request.json").read_text())
    assert Path(request["inputs"]).is_file()
    assert request["model"] == str(base_directory().resolve())
    readme = (directory / "README.txt").read_text(encoding="utf-8")
    assert f"again:   again -k {vector.case.id} --profile float32 -- YOUR PORT\n" in readme
    assert f"The base model is {base_directory().resolve()}\n" in readme
    assert readme.endswith(f"{here}/   its inputs, and refpeft's values of what it answered\n")
    run = subprocess.run(
        [sys.executable, directory / "compare.py"], capture_output=True, text=True, check=True
    )
    lines = dict(line.split() for line in run.stdout.splitlines())
    assert list(lines) == list(vector.case.tensors)
    assert float(lines["prefix.flat"]) == 0 < 0.1 < float(lines["prefix.layers.0.key"])


def test_large_values_are_left_out_of_it(
    model: OwnModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from refpeft.oracle import reproduce

    monkeypatch.setattr(reproduce, "SMALL", 30_000)
    vector = asked(model, tmp_path)["own/prefix_tuning/forward/left-padding"]
    port = Mutant(prefix__key_row=lambda layer, layers: 2 * layer + 1)
    result = judge_one(port, vector, FLOAT32, tmp_path / "a", 1, tmp_path / "failures")
    directory = Path(str(result.reproduce))
    kept = read_tensors(directory / "vectors" / vector.case.id / "expected.safetensors", "expected")
    assert 0 < len(kept) < len(vector.case.tensors)
    assert set(read_tensors(directory / "answer.safetensors", "given")) == set(kept)
    left = len(vector.case.tensors) - len(kept)
    readme = (directory / "README.txt").read_text(encoding="utf-8")
    assert f"({left} further tensors are too large to keep; refpeft answer writes them all)" in readme


# ---------------------------------------------------------------- inputs that are given


def test_inputs_from_json_and_from_safetensors(model: OwnModel, tmp_path: Path) -> None:
    ids, mask = [[3, 1, 2], [4, 5, 6]], [[1, 1, 1], [0, 1, 1]]
    positions, labels = [[0, 1, 2], [0, 0, 1]], [[-100, 1, 2], [-100, 5, 6]]
    values = {"input_ids": ids, "attention_mask": mask, "position_ids": positions, "labels": labels}
    (tmp_path / "a.json").write_text(json.dumps(values))
    (tmp_path / "in.txt").write_text("\n " + json.dumps(values))
    write_tensors(tmp_path / "a.safetensors", {n: numpy.array(v, "int32") for n, v in values.items()})
    for name in ("a.json", "in.txt", "a.safetensors"):
        text = read_text(tmp_path / name, model)
        assert {n: (v.tolist(), str(v.dtype)) for n, v in text.items()} == {
            n: (v, "int64") for n, v in values.items()
        }
        vectors = own_vectors(model, {"given": text}, tmp_path / name.replace(".", "-"))
        suites = ["config/adapter-config", "prefix_encode/adapter", "inputs/given", "forward/given"]
        ids_of = [v.case.id.removeprefix("own/prefix_tuning/") for v in vectors]
        assert ids_of == [*suites, "gradients/given", "checkpoint/given"]
        results = list(judge(ReferencePort(), Selection(vectors, [FLOAT32]), tmp_path / f"w{name}", None))
        assert {r.verdict for r in results} == {"CONFORMS"}


def test_a_safetensors_file_that_begins_with_a_brace(model: OwnModel, tmp_path: Path) -> None:
    """Its header is 0x7b20 bytes long: a space and a brace."""
    path, ids = tmp_path / "inputs", numpy.array([[3, 1, 2]])
    header = json.dumps({"input_ids": {"dtype": "I64", "shape": [1, 3], "data_offsets": [0, 24]}})
    path.write_bytes(0x7B20.to_bytes(8, "little") + header.ljust(0x7B20).encode() + ids.tobytes())
    assert read_text(path, model)["input_ids"].tolist() == [[3, 1, 2]]


BAD_INPUTS: dict[str, tuple[str, str]] = {
    "broken": ("{", "'{file}' is not valid JSON: Expecting property name enclosed in double quotes, line 1, column 2. Correct the inputs there, or write it anew."),
    "no ids": ('{"labels": [[1]]}', "'{file}' has no input_ids; give input_ids, and if you like attention_mask, labels, position_ids, token_type_ids, decoder_input_ids, decoder_attention_mask, start_positions, end_positions."),
    "more": ('{"input_ids": [[1]], "inputs_embeds": [[0]]}', "'{file}' also holds inputs_embeds; give input_ids, and if you like attention_mask, labels, position_ids, token_type_ids, decoder_input_ids, decoder_attention_mask, start_positions, end_positions."),
    "out of range": ('{"input_ids": [[1, 999]]}', "'{file}': input_ids[0, 1] is 999, but the base model's vocabulary has ids 0 to 66. Use the base model's own tokenizer."),
    "one row": ('{"input_ids": [1, 2]}', "'{file}': input_ids must have shape (batch, tokens), got (2,)."),
    "ragged": ('{"input_ids": [[1, 2], [3]]}', "'{file}': input_ids must be one array, but its rows have different lengths. Pad them."),
    "mask": ('{"input_ids": [[1, 2]], "attention_mask": [[1, 2]]}', "'{file}': attention_mask must hold only 0 (padding) and 1 (token)."),
    "labels": ('{"input_ids": [[1, 2]], "labels": [[1, -1]]}', "'{file}': labels[0, 1] is -1; a label is a token id from 0 to 66, or -100 for a position that does not count."),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_INPUTS)
def test_inputs_that_are_refused(model: OwnModel, tmp_path: Path, name: str) -> None:
    content, expected = BAD_INPUTS[name]
    (tmp_path / "a.json").write_text(content)
    with pytest.raises((InputError, ConfigError)) as caught:
        read_text(tmp_path / "a.json", model)
    vocabulary = model.base.config.vocab_size - 1
    assert str(caught.value) == expected.format(file=tmp_path / "a.json").replace("66", str(vocabulary))


def test_an_adapter_of_another_base(tmp_path: Path) -> None:
    adapter = adapter_directory(tmp_path, "prefix", "gpt2-even")
    with pytest.raises(ConfigError, match="was the adapter made for another base model"):
        open_own_model(base_directory(), adapter)


def test_a_damaged_adapter(tmp_path: Path) -> None:
    file = adapter_directory(tmp_path, "prefix") / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-4])
    with pytest.raises(CheckpointError, match="is truncated or damaged"):
        open_own_model(base_directory(), tmp_path)


def test_what_loading_warns_of_is_kept(tmp_path: Path) -> None:
    file = adapter_directory(tmp_path / "adapter", "prefix") / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "new_key": 1}))
    own_model = open_own_model(base_directory(), tmp_path / "adapter")
    (note,) = own_model.notes
    assert note.startswith(
        "Unexpected keyword arguments ['new_key'] for class PrefixTuningConfig, these are ignored."
    )
    vector = asked(own_model, tmp_path)["own/prefix_tuning/checkpoint/left-padding"]

    class Logits(ReferencePort):
        def ask(self, ask: Ask, request: RunCommand) -> Reply:
            with pytest.warns(UserWarning, match="new_key"):
                return super().ask(ask, request)

    assert judge_one(Logits(), vector, FLOAT32, tmp_path / "a", 1, None).verdict == "CONFORMS"


# ---------------------------------------------------------------- answers by hand


@pytest.mark.parametrize("gradients", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_an_answer_in_one_file(model: OwnModel, tmp_path: Path, dtype: str, gradients: bool) -> None:
    text = draw_texts(model)["labels"]
    names = own.write_answer(tmp_path / "a", model, text, dtype, gradients=gradients)
    case = "gradients" if gradients else "forward"
    vector = asked(model, tmp_path)[f"own/prefix_tuning/{case}/labels"]
    assert names == list(vector.case.tensors)
    written = read_tensors(tmp_path / "a", "the answer")
    assert sorted(written) == sorted([*names, "input_ids", "labels"])
    assert str(written["logits"].dtype) == dtype
    wanted = questions.answer(ask_of(vector), Arithmetic(dtype)).tensors
    for name in names:
        numpy.testing.assert_allclose(
            written[name], wanted[name], rtol=1e-4 if dtype == "float32" else 1e-9, atol=1e-5
        )
    from safetensors import safe_open

    with safe_open(str(tmp_path / "a"), "np") as file:
        metadata = file.metadata()
    assert json.loads(metadata.pop("order")) == names
    assert metadata == {
        "refpeft": refpeft.__version__,
        "dialect": "peft-0.21.2",
        "dtype": dtype,
        "method": "prefix_tuning",
        "base": str(base_directory().resolve()),
        "adapter": str((tmp_path / "adapter").resolve()),
    }


def test_gradients_need_labels(model: OwnModel, tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        own.write_answer(tmp_path / "a", model, draw_texts(model)["no-mask"], "float64", gradients=True)
    assert str(caught.value) == (
        "Gradients need labels: without them there is no loss. Give labels among the inputs."
    )
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize(("family", "method"), [("t5-odd", "prefix"), ("bart-odd", "prefix")])
def test_an_encoder_decoder_can_be_asked_about(family: str, method: str, tmp_path: Path) -> None:
    """Found by a port in JAX: what a prefix is made of needs no text, and a decoder would not go on without one."""
    vector = next(
        v
        for v in all_vectors()
        if v.case.question == "checkpoint.load"
        and v.case.model == family
        and v.case.method.startswith(method)
    )
    assert vector.model_directory is not None
    assert vector.adapter_directory is not None
    mine = open_own_model(vector.model_directory, vector.adapter_directory)
    vectors = own_vectors(mine, draw_texts(mine), tmp_path / "asked")
    results = list(judge(ReferencePort(), Selection(vectors, [FLOAT32]), tmp_path / "work", None))
    assert {result.verdict for result in results} == {"CONFORMS"}
    assert ("prefix.encode" in {result.question for result in results}) == (method == "prefix")
