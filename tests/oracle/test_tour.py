"""The tour: every stop, its numbers worked out by hand from the parameters, and the mistakes that show there first."""

from __future__ import annotations

import msgspec
import numpy
import pytest

from refpeft.oracle.clauses import clauses
from refpeft.oracle.mutants import MUTANTS
from refpeft.oracle.tour import FOLLOWED, FORMULAS, LAYERS, TEXT, VIRTUAL, Stop, Tour, meaning, tiny, tour
from refpeft.steps import STEPS, replaced

MADE = tour()
STOPS = {stop.stage: stop for stop in MADE.stops}


def layer(number: int) -> list[tuple[str, str, str, list[int]]]:
    """Stage, step, clause and shape of the stages of a layer."""
    name = f"decoder.layers.{number}"
    return [
        (f"{name}.input_norm", "block.input_norm", "AT-1", [1, 3, 4]),
        (f"{name}.attention.query", "attention.query", "AT-1", [1, 2, 3, 2]),
        (f"{name}.attention.key", "attention.key", "AT-1", [1, 2, 3, 2]),
        (f"{name}.attention.value", "attention.value", "AT-1", [1, 2, 3, 2]),
        (f"{name}.attention.key_states", "attention.key_states", "AT-2", [1, 2, 5, 2]),
        (f"{name}.attention.value_states", "attention.value_states", "AT-2", [1, 2, 5, 2]),
        (f"{name}.attention.scores", "attention.scores", "AT-3", [1, 2, 3, 5]),
        (f"{name}.attention.weights", "attention.weights", "AT-4", [1, 2, 3, 5]),
        (f"{name}.attention.context", "attention.context", "AT-4", [1, 3, 4]),
        (f"{name}.attention.output", "attention.output", "AT-5", [1, 3, 4]),
        (f"{name}.after_attention", "block.after_attention", "AT-5", [1, 3, 4]),
        (f"{name}.post_attention_norm", "block.post_attention_norm", "AT-5", [1, 3, 4]),
        (f"{name}.mlp.activation", "mlp.activation", "AT-5", [1, 3, 6]),
        (f"{name}.mlp.output", "mlp.output", "AT-5", [1, 3, 4]),
        (f"{name}.output", "block.output", "AT-5", [1, 3, 4]),
    ]


def test_every_stop_in_order() -> None:
    assert [(stop.stage, stop.step, stop.clause, stop.shape) for stop in MADE.stops] == [
        ("inputs.token_embeddings", "inputs.token_embeddings", "PT-3", [1, 3, 4]),
        ("inputs.attention_mask", "inputs.attention_mask", "MK-1", [1, 5]),
        ("prefix.flat", "prefix.flat", "PX-2", [2, 16]),
        ("prefix.layers.0.key", "prefix.key", "PX-4", [1, 2, 2, 2]),
        ("prefix.layers.0.value", "prefix.value", "PX-4", [1, 2, 2, 2]),
        ("prefix.layers.1.key", "prefix.key", "PX-4", [1, 2, 2, 2]),
        ("prefix.layers.1.value", "prefix.value", "PX-4", [1, 2, 2, 2]),
        ("inputs.position_ids", "inputs.position_ids", "PO-1", [1, 3]),
        ("decoder.embeddings", "decoder.embeddings", "PO-2", [1, 3, 4]),
        ("decoder.visible", "decoder.visible", "MK-3", [1, 3, 5]),
        *layer(0),
        *layer(1),
        ("decoder.final_norm", "decoder.final_norm", "AT-5", [1, 3, 4]),
        ("logits", "logits", "TK-2", [1, 3, 5]),
    ]
    assert msgspec.structs.replace(MADE, stops=[]) == Tour(
        {"layers": 2, "hidden": 4, "heads": 2, "head_dim": 2, "vocab": 5}, 2, [1, 3, 0], 1, []
    )


