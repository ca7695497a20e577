"""The only door to NumPy: the array functions that the specification may use, differentiated by autograd.

The rest of the specification writes `from refpeft import arrays as np`. Each function here takes arrays of any shape and
floating-point format that says no other, of three kinds: `numpy.ndarray`, the boxes that autograd traces, and foreign arrays that
answer NumPy's protocols (`__array_ufunc__`, `__array_function__`), such as CuPy's, once they are announced with `register`.

Why not autograd's own functions: several of their gradients widen float32 to float64 (`mean`, `max`, `where`, `**`), and
others pass through host memory (`sum` adds a host array, `concatenate` views its result as ndarray, indexing scatters
with `numpy.add.at`). The primitives below keep the dtype and the device of what they are given, gradients included.
Elementwise `+ - * / @`, comparisons, `exp`, `log`, `sqrt`, `square` … have no such fault and are autograd's.

How others differ: torch and JAX bring this layer with them; here it is what makes one readable text run in float32,
float64, long double, on a GPU, and under simulated rounding.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar, cast

import autograd.numpy as _traced
import numpy as _numpy
from autograd.core import VJPNode, add_outgrads
from autograd.extend import VSpace, defvjp, defvjp_argnums
from autograd.extend import primitive as _primitive
from autograd.numpy.numpy_boxes import ArrayBox
from autograd.tracer import getval as _getval
from autograd.tracer import isbox as _isbox
from autograd.tracer import new_box, trace_stack
from autograd.util import toposort

from refpeft import error_function as _error_function

if TYPE_CHECKING:
    from jaxtyping import Float

    Array: TypeAlias = _numpy.ndarray[Any, _numpy.dtype[Any]]
    """An ndarray, a box of autograd, or a registered foreign array. Static checkers see an ndarray."""
else:
    import jaxtyping

    class Float(jaxtyping.AbstractDtype):
        """jaxtyping's Float, and long double, in which the oracle measures how exact float64 is."""

        dtypes = (*jaxtyping.Float.dtypes, "longdouble")

    class _HasShapeAndDtype(type):
        """What counts as an array: it is asked millions of times while tests run, and a Protocol is slow to answer."""

        def __instancecheck__(cls, x: object) -> bool:
            return isinstance(x, _numpy.ndarray) or (
                hasattr(x, "shape") and hasattr(x, "dtype") and hasattr(x, "ndim")
            )

    class Array(metaclass=_HasShapeAndDtype):
        """An ndarray, a box of autograd, or a registered foreign array. Static checkers see an ndarray."""


Parameters: TypeAlias = Mapping[str, Array]
"""Arrays by name: HF's parameter names for what is trained, refpeft's canonical names for the frozen base."""

# ---------------------------------------------------------------- elementwise: autograd's own keep dtype and device

exp: Callable[[Array], Array] = _traced.exp
log: Callable[[Array], Array] = _traced.log
log1p: Callable[[Array], Array] = _traced.log1p
sin: Callable[[Array], Array] = _traced.sin
cos: Callable[[Array], Array] = _traced.cos
sqrt: Callable[[Array], Array] = _traced.sqrt
square: Callable[[Array], Array] = _traced.square
matmul: Callable[[Array, Array], Array] = (
    _traced.matmul
)  # of CuPy's arrays, `@` does not leave boxes their turn
swapaxes: Callable[[Array, int, int], Array] = _traced.swapaxes

# ---------------------------------------------------------------- primitives with their own gradients
# A gradient that needs a shape alone binds it (`own=x.shape`), so that the array need not live until the backward pass.

_Function = TypeVar("_Function", bound=Callable[..., Any])


def primitive(function: _Function) -> _Function:
    """A function that autograd records as one operation; its gradient is given by `defvjp` after it."""
    return cast("_Function", _primitive(function))


@primitive
def tanh(x: Array) -> Array:
    """Hyperbolic tangent. Its gradient uses the answer, 1 − tanh², where autograd's divides by an overflowing cosh²."""
    return _numpy.tanh(x)


defvjp(tanh, lambda ans, x: lambda g: g * (1 - ans * ans))


