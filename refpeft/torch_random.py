"""torch's CPU random streams, so that a seed means here what `torch.manual_seed(seed)` means to HF peft.

Follows torch 2.13.0: ATen `core/MT19937RNGEngine.h`, `core/CPUGeneratorImpl.cpp`,
`core/DistributionsHelper.h`, `core/TransformationHelper.h`, `native/cpu/DistributionTemplates.h`,
`native/cpu/avx_mathfun.h` (the Cephes polynomials of S. Moshier as vectorised by J. Pommier and G.
Garberoglio), and `torch/nn/init.py`. Where this module and torch disagree, torch wins.

torch's own floating-point values depend on the CPU. The values here are those of its AVX2 kernels, which
nearly every x86 machine runs, AVX-512 machines included: integers, uniforms and normals have the same bits
(but see `_multiply_add`). torch's plain kernels, for CPUs without AVX2 (measured with
`ATEN_CPU_CAPABILITY=default` on x86), differ from those, and hence from here: uniforms, and with them
`linear`, are rounded twice, and 16 standard normals or more are off by up to 2.5e-6, because the angle is
rounded at another place. Integers are the same everywhere.

Random numbers are drawn once, on the host, and no gradient flows through them: this module uses NumPy itself.
"""

import math
import operator
from typing import SupportsIndex, TypeAlias

import numpy as np
from jaxtyping import Float32, Int64, UInt64
from numpy.typing import NDArray

from refpeft.errors import InputError
from refpeft.steps import step

Float32s: TypeAlias = NDArray[np.float32]

STATE_WORDS = 624
FLOAT32_MAX = float(np.finfo(np.float32).max)
VECTOR_FILL = 16
"""Normals are made in blocks of 16, from 16 values on; fewer are made one by one, in another way."""
WIDE_RANGE = 2**28
"""From this many possible integers on, `randint` spends 64 random bits on each instead of 32."""

# Cephes' single-precision coefficients, highest power first, as avx_mathfun.h has them.
LOG_COEFFICIENTS = (
    7.0376836292e-2,
    -1.1514610310e-1,
    1.1676998740e-1,
    -1.2420140846e-1,
    1.4249322787e-1,
    -1.6668057665e-1,
    2.0000714765e-1,
    -2.4999993993e-1,
    3.3333331174e-1,
)
LOG_2_HIGH, LOG_2_LOW = 0.693359375, -2.12194440e-4
SINE_COEFFICIENTS = (-1.9515295891e-4, 8.3321608736e-3, -1.6666654611e-1)
COSINE_COEFFICIENTS = (2.443315711809948e-5, -1.388731625493765e-3, 4.166664568298827e-2)
MINUS_QUARTER_PI = (-0.78515625, -2.4187564849853515625e-4, -3.77489497744594108e-8)