def test_a_stop_whole() -> None:
    stop = STOPS["decoder.layers.0.attention.weights"]
    shown = numpy.round(stop.values, 3).tolist()
    assert msgspec.structs.replace(stop, values=shown) == Stop(
        "layer 0", "decoder.layers.0.attention.weights", "attention.weights", "AT-4", "composite",
        ["batch", "heads", "query", "key"], [1, 2, 3, 5], "softmax(scores)", "One softmax over prefix and text together.",
        ["heads", "key"], [[0.464, 0.274, 0.017, 0.246, 0.0], [0.11, 0.112, 0.155, 0.624, 0.0]],
        "λ, the prefix's share: 0.737, 0.221", ["M47"], "transformers models/gpt2/modeling_gpt2.py eager_attention_forward",
    )  # fmt: skip


@pytest.mark.parametrize("stage", STOPS)
def test_a_stop_says_what_its_step_is(stage: str) -> None:
    stop = STOPS[stage]
    step = STEPS[stop.step]
    assert (stop.clause, stop.axes, stop.kind, stop.source) == (
        step.clause,
        list(step.axes),
        step.kind,
        step.source,
    )
    assert stop.formula == FORMULAS[stop.step]
    assert stop.meaning == meaning(step)
    assert stop.clause in clauses()
    assert stop.shown_axes == [axis for axis in stop.axes if axis not in ("batch", "tokens", "query")]
    sizes = dict(zip(stop.axes, stop.shape, strict=True))
    assert list(numpy.shape(stop.values)) == [sizes[axis] for axis in stop.shown_axes]


def test_every_formula_is_used() -> None:
    assert {stop.step for stop in MADE.stops} == set(FORMULAS)


def norm(x: numpy.ndarray, weight: numpy.ndarray, bias: numpy.ndarray) -> numpy.ndarray:
    centred = x - x.mean(-1, keepdims=True)
    return centred / numpy.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5) * weight + bias


def by_hand() -> dict[str, numpy.ndarray]:
    """Every stage of the followed token, from the parameters, without the specification."""
    model = tiny()
    p, flat = model.base.parameters, model.trainable_parameters()["prompt_encoder.embedding.weight"]
    count, seen = len(TEXT), VIRTUAL + FOLLOWED + 1
    x = p["embeddings.tokens.weight"][list(TEXT)]
    found = {"inputs.token_embeddings": x[FOLLOWED], "prefix.flat": flat}
    x = x + p["embeddings.positions.weight"][VIRTUAL : VIRTUAL + count]
    found["decoder.embeddings"] = x[FOLLOWED]
    for i in range(LAYERS):
        w = {name.removeprefix(f"layers.{i}."): v for name, v in p.items() if name.startswith(f"layers.{i}.")}

        def linear(x: numpy.ndarray, name: str, w: dict[str, numpy.ndarray] = w) -> numpy.ndarray:
            return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

        normed = norm(x, w["input_norm.weight"], w["input_norm.bias"])
        q, k, v = (linear(normed, f"attention.{n}").reshape(count, 2, 2) for n in ("query", "key", "value"))
        prefix = flat.reshape(VIRTUAL, LAYERS, 2, 2, 2)[:, i]  # (virtual, key or value, heads, head_dim)
        keys, values = (numpy.concatenate([prefix[:, n], own]) for n, own in ((0, k), (1, v)))
        scores = numpy.einsum("qhd,khd->hqk", q, keys) / 2**0.5
        after = numpy.arange(VIRTUAL + count) > VIRTUAL + numpy.arange(count)[:, None]
        exponentials = numpy.where(after, 0, numpy.exp(scores))
        weights = exponentials / exponentials.sum(-1, keepdims=True)
        context = numpy.einsum("hqk,khd->qhd", weights, values).reshape(count, 4)
        output = linear(context, "attention.output")
        middle = x + output
        behind = norm(middle, w["post_attention_norm.weight"], w["post_attention_norm.bias"])
        up = linear(behind, "mlp.up")
        inner = 0.5 * up * (1 + numpy.tanh((2 / numpy.pi) ** 0.5 * (up + 0.044715 * up**3)))
        down = linear(inner, "mlp.down")
        own = {
            "input_norm": normed[FOLLOWED], "attention.query": q[FOLLOWED], "attention.key": k[FOLLOWED],
            "attention.value": v[FOLLOWED], "attention.key_states": keys.swapaxes(0, 1),
            "attention.value_states": values.swapaxes(0, 1), "attention.scores": scores[:, FOLLOWED, :seen],
            "attention.weights": weights[:, FOLLOWED], "attention.context": context[FOLLOWED],
            "attention.output": output[FOLLOWED], "after_attention": middle[FOLLOWED],
            "post_attention_norm": behind[FOLLOWED], "mlp.activation": inner[FOLLOWED], "mlp.output": down[FOLLOWED],
            "output": (middle + down)[FOLLOWED],
        }  # fmt: skip
        found |= {f"decoder.layers.{i}.{name}": value for name, value in own.items()}
        found |= {
            f"prefix.layers.{i}.{n}": prefix[:, m].swapaxes(0, 1) for m, n in enumerate(("key", "value"))
        }
        x = middle + down
    last = norm(x, p["final_norm.weight"], p["final_norm.bias"])
    return found | {"decoder.final_norm": last[FOLLOWED], "logits": last[FOLLOWED] @ p["head.weight"].T}