@primitive
def erf(x: Array) -> Array:
    """The error function; how it is computed, and how exactly, is in `refpeft.error_function`."""
    return _at_once(_error_function.erf, x)


defvjp(erf, lambda ans, x: lambda g: g * _at_once(_error_function.slope, x))


def _at_once(function: Callable[[Any], Any], x: Array) -> Array:
    """A function that is one operation, of an array that may round after each operation."""
    return cast("Array", getattr(x, "as_one_operation", lambda plain: plain(x))(function))


def _unreduced(reduced: Array, like: Array, axis: int | tuple[int, ...] | None, keepdims: bool) -> Array:
    """`reduced`, stretched back over the axes that a reduction of `like` removed."""
    if not keepdims and axis is not None:
        axes = (axis,) if isinstance(axis, int) else axis
        axes = tuple(a % like.ndim for a in axes)
        reduced = _numpy.reshape(reduced, tuple(1 if a in axes else n for a, n in enumerate(like.shape)))
    return _numpy.broadcast_to(reduced, like.shape)


@primitive
def sum(x: Array, axis: int | tuple[int, ...] | None = None, keepdims: bool = False) -> Array:  # noqa: A001
    """Sum over `axis`."""
    return cast("Array", _numpy.sum(x, axis=axis, keepdims=keepdims))


defvjp(sum, lambda ans, x, axis=None, keepdims=False: lambda g: _unreduced(g, x, axis, keepdims))


@primitive
def mean(x: Array, axis: int | tuple[int, ...] | None = None, keepdims: bool = False) -> Array:
    """Arithmetic mean over `axis`."""
    return cast("Array", _numpy.mean(x, axis=axis, keepdims=keepdims))


def _mean_gradient(
    ans: Array, x: Array, axis: int | tuple[int, ...] | None = None, keepdims: bool = False
) -> Callable[[Array], Array]:
    count = x.size // max(ans.size, 1)
    return lambda g: _unreduced(g / count, x, axis, keepdims)


defvjp(mean, _mean_gradient)


@primitive
def constant_max(x: Array, axis: int) -> Array:
    """Maximum over `axis`, kept as an axis of size one and treated as a constant by differentiation.

    It serves to shift a softmax, whose value does not depend on the shift: the exact gradient through it is zero.
    """
    return cast("Array", _numpy.max(x, axis=axis, keepdims=True))


defvjp(constant_max, lambda ans, x, axis: lambda g: _numpy.zeros_like(x))


def _summed_to(x: Array, shape: tuple[int, ...]) -> Array:
    """The gradient of broadcasting an array of `shape`: `x` summed over the axes that were stretched."""
    x = _numpy.sum(x, axis=tuple(range(x.ndim - len(shape)))) if x.ndim > len(shape) else x
    stretched = tuple(axis for axis, size in enumerate(shape) if size == 1 and x.shape[axis] != 1)
    return _numpy.sum(x, axis=stretched, keepdims=True) if stretched else x


@primitive
def broadcast_to(x: Array, shape: Sequence[int]) -> Array:
    """`x` repeated to `shape` by NumPy's broadcasting rules; the gradient is summed back over the copies."""
    return _numpy.broadcast_to(x, tuple(shape))


defvjp(broadcast_to, lambda ans, x, shape: lambda g, own=x.shape: _summed_to(g, own))


@primitive
def where(condition: Array, x: Array | float, y: Array | float) -> Array:
    """`x` where `condition` holds, else `y`. Python scalars take the dtype of the other branch."""
    return _numpy.where(condition, x, y)


defvjp(
    where,
    lambda ans, condition, x, y: lambda g: _summed_to(_numpy.where(condition, g, 0), _numpy.shape(x)),
    lambda ans, condition, x, y: lambda g: _summed_to(_numpy.where(condition, 0, g), _numpy.shape(y)),
    argnums=(1, 2),
)


@primitive
def reshape(x: Array, shape: Sequence[int]) -> Array:
    """`x` in another shape; autograd's own gradient asks for an order of None, which CuPy does not take."""
    return _numpy.reshape(x, tuple(shape))


