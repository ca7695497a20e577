"""A base model in one file or in several: what is read, which wins, and what is refused with what words."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy
import pytest
from support import need

from refpeft.errors import CheckpointError
from refpeft.sharded import INDEX_FILE, WEIGHTS_FILE, map_model
from refpeft.tensors import write_tensors

RANDOM = numpy.random.default_rng(0)
FIRST = {"a.weight": RANDOM.normal(size=(3, 4)).astype("float32"), "b": RANDOM.normal(size=5)}
SECOND = {"c.weight": RANDOM.normal(size=(2, 3)).astype("float32")}
REPAIR = (
    "Copy all files of one model into one directory, or save the model again with save_pretrained(directory)."
)
Shards = dict[str, dict[str, Any]]


def two() -> Shards:
    return {"model-1.safetensors": FIRST, "model-2.safetensors": SECOND}


def weight_map(shards: Shards) -> dict[str, Any]:
    return {name: shard for shard, tensors in shards.items() for name in tensors}


def write(directory: Path, shards: Shards, named: Any = None) -> Path:
    """Shards and an index of them, unless `named` gives another weight_map; the index's path."""
    for shard, tensors in shards.items():
        write_tensors(directory / shard, tensors, {"format": "pt"})
    named = weight_map(shards) if named is None else named
    index = directory / INDEX_FILE
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": named}))
    return index


def refused(directory: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        map_model(directory)
    return str(caught.value)


def why(index: Path) -> str:
    """The middle of a message about an index."""
    said = refused(index.parent)
    beginning, end = f"'{index}' does not lead to the base model's weights: ", f". {REPAIR}"
    assert said.startswith(beginning)
    assert said.endswith(end)
    return said[len(beginning) : -len(end)]


def equal(given: dict[str, Any], expected: dict[str, Any]) -> None:
    assert list(given) == sorted(expected)
    for name, value in expected.items():
        assert (given[name].dtype, given[name].shape) == (value.dtype, value.shape)
        assert given[name].tobytes() == value.tobytes()


# ---------------------------------------------------------------- what is read


def test_one_file(tmp_path: Path) -> None:
    write_tensors(tmp_path / WEIGHTS_FILE, FIRST)
    tensors, path = map_model(str(tmp_path))
    equal(tensors, FIRST)
    assert path == tmp_path / WEIGHTS_FILE


def test_several_files(tmp_path: Path) -> None:
    index = write(tmp_path, two())
    write_tensors(tmp_path / "consolidated.safetensors", FIRST)  # beside them, and not named
    tensors, path = map_model(tmp_path)
    equal(tensors, {**FIRST, **SECOND})
    assert path == index


def test_the_tensors_are_views_of_the_files(tmp_path: Path) -> None:
    write(tmp_path, two())
    tensors, _ = map_model(tmp_path)
    assert not any(tensor.flags.owndata or tensor.flags.writeable for tensor in tensors.values())


@pytest.mark.parametrize("kind", [ml_dtypes.bfloat16, "float16", "float32", "float64"])
def test_a_number_format(tmp_path: Path, kind: Any) -> None:
    shards = {
        shard: {name: value.astype(kind) for name, value in tensors.items()}
        for shard, tensors in two().items()
    }
    write(tmp_path, shards)
    equal(map_model(tmp_path)[0], {**shards["model-1.safetensors"], **shards["model-2.safetensors"]})


def test_shards_and_tensors_of_several_formats(tmp_path: Path) -> None:
    """All values of the narrow formats: subnormal, largest, both zeros; and an empty tensor, and one without axes."""
    every = numpy.arange(2**16, dtype=numpy.uint16)
    first = {"bfloat16": every.view(ml_dtypes.bfloat16), "float32": FIRST["a.weight"]}
    second = {"float16": every.view(numpy.float16), "none": numpy.zeros((0, 3), ml_dtypes.bfloat16)}
    third = {"one": numpy.array(0.1), "mask": numpy.array([True, False])}
    write(tmp_path, {"x.safetensors": first, "y.safetensors": second, "z.safetensors": third})
    tensors, _ = map_model(tmp_path)
    equal(tensors, {**first, **second, **third})
    numpy.testing.assert_array_equal(
        tensors["bfloat16"].astype("float32"), (every.astype(numpy.uint32) << 16).view("float32")
    )


def test_one_file_counts_alone(tmp_path: Path) -> None:
    """As in HF, whatever the index is."""
    write(tmp_path, two())
    write_tensors(tmp_path / WEIGHTS_FILE, {"a.weight": numpy.ones(2)})
    equal(map_model(tmp_path)[0], {"a.weight": numpy.ones(2)})
    (tmp_path / INDEX_FILE).write_text("{")
    equal(map_model(tmp_path)[0], {"a.weight": numpy.ones(2)})


@pytest.mark.live
@pytest.mark.filterwarnings("ignore")
def test_what_hf_saves_in_several_files(tmp_path: Path) -> None:
    """And which of the two HF reads where both are."""
    transformers = need("transformers")
    config = transformers.GPT2Config(vocab_size=43, n_positions=37, n_embd=15, n_layer=3, n_head=5)
    model = transformers.GPT2LMHeadModel(config)
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("model-*-of-*.safetensors"))) > 1
    tensors, path = map_model(tmp_path)
    assert path == tmp_path / INDEX_FILE
    theirs = {name: value.numpy() for name, value in model.state_dict().items() if name != "lm_head.weight"}
    equal(tensors, theirs)
    table = numpy.zeros((43, 15), numpy.float32)
    write_tensors(tmp_path / WEIGHTS_FILE, {**theirs, "transformer.wte.weight": table}, {"format": "pt"})
    both = transformers.GPT2LMHeadModel.from_pretrained(tmp_path).transformer.wte.weight
    assert not both.detach().numpy().any()
    assert not map_model(tmp_path)[0]["transformer.wte.weight"].any()