class Generator:
    """A stream of random numbers: torch's CPU generator just after `torch.manual_seed(seed)`.

    The engine is the Mersenne Twister MT19937 with the seeding of Matsumoto and Nishimura (2002), from the
    seed's low 32 bits: key[0] = seed mod 2³², key[i] = (1812433253 · (key[i-1] xor (key[i-1] >> 30)) + i) mod
    2³².

    Every draw moves the stream on, so the order of draws matters. Beside the engine, the generator keeps the
    second value of a pair of normals made one by one; only a later draw of that kind uses it up, whatever
    comes between.

    Args:
        seed: an integer from -2⁶³ to 2⁶⁴ - 1. Seeds equal modulo 2³² give the same stream.

    Raises:
        InputError: the seed is outside that range.
        TypeError: the seed is no integer. (torch cuts a float's fraction off without a word.)

    Source: ATen `mt19937::init_with_uint32`, `CPUGeneratorImpl` (torch 2.13.0).

    How others differ: NumPy's `RandomState(seed)` and Python's `random` use the same engine, but NumPy
    refuses seeds from 2³² on, Python seeds differently, and both turn the engine's bits into floats and
    normals in other ways; NumPy's `default_rng` is another engine. torch on a GPU uses Philox. None of them
    gives HF's initial values.
    """

    def __init__(self, seed: SupportsIndex) -> None:
        number = operator.index(seed)
        if not -(2**63) <= number < 2**64:
            raise InputError(
                f"seed is {number}, but torch.manual_seed takes an integer from -2**63 to 2**64 - 1: choose "
                f"a seed in that range (seeds equal modulo 2**32 give the same values)."
            )
        key = [number % 2**32]
        for i in range(1, STATE_WORDS):
            key.append((1812433253 * (key[-1] ^ (key[-1] >> 30)) + i) % 2**32)
        self._engine = np.random.MT19937(0)
        self._engine.state = {
            "bit_generator": "MT19937",
            "state": {"key": np.array(key, np.uint32), "pos": STATE_WORDS},
        }
        self._second_normal: float | None = None

    def uniform(
        self, shape: tuple[int, ...], low: float = 0.0, high: float = 1.0
    ) -> Float32[np.ndarray, "..."]:
        """Draw what `torch.empty(shape).uniform_(low, high)` draws, in the same bits.

        u = (32 random bits mod 2²⁴) · 2⁻²⁴; value = u · (high - low) + low. Low, high and their difference
        are rounded to float32 first, the product and the sum together once; a value rounded up to high
        becomes low.

        Args:
            shape: of the result; () gives one number.
            low: smallest value, possible.
            high: end of the range, not possible unless it equals low.

        Returns:
            float32, of the given shape.

        Raises:
            InputError: a size is negative; low or high is NaN or beyond float32; low > high; high - low is
                beyond float32.

        Source: ATen `uniform_real`, `uniform_kernel` (torch 2.13.0).

        How others differ: torch's float64 uniform takes 53 of 64 bits, so drawing in float64 and rounding is
        another stream. Multiplying and adding with two roundings gives other last bits in a third of
        the values.
        """
        count = _number_of_values(shape)
        if not (-FLOAT32_MAX <= low <= high <= FLOAT32_MAX and high - low <= FLOAT32_MAX):
            raise InputError(
                f"uniform was given low={low} and high={high}, but needs low <= high with both, and high - "
                f"low, finite in float32 (at most {FLOAT32_MAX}): swap or narrow the bounds."
            )
        start, end = np.float32(low), np.float32(high)
        values = _multiply_add(self._unit_float32(count), end - start, start)
        return np.where(values == end, start, values).reshape(shape)

    def normal(
        self, shape: tuple[int, ...], mean: float = 0.0, std: float = 1.0
    ) -> Float32[np.ndarray, "..."]:
        """Draw what `torch.empty(shape).normal_(mean, std)` and, by default, `torch.randn(shape)` draw.

        Box-Muller turns two uniforms into two normals, r · cos θ and r · sin θ, in one of two ways:

        - fewer than 16 values, one by one: θ = 2π·a and r = √(-2 log(1 - b)) from two float64 uniforms a, b
          of 53 bits. The cosine comes first; the sine is kept and is the next value, even of a later call
          with another mean and std. Rounded to float32 last.
        - 16 values or more, in float32, per block of 16 uniforms: value j = √(-2 log(1 - u[j])) · cos(2π·u[j
          + 8]) and value j + 8 likewise with sin, for j < 8. As many uniforms as values are drawn first.
          Where the number is not divisible by 16, 16 more are drawn and replace the *last 16* values, part of
          a finished block included. A kept sine is neither used nor dropped.

        Args:
            shape: of the result; () gives one number. Only the number of values matters: torch counts those
                of the whole tensor.
            mean: of the distribution.
            std: standard deviation of the distribution.

        Returns:
            float32, of the given shape.

        Raises:
            InputError: a size is negative; mean or std is NaN or beyond float32; std < 0.

        Source: ATen `normal_kernel`, `normal_fill`, `NormalFill16<float>`, `normal_distribution<double>`
        (torch 2.13.0).

        How others differ: NumPy's normals (ziggurat or polar method) are another stream. A port that makes 16
        values or more one by one, that forgets the redrawn tail, or that drops the kept sine between calls,
        agrees with HF for some sizes only.
        """
        count = _number_of_values(shape)
        if not (abs(mean) <= FLOAT32_MAX and 0 <= std <= FLOAT32_MAX):
            raise InputError(
                f"normal was given mean={mean} and std={std}, but needs numbers that float32 can hold, and "
                f"std >= 0: give a finite mean and a non-negative standard deviation."
            )
        if count < VECTOR_FILL:
            values = np.array([self._one_normal() * std + mean for _ in range(count)], np.float32)
        else:
            values = _multiply_add(self._many_normals(count), np.float32(std), np.float32(mean))
        return values.reshape(shape)

    def randint(self, low: int, high: int, shape: tuple[int, ...]) -> Int64[np.ndarray, "..."]:
        """Draw what `torch.randint(low, high, shape)` draws, in the same bits.

        value = low + bits mod (high - low), with 32 random bits where high - low < 2²⁸ and 64 from there on.

        Args:
            low: smallest value, possible.
            high: end of the range, not possible.
            shape: of the result; () gives one number.

        Returns:
            int64, of the given shape.

        Raises:
            InputError: a size is negative; low >= high; low or high does not fit in 64 bits.

        Source: ATen `uniform_int_from_to_distribution` (torch 2.13.0).

        How others differ: older torch versions changed to 64 bits at 2³². NumPy and Python reject some draws,
        to be free of the small bias of the modulus; torch does not.
        """
        count = _number_of_values(shape)
        if not -(2**63) <= low < high < 2**63:
            raise InputError(
                f"randint was given low={low} and high={high}, but needs -2**63 <= low < high < 2**63: "
                f"give a range that holds at least one 64-bit integer."
            )
        bits = self._random32(count) if high - low < WIDE_RANGE else self._random64(count)
        offsets = bits % np.uint64(high - low)
        return (offsets + np.uint64(low % 2**64)).astype(np.int64).reshape(shape)

    def _random32(self, count: int) -> UInt64[np.ndarray, " count"]:
        return np.asarray(self._engine.random_raw(count), np.uint64)

    def _random64(self, count: int) -> UInt64[np.ndarray, " count"]:
        first, second = self._random32(2 * count).reshape(count, 2).T
        return np.asarray((first << np.uint64(32)) | second, np.uint64)

    def _unit_float32(self, count: int) -> Float32[np.ndarray, " count"]:
        mantissas = self._random32(count) & np.uint64(2**24 - 1)
        return mantissas.astype(np.float32) * np.float32(2**-24)

    def _unit_float64(self) -> float:
        return int(self._random64(1)[0]) % 2**53 * 2.0**-53

    def _one_normal(self) -> float:
        if self._second_normal is not None:
            value, self._second_normal = self._second_normal, None
            return value
        theta = 2.0 * math.pi * self._unit_float64()
        radius = math.sqrt(-2.0 * math.log1p(-self._unit_float64()))
        self._second_normal = radius * math.sin(theta)
        return radius * math.cos(theta)

    def _many_normals(self, count: int) -> Float32[np.ndarray, " count"]:
        uniforms = self._unit_float32(count)
        remainder = count % VECTOR_FILL
        values = np.empty(count, np.float32)
        values[: count - remainder] = _box_muller(uniforms[: count - remainder])
        if remainder:
            values[-VECTOR_FILL:] = _box_muller(self._unit_float32(VECTOR_FILL))
        return values