defvjp(reshape, lambda ans, x, shape: lambda g, own=x.shape: _numpy.reshape(g, own))


@primitive
def transpose(x: Array, axes: Sequence[int]) -> Array:
    """`x` with its axes in another order; autograd's own gradient sorts the order on the host."""
    return _numpy.transpose(x, tuple(axes))


def _transpose_gradient(ans: Array, x: Array, axes: Sequence[int]) -> Callable[[Array], Array]:
    back = tuple(sorted(range(x.ndim), key=lambda axis: axes[axis] % x.ndim))
    return lambda g: _numpy.transpose(g, back)


defvjp(transpose, _transpose_gradient)


@primitive
def _concatenate(axis: int, *arrays: Array) -> Array:
    return _numpy.concatenate(arrays, axis=axis)


def _concatenate_gradients(argnums: Sequence[int], ans: Array, args: Sequence[Any], kwargs: Any) -> Any:
    axis, arrays = args[0], args[1:]
    before = (slice(None),) * (axis % arrays[0].ndim)
    starts = [0, *itertools.accumulate(array.shape[axis] for array in arrays)]
    return lambda g: [g[(*before, slice(starts[i - 1], starts[i]))] for i in argnums]


defvjp_argnums(_concatenate, _concatenate_gradients)


def concatenate(arrays: Sequence[Array], axis: int) -> Array:
    """The arrays one after the other along an existing `axis`."""
    return _concatenate(axis, *arrays)


@primitive
def cut(x: Array, start: int, stop: int, axis: int) -> Array:
    """The entries from `start` to before `stop` along an axis."""
    return cast("Array", x[(slice(None),) * (axis % x.ndim) + (slice(start, stop),)])


def _cut_gradient(ans: Array, x: Array, start: int, stop: int, axis: int) -> Callable[[Array], Array]:
    def zeros(count: int, g: Array) -> Array:
        shape = tuple(count if a == axis % g.ndim else n for a, n in enumerate(g.shape))
        return full(shape, 0, g.dtype, like=g)

    after = x.shape[axis] - start - ans.shape[axis]
    return lambda g: _numpy.concatenate([zeros(start, g), g, zeros(after, g)], axis=axis)


defvjp(cut, _cut_gradient)


def entry(x: Array, index: int, axis: int) -> Array:
    """One entry along an axis, which disappears."""
    axis %= x.ndim
    return reshape(cut(x, index, index + 1, axis), (*x.shape[:axis], *x.shape[axis + 1 :]))


@primitive
def unstack(x: Array) -> tuple[Array, ...]:
    """The entries of `x` along its first axis, as a tuple."""
    return tuple(x[i] for i in range(x.shape[0]))


defvjp(
    unstack, lambda ans, x: lambda g: _numpy.concatenate([_numpy.expand_dims(part, 0) for part in g], axis=0)
)


@primitive
def take_rows(table: Array, ids: Array) -> Array:
    """Rows of a (rows, columns) table: the result has the shape of `ids` with `columns` appended.

    The gradient is a product with a one-hot matrix, so that it stays on the array's device. The tables trained here
    have at most a few hundred rows; the frozen vocabulary table never needs it.
    """
    return cast("Array", table[ids])


def _take_rows_gradient(ans: Array, table: Array, ids: Array) -> Callable[[Array], Array]:
    def gradient(g: Array) -> Array:
        rows = arange(table.shape[0], like=table)
        one_hot = (_numpy.reshape(ids, (-1,)) == rows[:, None]).astype(g.dtype)  # (rows, ids)
        return cast("Array", one_hot @ _numpy.reshape(g, (-1, table.shape[1])))

    return gradient


defvjp(take_rows, _take_rows_gradient)


@primitive
def pick(x: Array, index: Array) -> Array:
    """One entry of the last axis of `x` for each entry of `index`: shape (…, classes), (…) -> (…)."""
    return cast("Array", _numpy.take_along_axis(x, index[..., None], axis=-1)[..., 0])