# ---------------------------------------------------------------- no weights


def test_no_weights(tmp_path: Path) -> None:
    assert refused(tmp_path) == (
        f"Can't find 'model.safetensors' at '{tmp_path}', which holds the base model's weights."
    )


@pytest.mark.parametrize("name", ["pytorch_model.bin", "pytorch_model.bin.index.json"])
def test_pickled_weights(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"\x80\x02.")
    assert refused(tmp_path) == (
        f"'{tmp_path}' has {name} but no model.safetensors. refpeft does not unpickle: load the model with "
        "transformers and save it again with save_pretrained(directory), which writes safetensors."
    )


# ---------------------------------------------------------------- the index

TEXTS = {
    "empty": (
        "",
        "'{}' is not valid JSON: Expecting value, line 1, column 1. Correct {what} there, or write it anew.",
    ),
    "a list": ("[]", "'{}' must hold a JSON object ({{…}}) with {what}, not a list."),
    "NaN": ('{"metadata": NaN}', "'{}' cannot be used: NaN is not a JSON number. Correct {what} there."),
    "a tensor twice": (
        '{"metadata": {}, "weight_map": {"a": "1.safetensors", "a": "1.safetensors"}}',
        "'{}' cannot be used: it has the key 'a' twice. Correct {what} there.",
    ),
    "weight_map twice": (
        '{"weight_map": {}, "metadata": {}, "weight_map": {}}',
        "'{}' cannot be used: it has the key 'weight_map' twice. Correct {what} there.",
    ),
    "deep": (
        '{"weight_map": ' + "[" * 100 + "]" * 100 + "}",
        "'{}' cannot be used: it is nested more than 100 deep. Correct {what} there.",
    ),
    "huge": (" " * 10_000_001, "'{}' is larger than 10 MB, which {what} never is. Is it another file?"),
}


@pytest.mark.parametrize("name", TEXTS)
def test_an_index_that_cannot_be_read(tmp_path: Path, name: str) -> None:
    text, expected = TEXTS[name]
    index = tmp_path / INDEX_FILE
    index.write_text(text)
    assert refused(tmp_path) == expected.format(index, what="the index of the base model's weights")


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        ({}, "it must have 'metadata', an object ({…}), but it has none"),
        ({"metadata": {}}, "it must have 'weight_map', an object ({…}), but it has none"),
        (
            {"metadata": None, "weight_map": {}},
            "it must have 'metadata', an object ({…}), but that is a value of type NoneType",
        ),
        (
            {"metadata": {}, "weight_map": [["a", "b"]]},
            "it must have 'weight_map', an object ({…}), but that is a value of type list",
        ),
        ({"metadata": {}, "weight_map": {}}, "its weight_map names no tensors"),
        (
            {"metadata": {}, "weight_map": {"a\x1b[2J": "1.safetensors"}},
            "the tensor's name 'a\\x1b[2J' is too long or not printable",
        ),
        (
            {"metadata": {}, "weight_map": {"n" * 1001: "1.safetensors"}},
            f"the tensor's name '{'n' * 80}'… is too long or not printable",
        ),
    ],
)
def test_an_index_that_is_none(tmp_path: Path, document: Any, expected: str) -> None:
    index = tmp_path / INDEX_FILE
    index.write_text(json.dumps(document))
    assert why(index) == expected


@pytest.mark.parametrize(
    ("shard", "shown"),
    [
        (None, "a value of type NoneType"),
        (1, "a value of type int"),
        (["model-1.safetensors"], "a value of type list"),
        ("", "''"),
        ("..", "'..'"),
        ("../model-1.safetensors", "'../model-1.safetensors'"),
        ("./model-1.safetensors", "'./model-1.safetensors'"),
        ("/etc/model-1.safetensors", "'/etc/model-1.safetensors'"),
        ("sub/model-1.safetensors", "'sub/model-1.safetensors'"),
        ("sub\\model-1.safetensors", "'sub\\\\model-1.safetensors'"),
        ("C:model-1.safetensors", "'C:model-1.safetensors'"),
        ("pytorch_model-1.bin", "'pytorch_model-1.bin'"),
        ("model-1\0.safetensors", "'model-1\\x00.safetensors'"),
        ("\ud800.safetensors", "'\\ud800.safetensors'"),
        ("ä" * 99 + ".bin", "'" + "\\xe4" * 80 + "'…"),
    ],
)
def test_what_is_no_file_beside_the_index(tmp_path: Path, shard: Any, shown: str) -> None:
    index = write(tmp_path, two(), {**weight_map(two()), "b": shard})
    assert why(index) == (
        f"its weight_map has {shown} for 'b', where the plain name of a .safetensors file beside it must stand, without a "
        "directory"
    )