def linear(
    generator: Generator, in_features: int, out_features: int
) -> tuple[Float32[np.ndarray, "out_features in_features"], Float32[np.ndarray, " out_features"]]:
    """Draw the initial weight and bias of `torch.nn.Linear(in_features, out_features)`, in that order.

    Both are uniform between ±1/√in_features, rounded to float32. For the weight, torch takes a detour through
    the Kaiming formula with a = √5, √3 · (√(2 / (1 + a²)) / √in_features) in float64, which rounds to the
    same float32 for every in_features up to a million.

    Args:
        generator: the stream to draw from: out_features · in_features values, then out_features.
        in_features: at least 1.
        out_features: 0 or more.

    Returns:
        The weight, (out_features, in_features), and the bias, (out_features,); float32.

    Raises:
        InputError: in_features < 1 (torch warns and makes an empty weight), or out_features < 0.

    Source: torch 2.13.0, `nn.Linear.reset_parameters`, `nn.init.kaiming_uniform_`.

    How others differ: Keras and Flax start a bias at zero. A port that keeps the weight transposed, (in,
    out), and draws it in that shape has the same numbers at other places.
    """
    if in_features < 1:
        raise InputError(
            f"linear was given in_features={in_features}, but a bound of 1/sqrt(in_features) needs at "
            f"least 1: check the sizes of the layer."
        )
    bound = 1.0 / math.sqrt(in_features)
    weight = generator.uniform((out_features, in_features), -bound, bound)
    return weight, generator.uniform((out_features,), -bound, bound)


