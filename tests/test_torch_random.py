"""torch_random against torch 2.13.0: values that torch drew, embedded here, and torch itself if installed.

The embedded values come from torch's AVX2 kernels, after `torch.manual_seed(seed)`.
"""

import hashlib
import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from support import need

from refpeft.errors import InputError
from refpeft.torch_random import Generator, embedding, linear


def float32(values):
    return np.array(values, np.float32)


def assert_same(actual, expected):
    """Compare dtype, shape and every value, without tolerance."""
    assert actual.dtype == expected.dtype
    np.testing.assert_array_equal(actual, expected, strict=True)


def assert_same_but_for_libm(actual, expected):
    """Allow the last bit to differ: normals made one by one use the C library's log1p, sin and cos."""
    assert actual.dtype == expected.dtype
    assert actual.shape == expected.shape
    np.testing.assert_array_max_ulp(actual, expected, maxulp=1)


def sha256(*arrays):
    return hashlib.sha256(b"".join(array.astype("<f4").tobytes() for array in arrays)).hexdigest()


SEEDS = {
    0: [209652404, 130329144, 118924928],
    7: [59306160, 171107527, 128500261],
    2**32 + 7: [59306160, 171107527, 128500261],
    2**32 - 1: [150890916, 210911523, 160558106],
    2**64 - 1: [150890916, 210911523, 160558106],
    -1: [150890916, 210911523, 160558106],
    -5: [233720300, 78193986, 167449530],
    -(2**63): [209652404, 130329144, 118924928],
}


@pytest.mark.parametrize("seed", SEEDS)
def test_seed_starts_the_stream_of_torch(seed):
    assert_same(Generator(seed).randint(0, 2**28 - 1, (3,)), np.array(SEEDS[seed]))


def test_seed_may_be_any_kind_of_integer():
    assert_same(Generator(np.uint32(7)).randint(0, 2**28 - 1, (3,)), np.array(SEEDS[7]))


@pytest.mark.parametrize("seed", [2**64, -(2**63) - 1])
def test_seed_out_of_range_is_refused(seed):
    with pytest.raises(InputError) as caught:
        Generator(seed)
    assert str(caught.value) == (
        f"seed is {seed}, but torch.manual_seed takes an integer from -2**63 to 2**64 - 1: choose a seed in "
        "that range (seeds equal modulo 2**32 give the same values)."
    )


def test_stream_goes_on_after_its_state_is_used_up():
    one_draw = Generator(0).uniform((2000,))
    generator = Generator(0)
    assert_same(np.concatenate([generator.uniform((n,)) for n in (623, 2, 1375)]), one_draw)


UNIFORMS = [
    (0.0, 1.0, [0.8302519, 0.12611091, 0.9074697, 0.81992704]),
    (-0.3, 0.7, [0.53025186, -0.1738891, 0.6074697, 0.519927, 0.6201034, -0.1833548]),
    (0.1, 0.3, [0.2660504, 0.12522219, 0.28149396, 0.26398543, 0.2840207, 0.12332904]),
    (2.0, 2.0, [2.0, 2.0, 2.0]),
]


@pytest.mark.parametrize(("low", "high", "expected"), UNIFORMS)
def test_uniform_has_the_bits_of_torch(low, high, expected):
    assert_same(Generator(5).uniform((len(expected),), low, high), float32(expected))


def test_uniform_is_by_default_between_0_and_1():
    assert_same(Generator(5).uniform((2, 2)), float32(UNIFORMS[0][2]).reshape(2, 2))


def test_uniform_never_returns_high_unless_it_is_low():
    """Between neighbouring float32 numbers half the draws round up to high; torch turns them into low."""
    high = float(np.nextafter(np.float32(1000), np.float32(2000)))
    assert_same(Generator(5).uniform((4,), 1000.0, high), float32([1000.0] * 4))


LARGEST = float(np.finfo(np.float32).max)