def test_a_name_that_no_file_system_takes(tmp_path: Path) -> None:
    long = "n" * 1000 + ".safetensors"
    index = write(tmp_path, two(), {**weight_map(two()), "b": long})
    assert why(index) == f"it names files that '{tmp_path}' does not have: {long}"


# ---------------------------------------------------------------- the shards


def test_shards_that_are_missing(tmp_path: Path) -> None:
    named = {f"t{i}": f"model-{i}.safetensors" for i in range(1, 9)}
    index = write(tmp_path, two(), {**weight_map(two()), **named})
    (tmp_path / "model-3.safetensors").mkdir()
    (tmp_path / "model-4.safetensors").symlink_to(tmp_path / "nothing")
    assert why(index) == (
        f"it names files that '{tmp_path}' does not have: model-3.safetensors, model-4.safetensors, model-5.safetensors, "
        "model-6.safetensors, model-7.safetensors, model-8.safetensors"
    )


def test_tensors_that_their_shard_lacks(tmp_path: Path) -> None:
    index = write(tmp_path, two(), {**weight_map(two()), "d": "model-2.safetensors"})
    assert why(index) == "it says that 'model-2.safetensors' holds d, but that file does not"
    more = {f"d{i}": "model-2.safetensors" for i in range(6)}
    index = write(tmp_path, two(), {**weight_map(two()), **more})
    assert why(index) == (
        "it says that 'model-2.safetensors' holds d0, d1, d2, d3, d4 …, but that file does not"
    )


def test_a_tensor_that_the_index_does_not_name(tmp_path: Path) -> None:
    index = write(tmp_path, two(), {"a.weight": "model-1.safetensors", "c.weight": "model-2.safetensors"})
    assert why(index) == "'model-1.safetensors' beside it also holds b, which the index does not say"


def test_a_tensor_in_two_shards(tmp_path: Path) -> None:
    """HF takes the one of the last shard, whatever the index says."""
    shards = {**two(), "model-2.safetensors": {**SECOND, "b": numpy.zeros(5)}}
    index = write(tmp_path, shards, weight_map(two()))
    assert why(index) == "'model-2.safetensors' beside it also holds b, which the index does not say"


def test_tensors_that_the_index_has_the_wrong_way_round(tmp_path: Path) -> None:
    index = write(
        tmp_path, two(), {**weight_map(two()), "b": "model-2.safetensors", "c.weight": "model-1.safetensors"}
    )
    assert why(index) == "it says that 'model-1.safetensors' holds c.weight, but that file does not"


def test_a_damaged_shard(tmp_path: Path) -> None:
    write(tmp_path, two())
    path = tmp_path / "model-2.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CheckpointError) as caught:
        map_model(tmp_path)
    assert str(caught.value) == (
        f"'{path}' cannot be read as safetensors ({caught.value.__cause__}). The file of the base model's weights is truncated "
        "or damaged: copy or write it again."
    )


# ---------------------------------------------------------------- links


def test_a_link_that_leads_out(tmp_path: Path) -> None:
    model, other = tmp_path / "model", tmp_path / "other.safetensors"
    model.mkdir()
    index = write(model, two())
    (model / "model-2.safetensors").rename(other)
    (model / "model-2.safetensors").symlink_to("../other.safetensors")
    assert why(index) == (
        f"'model-2.safetensors' beside it is a link that leads out of the directory, to '{other.resolve()}'"
    )


def test_links_within_and_to_the_directory(tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    write(model, two())
    (model / "model-2.safetensors").rename(model / "x")
    (model / "model-2.safetensors").symlink_to("x")
    (tmp_path / "link").symlink_to("model")
    equal(map_model(tmp_path / "link")[0], {**FIRST, **SECOND})


@pytest.mark.parametrize("snapshots", ["snapshots", "other"])
def test_the_cache_of_the_hub(tmp_path: Path, snapshots: str) -> None:
    """Its snapshots are links to its blobs."""
    blobs, snapshot = tmp_path / "models--a--b/blobs", tmp_path / "models--a--b" / snapshots / "0123"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    index = write(snapshot, two())
    for number, path in enumerate(sorted(snapshot.iterdir())):
        path.rename(blobs / str(number))
        path.symlink_to(f"../../blobs/{number}")
    if snapshots == "snapshots":
        equal(map_model(snapshot)[0], {**FIRST, **SECOND})
    else:
        assert why(index) == (
            "'model-1.safetensors' beside it is a link that leads out of the directory, to "
            f"'{blobs.resolve() / '0'}'"
        )