def _pick_gradient(ans: Array, x: Array, index: Array) -> Callable[[Array], Array]:
    return lambda g: _numpy.where(arange(x.shape[-1], like=x) == index[..., None], g[..., None], 0)


defvjp(pick, _pick_gradient)


@primitive
def cast_to(x: Array, dtype: Any) -> Array:
    """`x` in another floating-point format; its gradient is cast back."""
    return x.astype(dtype)


defvjp(cast_to, lambda ans, x, dtype: lambda g: g.astype(x.dtype))


@primitive
def _with_gradient(answer: Array, back: Callable[[Array], Sequence[Array | None]], *inputs: Array) -> Array:
    return answer


def _given_gradient(argnums: Sequence[int], ans: Array, args: Sequence[Any], kwargs: Any) -> Any:
    back = args[1]  # what else is in `args` need not live until the backward pass

    def chosen(g: Array) -> list[Array | None]:
        gradients = back(g)
        return [gradients[number - 2] for number in argnums]

    return chosen


defvjp_argnums(_with_gradient, _given_gradient)


def with_gradient(answer: Array, back: Callable[[Array], Sequence[Array | None]], *inputs: Array) -> Array:
    """`answer`, computed from the values of `inputs` in whatever way; `back` turns its gradient into theirs.

    `back` answers for each of the inputs; None stands for one that is not traced.
    """
    return _with_gradient(answer, back, *inputs)


def is_traced(x: Any) -> bool:
    """Whether a gradient will be asked for."""
    return bool(_isbox(x))


def is_plain(*values: Any) -> bool:
    """Whether these are NumPy's own arrays in float32 or float64, all of one dtype, beneath autograd's boxes; None passes."""
    found = [value for value in map(_getval, values) if value is not None]
    kinds = {value.dtype.char for value in found if type(value) is _numpy.ndarray}
    return all(type(value) is _numpy.ndarray for value in found) and (kinds == {"f"} or kinds == {"d"})


# ---------------------------------------------------------------- arrays that nothing is differentiated through


def arange(stop: int, like: Array) -> Array:
    """The integers 0 … stop−1 (int64), where `like` lives."""
    return _numpy.arange(stop, dtype=_numpy.int64, like=cast("Any", _getval(like)))


def full(shape: Sequence[int], value: float, dtype: Any, like: Array) -> Array:
    """An array of one value, where `like` lives."""
    return _numpy.full_like(cast("Any", _getval(like)), value, dtype=dtype, shape=tuple(shape))


def cumsum(x: Array) -> Array:
    """Running sums along the last axis; for masks and counts, nothing is differentiated through it."""
    return cast("Array", _numpy.cumsum(cast("Any", _getval(x)), axis=-1))


def round_to(x: Array, dtype: Any) -> Array:
    """`x` rounded to another floating-point format, and back in its own."""
    return x.astype(dtype).astype(x.dtype)


def value_of(x: Any) -> Any:
    """What a box of autograd holds; anything else unchanged."""
    return _getval(x)


def most_negative(dtype: Any) -> float:
    """What HF's eager mask adds to hide a key: the most negative finite number of the format (at most float64's)."""
    return float(max(_numpy.finfo(dtype).min, _numpy.finfo(_numpy.float64).min))


def value_and_grad(
    function: Callable[[Any], Array], parameters: Parameters
) -> tuple[Array, dict[str, Array]]:
    """The value of a scalar function of a dictionary of arrays, and its gradient as a dictionary of the same keys.

    A parameter that the value does not depend on gets zeros. The gradient has each parameter's shape and dtype.
    """
    names = list(parameters)
    with level() as own:
        value, back = vjp(
            lambda *values: function(dict(zip(names, values, strict=True))), [*parameters.values()], own
        )
    return value, dict(zip(names, back(_numpy.ones_like(_getval(value))), strict=True))


def level() -> AbstractContextManager[int]:
    """What `vjp` is given: autograd's number of a gradient within gradients, which it counts for the whole process."""
    return trace_stack.new_trace()  # type: ignore[no-any-return]