@pytest.mark.parametrize(
    ("low", "high"),
    [
        (1.0, 0.5),
        (math.nan, 1.0),
        (0.0, math.nan),
        (-math.inf, 0.0),
        (0.0, 2 * LARGEST),
        (-2 * LARGEST, -1.5 * LARGEST),
        (-0.6 * LARGEST, 0.6 * LARGEST),
    ],
)
def test_uniform_refuses_bounds(low, high):
    with pytest.raises(InputError) as caught:
        Generator(0).uniform((1,), low, high)
    assert str(caught.value) == (
        f"uniform was given low={low} and high={high}, but needs low <= high with both, and high - low, "
        "finite in float32 (at most 3.4028234663852886e+38): swap or narrow the bounds."
    )


def test_uniform_reaches_the_largest_range():
    assert np.isfinite(Generator(0).uniform((100,), 0.0, LARGEST)).all()
    assert np.isfinite(Generator(0).uniform((100,), -LARGEST, 0.0)).all()


ONE_BY_ONE = [
    0.7376295, 1.9459292, -0.6995416, -1.3022974, -0.5132622, -0.26961955, 0.24618466, 0.48392528, 0.4504178,
    -0.9568334, 1.5011879, -0.31357366, -0.23428439, -1.0713092, 0.16479844,
]  # fmt: skip
BLOCKS = [
    -0.51079756, 1.0282718, -0.3531516, 0.122991316, -0.18155447, -1.4972281, 0.14210454, -0.52428246,
    -0.24873711, -0.5252376, 2.8922136, -0.5947134, 1.3118331, 0.35217938, -1.3151243, -0.007992205,
]  # fmt: skip
TAIL_OF_17 = [
    1.5727035, -1.6394645, -1.5925323, -0.15462512, -1.0964388, 1.3665977, 0.68928194, 0.07443918, 0.6171001,
    0.7528402, 0.6022522, 2.0175424, -1.1686294, -1.3241942, 1.1267436, 1.9112736,
]  # fmt: skip
TAIL_OF_20 = [
    -0.15462512, -1.0964388, 1.3665977, 0.68928194, 0.07443918, -0.18429555, 0.7960368, 0.9592343, 2.0175424,
    -1.1686294, -1.3241942, 1.1267436, 1.9112736, 0.29790407, -0.70412296, 0.49830028,
]  # fmt: skip
TAIL_OF_35 = [
    0.13833785, 0.49617487, -0.6052795, -0.800694, 0.1586518, -0.724458, 0.7690766, -1.1396381, 0.37349072,
    2.995054, -0.25694326, -0.68379736, 1.0621186, -0.43013054, 1.7798349, 0.057289418,
]  # fmt: skip


@pytest.mark.parametrize("count", [1, 2, 3, 15])
def test_fewer_than_16_normals_are_made_one_by_one(count):
    assert_same_but_for_libm(Generator(11).normal((count,)), float32(ONE_BY_ONE[:count]))


@pytest.mark.parametrize(
    ("count", "expected", "next_integer"),
    [
        (16, BLOCKS, 768),
        (17, BLOCKS[:1] + TAIL_OF_17, 185),
        (20, BLOCKS[:4] + TAIL_OF_20, 243),
        (35, [*BLOCKS, 0.24788003, 1.5727035, -1.6394645, *TAIL_OF_35], 188),
    ],
)
def test_16_normals_or_more_are_made_in_blocks_and_the_last_16_redrawn(count, expected, next_integer):
    generator = Generator(11)
    assert_same(generator.normal((count,)), float32(expected))
    assert generator.randint(0, 1000, (1,)) == next_integer


def test_shape_decides_by_its_number_of_values_only():
    assert_same(Generator(11).normal((5, 1, 7)).reshape(-1), Generator(11).normal((35,)))
    assert_same(Generator(11).normal(()), Generator(11).normal((1,)).reshape(()))
    assert Generator(11).uniform(()).shape == ()
    assert Generator(11).randint(0, 9, ()).shape == ()


def test_empty_draws_leave_the_stream_alone():
    generator = Generator(11)
    assert_same(generator.normal((0, 3)), np.empty((0, 3), np.float32))
    assert_same(generator.uniform((0,)), np.empty((0,), np.float32))
    assert_same(generator.randint(0, 2**40, (0,)), np.empty((0,), np.int64))
    assert_same(generator.normal((16,)), float32(BLOCKS))


