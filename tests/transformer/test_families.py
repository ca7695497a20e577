"""The table of families: each row complete, and GPT-2's names those of HF's checkpoint."""

from __future__ import annotations

import pytest

from refpeft.errors import ConfigError
from refpeft.transformer import config
from refpeft.transformer.families import FAMILIES, Family, family_of

HF_GPT2 = {
    *("wte.weight", "wpe.weight", "ln_f.weight", "ln_f.bias"),
    *(f"h.{{layer}}.{norm}.{kind}" for norm in ("ln_1", "ln_2") for kind in ("weight", "bias")),
    *(f"h.{{layer}}.attn.{name}.{kind}" for name in ("c_attn", "c_proj") for kind in ("weight", "bias")),
    *(f"h.{{layer}}.mlp.{name}.{kind}" for name in ("c_fc", "c_proj") for kind in ("weight", "bias")),
}


def test_gpt2_names_every_tensor_of_hf_and_no_other() -> None:
    family = family_of("gpt2")
    sources = [*family.whole.values(), *family.per_layer.values()]
    assert {source.name for source in sources} == HF_GPT2


def test_gpt2_cuts_c_attn_into_query_key_value() -> None:
    family = family_of("gpt2")
    for kind in ("weight", "bias"):
        sections = [
            family.per_layer[f"attention.{name}.{kind}"].section for name in ("query", "key", "value")
        ]
        assert sections == [(0, 3), (1, 3), (2, 3)]
    assert [name for name, source in family.per_layer.items() if source.section] == [
        f"attention.{name}.{kind}" for name in ("query", "key", "value") for kind in ("weight", "bias")
    ]


def test_gpt2_stores_its_linear_weights_inputs_by_outputs() -> None:
    transposed = {name for name, source in family_of("gpt2").per_layer.items() if source.transposed}
    attention = {f"attention.{name}.weight" for name in ("query", "key", "value", "output")}
    assert transposed == attention | {"mlp.up.weight", "mlp.down.weight"}
    assert not any(source.transposed for source in family_of("gpt2").whole.values())


@pytest.mark.parametrize("family", FAMILIES.values(), ids=list(FAMILIES))
def test_each_row_is_consistent(family: Family) -> None:
    assert FAMILIES[family.model_type] is family_of(family.model_type) is family
    places = [(s.name, s.section) for s in (*family.whole.values(), *family.per_layer.values())]
    assert len(set(places)) == len(places)
    assert all("{layer}" in source.name for source in family.per_layer.values())
    assert not any("{layer}" in source.name for source in family.whole.values())
    assert family.prefix.endswith(".")
    assert not any(source.name.endswith(family.ignored) for source in family.per_layer.values())


def test_the_tables_of_configurations_and_of_weights_have_the_same_families() -> None:
    assert set(FAMILIES) == set(config.FAMILIES)


def test_an_unknown_family() -> None:
    with pytest.raises(ConfigError) as caught:
        family_of("mamba")
    assert str(caught.value) == "The base model's model_type is 'mamba'; refpeft knows gpt2."