def vjp(
    function: Callable[..., Array], inputs: Sequence[Array], level: int
) -> tuple[Array, Callable[[Array], Sequence[Array]]]:
    """A function's value, and what turns its gradient, once, into that of each input, of any shape; `level` is what `level()` gave."""
    box: Any = new_box(tuple(inputs), level, VJPNode.new_root())
    value: Any = function(*(box[number] for number in range(len(inputs))))
    if not (_isbox(value) and value._trace == level):
        return value, lambda g: [_numpy.zeros_like(_getval(x)) for x in inputs]
    end = value._node
    return value._value, lambda g: _backward(g, end)


def _backward(gradient: Array, end: Any) -> Sequence[Array]:
    """The backward pass of autograd, which lets go of what each operation kept for its gradient as soon as that is taken."""
    gradients = {end: (gradient, False)}
    for node in toposort(end):
        taken, _ = gradients.pop(node)
        found = node.vjp(taken)
        for parent, part in zip(node.parents, found, strict=True):
            gradients[parent] = add_outgrads(gradients.get(parent), part)
        node.vjp = None
    return cast("Sequence[Array]", taken)


# ---------------------------------------------------------------- foreign arrays


class _ForeignSpace(VSpace):  # type: ignore[misc]  # autograd is untyped
    """What autograd asks about a foreign array: how to make zeros and ones like it."""

    def __init__(self, value: Any) -> None:
        self._like = value
        self.shape, self.dtype = value.shape, value.dtype

    @property
    def size(self) -> int:
        return int(_numpy.prod(self.shape))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _ForeignSpace) and (self.shape, self.dtype) == (other.shape, other.dtype)

    __hash__ = None  # type: ignore[assignment]

    def zeros(self) -> Any:
        return _numpy.zeros_like(self._like)

    def ones(self) -> Any:
        return _numpy.ones_like(self._like)

    def _mut_add(self, x: Any, y: Any) -> Any:
        return x + y


_Way: TypeAlias = Callable[[Any], Any]
_WAYS: dict[type, tuple[_Way, _Way]] = {}
_ON_THE_HOST: tuple[_Way, _Way] = (_numpy.asarray, lambda x: x)


def _ways(value: Any) -> tuple[_Way, _Way]:
    """To the host, and from there to where arrays of this kind live."""
    return next((_WAYS[kind] for kind in type(value).__mro__ if kind in _WAYS), _ON_THE_HOST)


def to_host(x: Any) -> Array:
    """An array as a plain ndarray: what is decided from, such as the choice of a token."""
    value = _getval(x)
    return cast("Array", _numpy.asarray(_ways(value)[0](value)))


def place(x: Array, like: Array) -> Array:
    """A plain ndarray where `like` lives; an array that is none stays what it is."""
    return cast("Array", _ways(_getval(like))[1](x)) if isinstance(x, _numpy.ndarray) else x


def register(array_type: type, to_host: _Way = _ON_THE_HOST[0], from_host: _Way = _ON_THE_HOST[1]) -> None:
    """Let autograd trace arrays of a foreign type (CuPy's, or one that rounds after each operation).

    `to_host` makes one a plain ndarray. `from_host` brings a plain ndarray to where they live; arrays that only compute otherwise
    leave it as it is.

    The type must answer `__array_ufunc__` and `__array_function__`, and return `NotImplemented` from the former for
    operands it does not know, so that autograd's boxes get their turn.
    """
    ArrayBox.register(array_type)
    VSpace.register(array_type, _ForeignSpace)
    _WAYS[array_type] = (to_host, from_host)


__all__ = [
    "Array", "Float", "Parameters", "arange", "broadcast_to", "cast_to", "concatenate", "constant_max", "cos", "cumsum", "cut", "defvjp",
    "entry", "erf", "exp", "full", "is_plain", "is_traced", "level", "log", "log1p", "matmul", "mean", "most_negative", "pick", "place", "primitive", "register", "reshape",
    "round_to", "sin", "sqrt", "square", "sum", "swapaxes", "take_rows", "tanh", "to_host", "transpose", "unstack", "value_and_grad", "value_of", "vjp", "where", "with_gradient",
]  # fmt: skip