def test_mean_and_std_are_applied_with_one_rounding():
    """18 values: torch rounds mean and std to float32, multiplies, adds, and rounds once."""
    assert_same(
        Generator(6).normal((18,), 0.3, 0.02),
        float32(
            [0.2757739, 0.31260717, 0.3072603, 0.30798936, 0.30291316, 0.28531045, 0.2802549, 0.3370244,
             0.32064316, 0.31653214, 0.31762272, 0.28695622, 0.3116194, 0.3071216, 0.30032092, 0.30803716,
             0.2814984, 0.3111888]
        ),
    )  # fmt: skip
    assert_same(Generator(6).normal((16,), 2.5, 0.0), float32([2.5] * 16))
    assert_same(Generator(6).normal((3,), 2.5, 0.0), float32([2.5] * 3))


def test_second_normal_is_kept_through_all_other_draws():
    generator = Generator(3)
    one_by_one = assert_same_but_for_libm
    one_by_one(generator.normal((5,)), float32([0.80327606, 0.17483339, 0.0889781, -0.61371803, 0.04618245]))
    assert_same(
        generator.uniform((7,)),
        float32([0.14984089, 0.4014688, 0.054176927, 0.45940524, 0.17560524, 0.94918287, 0.84731865]),
    )
    assert_same(generator.normal((20,))[-3:], float32([0.72423935, -0.34917733, -0.528988]))
    assert_same(generator.randint(0, 1000, (3,)), np.array([425, 861, 103]))
    one_by_one(generator.normal((2,), 10.0, 2.0), float32([7.2634816, 9.136757]))
    one_by_one(generator.normal((2,)), float32([-1.8606166, 0.08905203]))
    assert_same(generator.normal((17,))[-2:], float32([-0.88228315, 0.56170297]))
    one_by_one(generator.normal((1,), -1.0, 0.5), float32([-0.9880371]))
    assert_same(generator.randint(0, 2**40, (2,)), np.array([606472619429, 679469747760]))
    one_by_one(generator.normal((1,)), float32([-0.88547224]))


def test_generators_do_not_share_anything():
    first, second = Generator(11), Generator(11)
    drawn = [generator.normal((1,))[0] for generator in (first, second, first, second)]
    assert_same_but_for_libm(float32(drawn), float32([ONE_BY_ONE[0]] * 2 + [ONE_BY_ONE[1]] * 2))


@pytest.mark.parametrize(
    ("mean", "std"),
    [
        (0.0, -1.0),
        (0.0, math.nan),
        (math.nan, 1.0),
        (math.inf, 1.0),
        (-math.inf, 1.0),
        (0.0, math.inf),
        (2 * LARGEST, 1.0),
    ],
)
def test_normal_refuses_mean_and_std(mean, std):
    with pytest.raises(InputError) as caught:
        Generator(0).normal((1,), mean, std)
    assert str(caught.value) == (
        f"normal was given mean={mean} and std={std}, but needs numbers that float32 can hold, and std >= 0: "
        "give a finite mean and a non-negative standard deviation."
    )


def test_normal_takes_the_largest_mean_and_std():
    assert_same(Generator(0).normal((1,), LARGEST, 0.0), float32([LARGEST]))
    assert Generator(0).normal((0,), -LARGEST, LARGEST).size == 0


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 2**28 - 1, [44556670, 223170913, 8051334, 264700412]),
        (0, 2**28, [223170908, 264700405, 32397368, 15995798]),
        (-3, 4, [1, 2, 2, 1]),
        (-(2**40), 2**50, [905440800887132, 777898030465525, 928769530288184, 589318115824534]),
        (
            -(2**63),
            2**63 - 1,
            [-9032002594820763300, 34580184003183093, -77968886344034248, -6754652892777147498],
        ),
        (2**63 - 2, 2**63 - 1, [2**63 - 2] * 4),
    ],
)
def test_randint_has_the_bits_of_torch(low, high, expected):
    assert_same(Generator(9).randint(low, high, (2, 2)), np.array(expected, np.int64).reshape(2, 2))