def test_the_numbers_are_those_of_the_formulas() -> None:
    expected = by_hand()
    for stage, stop in STOPS.items():
        if stage == "decoder.visible":
            assert stop.values == [True, True, True, True, False]
        elif stage == "inputs.attention_mask":
            assert stop.values == [1, 1, 1, 1, 1]
        elif stage == "inputs.position_ids":
            assert stop.values == 3
        elif stage.endswith("scores"):
            assert [head[4] for head in stop.values] == [None, None]
            given = [head[:4] for head in stop.values]
            numpy.testing.assert_allclose(given, expected[stage], rtol=1e-11, atol=1e-13)
        else:
            numpy.testing.assert_allclose(stop.values, expected[stage], rtol=1e-11, atol=1e-13)


def test_mistakes_stand_where_they_show_first() -> None:
    assert {stop.stage: stop.mistakes for stop in MADE.stops if stop.mistakes} == {
        "inputs.attention_mask": ["M41"],
        "prefix.flat": ["M60"],
        "prefix.layers.0.key": ["M02", "M03", "M04", "M05", "M06", "M174", "M69"],
        "prefix.layers.0.value": ["M01", "M11"],
        "prefix.layers.1.key": ["M10"],
        "inputs.position_ids": ["M34"],
        "decoder.visible": ["M42", "M49", "M45", "M46", "M75"],
        "decoder.layers.0.input_norm": ["M102", "M103", "M106", "M104", "M107"],
        "decoder.layers.0.attention.query": ["M111"],
        "decoder.layers.0.attention.key_states": ["M96"],
        "decoder.layers.0.attention.scores": ["M48", "M94", "M99"],
        "decoder.layers.0.attention.weights": ["M47"],
        "decoder.layers.0.attention.output": ["M112"],
        "decoder.layers.0.mlp.activation": ["M101", "M113", "M110", "M115"],
        "decoder.final_norm": ["M116"],
    }


def test_a_mistake_changes_the_tour() -> None:
    with replaced(MUTANTS["M34"].make()):
        wrong = {stop.stage: stop.values for stop in tour().stops}
    assert wrong["inputs.position_ids"] == 1
    assert wrong["logits"] != STOPS["logits"].values


def test_the_parameters_are_round() -> None:
    model = tiny()
    for values in (*model.base.parameters.values(), *model.trainable_parameters().values()):
        assert numpy.array_equal(values, numpy.round(values, 1))
        assert len(set(values.ravel().tolist())) > 1
