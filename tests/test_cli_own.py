"""`refpeft check --base`, `answer` and `inspect` from the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy
import pytest
from click.testing import CliRunner, Result
from oracle.own_models import adapter_directory, base_directory

from refpeft import __version__, cli
from refpeft.cli import common
from refpeft.tensors import read_tensors, write_tensors

MUTANT = "oracle.fake_ports:KeysForValues"
BASE = str(base_directory())


@pytest.fixture(autouse=True)
def adapter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    return str(adapter_directory(tmp_path / "adapter", "prefix"))


def run(*arguments: str) -> Result:
    result = CliRunner().invoke(cli.main, arguments)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def refused(*arguments: str) -> str:
    result = run(*arguments)
    assert (result.exit_code, result.stdout) == (common.USAGE, "")
    return result.stderr.partition("\n\nError: ")[2].strip()


def checked(*arguments: str, status: int) -> Any:
    result = run("check", "--base", BASE, "--adapter", "adapter", *arguments)
    assert result.exit_code == status, result.output
    return json.loads(result.stdout)


def test_refpeft_itself() -> None:
    document = checked(status=common.CONFORMS)
    assert document["summary"]["verdict"] == "CONFORMS"
    assert document["summary"]["float64_exact"]
    assert (document["summary"]["asked"], document["summary"]["partial"]) == (24, False)
    assert document["expected_from"] == "refpeft"
    assert not Path(".refpeft/last-failed.json").exists(), "what failed is remembered for golden vectors"


def test_titles_are_of_one_s_own_adapter() -> None:
    document = checked("--level", "checkpoint", "--profile", "float32", status=common.CONFORMS)
    assert [case["title"] for case in document["cases"]] == ["your model: read your adapter (left-padding)"]


def test_a_mistake_and_how_to_see_it_again() -> None:
    document = checked("--profile", "float32", MUTANT, status=common.DIFFERS)
    failed = {case["case"]: case["first"]["name"] for case in document["cases"] if "first" in case}
    assert set(failed.values()) == {"prefix.layers.0.key"}
    assert {name.split("/")[2] for name in failed} == {"prefix_encode", "forward", "gradients", "checkpoint"}
    directory = Path(".refpeft/failures/own.prefix_tuning.prefix_encode.adapter.float32")
    readme = (directory / "README.txt").read_text(encoding="utf-8")
    command = next(line for line in readme.splitlines() if line.startswith("Ask the port")).split()
    again = [*command[command.index("refpeft") + 1 : command.index("--")], MUTANT]
    assert refused("check", "--golden", str(directory)) == (
        f"'{directory}/vectors/own/prefix_tuning/prefix_encode/adapter/case.json' is of a failure on your own model, which is not "
        "copied there: it is no golden vector. Ask again with the command in that failure's README.txt."
    )
    assert again[-6:-1] == [
        *(str(Path("adapter").resolve()), "-k", "own/prefix_tuning/prefix_encode/adapter"),
        *("--profile", "float32"),
    ]
    assert run(*again).exit_code == common.DIFFERS
    assert not Path(".refpeft/last-failed.json").exists()


def test_the_report_says_whose_values_these_are() -> None:
    result = run("check", "--base", BASE, "--adapter", "adapter", "--format", "pretty", MUTANT)
    assert (
        f"refpeft {__version__} on your model (expected values are refpeft's own, after peft-0.21.2)\n"
        in result.stdout
    )
    assert "    compared with refpeft's own value, on your model\n" in result.stdout
    assert "NONCONFORMING  some answers differ from refpeft: " in result.stdout


def test_a_new_run_clears_old_failures_of_its_own_kind() -> None:
    Path(".refpeft/failures/prefix_tuning.golden").mkdir(parents=True)
    checked(MUTANT, status=common.DIFFERS)
    assert len(list(Path(".refpeft/failures").iterdir())) > 2
    checked(status=common.CONFORMS)
    assert [p.name for p in Path(".refpeft/failures").iterdir()] == ["prefix_tuning.golden"]


@pytest.mark.parametrize(
    ("options", "cases"),
    [
        (["-k", "forward/left-padding"], ["forward/left-padding"]),
        (["--level", "checkpoint"], ["checkpoint/left-padding"]),
        (["--level", "gradients", "--method", "prefix_tuning"], ["gradients/labels"]),
    ],
)
def test_a_selection(options: list[str], cases: list[str]) -> None:
    document = checked("--profile", "float32", *options, status=common.CONFORMS)
    assert [case["case"] for case in document["cases"]] == [f"own/prefix_tuning/{name}" for name in cases]
    assert document["summary"]["partial"]


def test_inputs_of_one_s_own() -> None:
    Path("text.json").write_text('{"input_ids": [[1, 2, 3]], "labels": [[1, 2, 3]]}')
    document = checked("--inputs", "text.json", "-x", status=common.CONFORMS)
    assert {case["case"].rsplit("/", 1)[1] for case in document["cases"]} == {
        "given",
        "adapter",
        "adapter-config",
    }


BOTH = "Give both --base and --adapter: an adapter is judged on its base model."
REFUSED: dict[str, tuple[list[str], str]] = {
    "no adapter": (["--base", BASE], BOTH),
    "no base": (["--adapter", "adapter"], BOTH),
    "inputs alone": (["--inputs", "adapter/adapter_config.json"], BOTH),
    "last failed": (
        ["--base", BASE, "--adapter", "adapter", "--last-failed"],
        (
            "--golden and --last-failed are for golden vectors; leave them out with --base. Runs on your own model are not recorded: "
            "choose what failed with -k."
        ),
    ),
    "a file": (
        ["--base", BASE, "--adapter", "adapter/adapter_config.json"],
        "Invalid value for '--adapter': Directory 'adapter/adapter_config.json' is a file.",
    ),
    "nothing matches": (
        ["--base", BASE, "--adapter", "adapter", "-k", "forward/nothing"],
        "No case matches; nearest are forward/left-padding, forward/right-padding, forward/no-mask; of your own model these are asked: own/prefix_tuning/config/adapter-config, ",
    ),
    "a level of golden vectors alone": (
        ["--base", BASE, "--adapter", "adapter", "--level", "generation"],
        "own/prefix_tuning/checkpoint/left-padding. Nothing of the levels training and generation is.",
    ),
    "an adapter for a base": (
        ["--base", "adapter", "--adapter", "adapter"],
        "is an adapter, not a base model",
    ),
    "a base for an adapter": (["--base", BASE, "--adapter", BASE], "Can't find 'adapter_config.json' at"),
    "another base": (
        ["--base", str(base_directory("gpt2-even")), "--adapter", "adapter"],
        "was the adapter made for another base model?",
    ),
    "broken inputs": (
        ["--base", BASE, "--adapter", "adapter", "--inputs", "adapter/adapter_config.json"],
        "adapter_config.json' also holds ",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_wrong_usage(name: str) -> None:
    options, said = REFUSED[name]
    assert said in refused("check", *options)


def test_an_answer_by_hand() -> None:
    result = run(
        "answer", "--base", BASE, "--adapter", "adapter", "--output", "a.safetensors", "--dtype", "float32"
    )
    assert (result.exit_code, result.stdout) == (
        0,
        (
            "a.safetensors: 59 tensors in float32: inputs.token_embeddings, prefix.flat, prefix.layers.0.key, "
            "prefix.layers.0.value, prefix.layers.1.key …\n"
        ),
    )
    assert read_tensors(Path("a.safetensors"), "the answer")["logits"].dtype == numpy.float32


def test_an_answer_that_cannot_be_given() -> None:
    options = ["--base", BASE, "--adapter", "adapter", "--output"]
    Path("text.json").write_text('{"input_ids": [[1, 2]]}')
    assert "Can't write 'no/where': No such file or directory." in refused("answer", *options, "no/where")
    said = refused("answer", *options, "a", "--gradients", "--inputs", "text.json")
    assert said == "Gradients need labels: without them there is no loss. Give labels among the inputs."
    Path("text.json").write_text('{"input_ids": [[1, 2000]]}')
    assert "input_ids[0, 1] is 2000" in refused("answer", *options, "a", "--inputs", "text.json")
    assert not Path("a").exists()


def test_inspecting() -> None:
    result = run("inspect", "adapter", "--base", BASE)
    assert result.exit_code == 0
    document = json.loads(result.stdout)
    assert (document["method"], document["virtual_tokens"], document["problems"]) == ("prefix_tuning", 5, [])
    write_tensors(
        Path("adapter/adapter_model.safetensors"), {"prompt_embeddings": numpy.ones((4, 10), "float32")}
    )
    result = run("inspect", "adapter", "--base", BASE, "--format", "pretty")
    assert result.exit_code == 1
    assert result.stdout.splitlines()[-2:] == [
        "✗ 'prompt_embeddings' has 4 rows, but num_virtual_tokens is 5.",
        "✗ 'prompt_embeddings' is 10 wide; by the base model it must be 144 = 2·3·24. No product of these sizes is that wide.",
    ]


def test_inspecting_beside_a_base_that_refpeft_does_not_know() -> None:
    Path("base").mkdir()
    Path("base/config.json").write_text('{"model_type": "mamba"}')
    document = json.loads(run("inspect", "adapter", "--base", "base").stdout)
    (problem,) = document["problems"]
    assert problem.startswith(
        "The base model in 'base' cannot be read, so the adapter was looked at alone: Unknown model_type 'mamba' of the base model."
    )
    assert (document["base"], len(document["tensors"])) == (None, 1)


def test_what_help_calls_a_directory() -> None:
    for name in ("check", "answer", "inspect"):
        assert "--base DIRECTORY" in run(name, "--help").stdout


def test_paths_that_are_no_directory() -> None:
    assert refused("inspect", "someone/prompt") == (
        "ADAPTER: there is no directory 'someone/prompt' here. If it is a name on the Hugging Face Hub: refpeft does not download; "
        "`huggingface-cli download someone/prompt --local-dir DIRECTORY` does."
    )
    assert refused("inspect", "adapter/adapter_config.json") == (
        "ADAPTER: 'adapter/adapter_config.json' is a file; give the directory that it lies in: 'adapter'."
    )
    assert refused("inspect", "adaptor") == "ADAPTER: there is no directory 'adaptor'; '.' has adapter."
    assert (
        refused("inspect", "adapter", "--base", "nowhere/at/all")
        == "--base: there is no directory 'nowhere/at/all'."
    )
    assert "Can't find 'config.json'" in refused("inspect", "adapter", "--base", "adapter/..")


def test_ones_own_model_is_not_asked_about_in_bfloat16() -> None:
    assert refused("check", "--base", BASE, "--adapter", "adapter", "--profile", "bfloat16") == (
        "Your own model is not asked about in bfloat16 (JG-11). Ask in float32 or float64: the mistakes are the same."
    )