@pytest.mark.parametrize(("low", "high"), [(3, 3), (4, 3), (-(2**63) - 1, 0), (0, 2**63)])
def test_randint_refuses_bounds(low, high):
    with pytest.raises(InputError) as caught:
        Generator(0).randint(low, high, (1,))
    assert str(caught.value) == (
        f"randint was given low={low} and high={high}, but needs -2**63 <= low < high < 2**63: "
        "give a range that holds at least one 64-bit integer."
    )


NEGATIVE: dict[str, Callable[[Generator, tuple[int, ...]], object]] = {
    "uniform": lambda generator, shape: generator.uniform(shape),
    "normal": lambda generator, shape: generator.normal(shape),
    "randint": lambda generator, shape: generator.randint(0, 2, shape),
    "embedding": lambda generator, shape: embedding(generator, *shape),
    "linear": lambda generator, shape: linear(generator, shape[1], shape[0]),
}


@pytest.mark.parametrize("draw", NEGATIVE.values(), ids=NEGATIVE.keys())
def test_negative_sizes_are_refused(draw):
    with pytest.raises(InputError) as caught:
        draw(Generator(0), (-1, 2))
    assert str(caught.value) == "shape is (-1, 2), but every size must be 0 or more: check the sizes given."


def test_linear_draws_the_weight_and_then_the_bias():
    weight, bias = linear(Generator(4), 3, 2)
    assert_same(weight, float32([[0.06886475, 0.06823403, -0.471745], [-0.33485946, -0.5690427, -0.532361]]))
    assert_same(bias, float32([0.5691456, 0.47702193]))


def test_linear_of_one_feature_is_the_smallest():
    weight, bias = linear(Generator(4), 1, 0)
    assert weight.shape == (0, 1)
    assert bias.shape == (0,)
    with pytest.raises(InputError) as caught:
        linear(Generator(4), 0, 3)
    assert str(caught.value) == (
        "linear was given in_features=0, but a bound of 1/sqrt(in_features) needs at least 1: "
        "check the sizes of the layer."
    )


def test_linear_bound_is_what_the_kaiming_formula_gives_in_float32():
    in_features = np.arange(1, 1_000_001)
    kaiming = math.sqrt(3.0) * (math.sqrt(2.0 / (1.0 + math.sqrt(5.0) ** 2)) / np.sqrt(in_features))
    assert_same((1.0 / np.sqrt(in_features)).astype(np.float32), kaiming.astype(np.float32))


def test_embedding_draws_standard_normals():
    assert_same(
        embedding(Generator(2), 3, 6),
        float32(
            [[-1.0408012, 0.91660416, -0.84800065, 0.52660435, 0.029916182, -0.049838036],
             [1.0650779, 0.8860367, -0.81098616, 0.6736502, 0.12886369, 2.7630668],
             [0.14047647, 1.1191015, 0.31523156, 1.7527765, -0.7395676, -1.242452]]
        ),
    )  # fmt: skip
    assert_same_but_for_libm(
        embedding(Generator(2), 2, 3),
        float32([[0.39229682, -0.22356401, -0.31950027], [-1.2050371, 1.0444635, -0.6332277]]),
    )


def test_gpt2_prefix_has_the_bits_of_torch():
    """20 virtual tokens for GPT-2, 737,280 normals: the SHA-256 of torch's bytes."""
    digest = "96df0da4e359e210c99fea62e111ab2f7c3691e42136e7fade819a0c2a336be2"
    assert sha256(embedding(Generator(0), 20, 2 * 12 * 12 * 128)) == digest


def test_gpt2_projection_has_the_bits_of_torch():
    digest = "ad21a74243bfc0e8e434ce5a9fb223fc78838271e5fd81985023fb2dcf7a0b1b"
    assert sha256(*linear(Generator(0), 768, 3072)) == digest


# The rest asks torch itself.