@step("init.embedding", clause="PT-4", stage="", axes="virtual hidden", source="torch nn/modules/sparse.py Embedding.reset_parameters")  # fmt: skip
def embedding(generator: Generator, rows: int, columns: int) -> Float32[np.ndarray, "rows columns"]:
    """Draw the initial weight of `torch.nn.Embedding(rows, columns)`: standard normals.

    Args:
        generator: the stream to draw from.
        rows: number of embeddings, 0 or more.
        columns: size of one embedding, 0 or more.

    Returns:
        float32, (rows, columns).

    Raises:
        InputError: a size is negative.

    Source: torch 2.13.0, `nn.Embedding.reset_parameters`, `nn.init.normal_`.

    How others differ: GPT-2's habit is a standard deviation of 0.02 (transformers: `initializer_range`) for
    the embeddings of the base model. HF peft leaves its embeddings of virtual tokens as torch made them, 50
    times wider.
    """
    return generator.normal((rows, columns))


def _number_of_values(shape: tuple[int, ...]) -> int:
    if any(size < 0 for size in shape):
        raise InputError(f"shape is {shape}, but every size must be 0 or more: check the sizes given.")
    return math.prod(shape)


def _box_muller(uniforms: Float32s) -> Float32s:
    """Turn each 16 uniforms into 16 standard normals, in the bits of `NormalFill16<float>` (AVX2)."""
    pairs = uniforms.reshape(-1, 2, VECTOR_FILL // 2)  # (block, radius or angle, 8)
    radius = np.sqrt(np.float32(-2) * _log(1 - pairs[:, 0]))
    sine, cosine = _sine_and_cosine(np.float32(2 * math.pi) * pairs[:, 1])
    return np.stack([radius * cosine, radius * sine], axis=1).reshape(-1)


def _log(x: Float32s) -> Float32s:
    """Natural logarithm of x > 0, in the bits of `log256_ps`: Cephes' polynomial around 1, plus e · log 2."""
    mantissa, exponent = np.frexp(x)  # x = mantissa · 2^exponent, 0.5 <= mantissa < 1
    small = mantissa < np.float32(math.sqrt(0.5))
    e = (exponent - small).astype(np.float32)
    m = np.where(small, mantissa + mantissa, mantissa) - np.float32(1)  # √½ - 1 <= m < √2 - 1
    square = m * m
    y = _polynomial(m, LOG_COEFFICIENTS) * m
    y = _multiply_add(y, square, e * np.float32(LOG_2_LOW))
    y = _multiply_add(square, np.float32(-0.5), y)
    return _multiply_add(e, np.float32(LOG_2_HIGH), m + y)


def _sine_and_cosine(x: Float32s) -> tuple[Float32s, Float32s]:
    """Sine and cosine of x >= 0, in the bits of `sincos256_ps`: polynomials around multiples of π/2."""
    octant = ((x * np.float32(4 / math.pi)).astype(np.int32) + 1) & ~1  # even: 0, 2, 4, 6, 8 for x up to 2π
    for part in MINUS_QUARTER_PI:  # x - octant · π/4, π/4 in three parts so as not to lose digits
        x = _multiply_add(octant.astype(np.float32), np.float32(part), x)
    square = x * x
    near_sine = _multiply_add(_polynomial(square, SINE_COEFFICIENTS) * square, x, x)
    near_cosine = _polynomial(square, COSINE_COEFFICIENTS) * square
    near_cosine = _multiply_add(near_cosine, square, square * np.float32(-0.5)) + np.float32(1)
    swapped = octant & 2 != 0
    sine = np.where(swapped, near_cosine, near_sine)
    cosine = np.where(swapped, near_sine, near_cosine)
    return np.where(octant & 4 != 0, -sine, sine), np.where((octant + 2) & 4 != 0, -cosine, cosine)


def _polynomial(x: Float32s, coefficients: tuple[float, ...]) -> Float32s:
    """Evaluate a polynomial by Horner's rule, highest power first, one rounding to float32 per power."""
    value = np.full_like(x, coefficients[0])
    for coefficient in coefficients[1:]:
        value = _multiply_add(value, x, np.float32(coefficient))
    return value


def _multiply_add(a: Float32s, b: Float32s | np.float32, c: Float32s | np.float32) -> Float32s:
    """Compute a · b + c rounded to float32 once, as the fused instructions in torch's AVX2 kernels do.

    The product of two float32 numbers is exact in float64. Its sum with c is rounded to float64 first, which
    changes the float32 result only where that lands halfway between two of them: about once in 2²⁹ sums.
    """
    return (np.multiply(a, b, dtype=np.float64) + c).astype(np.float32)