SIZES = st.one_of(st.integers(0, 70), st.just(1000))
BOUNDS = st.floats(-1000.0, 1000.0, width=32)
WIDTHS = st.sampled_from([1, 2, 7, 2**28 - 1, 2**28, 2**28 + 1, 2**32, 2**62])
DRAWS = st.one_of(
    st.tuples(st.just("normal"), SIZES, st.floats(-3.0, 3.0), st.floats(0.0, 3.0)),
    st.tuples(st.just("randn"), SIZES),
    st.tuples(st.just("uniform"), SIZES, BOUNDS, BOUNDS),
    st.tuples(st.just("randint"), SIZES, st.integers(-(2**61), 2**61), WIDTHS),
    st.tuples(st.just("linear"), st.integers(1, 40), st.integers(1, 40)),
    st.tuples(st.just("embedding"), st.integers(1, 8), st.integers(1, 8)),
)


def ask_refpeft(generator, draw):
    match draw:
        case "normal", size, mean, std:
            return [generator.normal((size,), mean, std)]
        case "randn", size:
            return [generator.normal((size,))]
        case "uniform", size, low, high:
            return [generator.uniform((size,), min(low, high), max(low, high))]
        case "randint", size, low, width:
            return [generator.randint(low, low + width, (size,))]
        case "linear", in_features, out_features:
            return list(linear(generator, in_features, out_features))
        case "embedding", rows, columns:
            return [embedding(generator, rows, columns)]


def ask_torch(torch, draw):
    match draw:
        case "normal", size, mean, std:
            tensors = [torch.empty(size).normal_(mean, std)]
        case "randn", size:
            tensors = [torch.randn(size)]
        case "uniform", size, low, high:
            tensors = [torch.empty(size).uniform_(min(low, high), max(low, high))]
        case "randint", size, low, width:
            tensors = [torch.randint(low, low + width, (size,))]
        case "linear", in_features, out_features:
            layer = torch.nn.Linear(in_features, out_features)
            tensors = [layer.weight, layer.bias]
        case "embedding", rows, columns:
            tensors = [torch.nn.Embedding(rows, columns).weight]
    return [tensor.detach().numpy() for tensor in tensors]


def assert_agrees_with(torch, draw, mine, its):
    """Compare bits where torch uses its AVX2 kernels; elsewhere allow what its plain kernels differ by."""
    assert mine.dtype == its.dtype
    if mine.dtype == np.int64 or torch.backends.cpu.get_cpu_capability() in {"AVX2", "AVX512"}:
        np.testing.assert_array_equal(mine, its, strict=True)
        return
    scale = {"normal": 1.0 + max(abs(x) for x in draw[2:]), "uniform": 1000.0} if len(draw) == 4 else {}
    np.testing.assert_allclose(mine, its, rtol=0, atol=4e-6 * scale.get(draw[0], 1.0), strict=True)


@pytest.mark.live
@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(seed=st.integers(-(2**63), 2**64 - 1), draws=st.lists(DRAWS, min_size=1, max_size=8))
@example(seed=0, draws=[("randn", 5), ("randn", 3), ("uniform", 7, 0.0, 1.0), ("randn", 20), ("randn", 1)])
@example(seed=2**64 - 1, draws=[("randn", 1), ("randint", 3, -5, 2**28), ("linear", 5, 3), ("randn", 1)])
@example(seed=-(2**63), draws=[("randn", 3), ("embedding", 4, 4), ("randn", 1)])
def test_every_sequence_of_draws_is_that_of_torch(seed, draws):
    torch = need("torch")
    generator = Generator(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for draw in draws:
            for mine, its in zip(ask_refpeft(generator, draw), ask_torch(torch, draw), strict=True):
                assert_agrees_with(torch, draw, mine, its)


@pytest.mark.live
@pytest.mark.parametrize("size", range(1, 71))
def test_every_size_of_normals_is_that_of_torch(size):
    torch = need("torch")
    generator = Generator(size)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(size)
        for draw in [("randn", size), ("randn", size), ("randn", 1)]:
            assert_agrees_with(torch, draw, ask_refpeft(generator, draw)[0], ask_torch(torch, draw)[0])


@pytest.mark.live
def test_torch_refuses_the_seeds_refused_here():
    torch = need("torch")
    for seed in (2**64, -(2**63) - 1):
        with torch.random.fork_rng(devices=[]), pytest.raises(ValueError, match="Overflow"):
            torch.manual_seed(seed)
