"""legendre_p3 is the polynomial, its derivatives are the polynomial's, and they come from the hand-written rules."""

import itertools
import warnings
from functools import cache

import jax
import jax.numpy as jnp
import jax.test_util
import ml_dtypes
import mpmath
import numpy as np
import pytest
import torch

import jaxp3
import jaxp3.operator
import torchp3
import torchp3.operator
from p3.backends import BACKENDS
from p3.fitting.exact import P3
from p3.tolerance import COMPLEX_OPERATOR, HALF_OPERATOR, OPERATOR, Tolerance
from tests.support.frameworks import operator_derivative, to_numpy, to_torch
from tests.support.marker import forget_compiled

ROOTS = [-np.sqrt(3 / 5), 0.0, np.sqrt(3 / 5), -np.sqrt(1 / 5), np.sqrt(1 / 5)]  # of P3, and of P3'
DTYPES = {
    "float16": (np.dtype("float16"), HALF_OPERATOR),
    "bfloat16": (np.dtype(ml_dtypes.bfloat16), HALF_OPERATOR),
    "float32": (np.dtype("float32"), OPERATOR),
    "float64": (np.dtype("float64"), OPERATOR),
    "complex64": (np.dtype("complex64"), COMPLEX_OPERATOR),
    "complex128": (np.dtype("complex128"), COMPLEX_OPERATOR),
}
REAL = list(DTYPES)[:4]
COMPLEX = list(DTYPES)[4:]


def points(dtype: str) -> np.ndarray:
    """10^5 points and more: where the terms are alike, near the roots, and of every size whose result is finite."""
    random = np.random.default_rng(3)
    kind = DTYPES[dtype][0]
    info = ml_dtypes.finfo(kind)
    low, high = np.log(16 * float(info.tiny)), np.log(float(info.max)) / 3 - 1

    def real(seventh: int) -> np.ndarray:
        sizes = np.exp(random.uniform(low, high, seventh)) * random.choice([-1, 1], seventh)
        near = [root + random.normal(0, 1e-3, seventh) for root in ROOTS]
        return np.concatenate([random.uniform(-np.pi, np.pi, seventh), sizes, *near])

    if kind.kind != "c":
        return real(15_000).astype(kind)
    close = np.concatenate(
        [root + 1e-3 * (random.normal(size=20_000) + 1j * random.normal(size=20_000)) for root in ROOTS]
    )
    spread = random.uniform(-np.pi, np.pi, 20_000) + 1j * random.uniform(-np.pi, np.pi, 20_000)
    return np.concatenate([close, spread]).astype(kind)


@cache
def truth(dtype: str, order: int, every: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The exact derivative, from mpmath, as a sum of two arrays, and the largest term's size; `every` of the points."""
    with mpmath.workprec(400):
        coefficients = [mpmath.mpf(float(c)) for c in (P3.deriv(order) if order else P3).coef[::-1]]
        x = points(dtype)[::every]
        wide = x.astype(np.complex128 if x.dtype.kind == "c" else np.float64).tolist()
        exact = [mpmath.polyval(coefficients, mpmath.mpmathify(value)) for value in wide]
        number = complex if x.dtype.kind == "c" else float
        high = [number(value) for value in exact]
        low = [number(value - mpmath.mpmathify(rounded)) for value, rounded in zip(exact, high, strict=True)]
    magnitude = np.abs(np.array(wide))
    size = np.max([abs(float(c)) * magnitude**k for k, c in enumerate(coefficients[::-1])], axis=0)
    return np.array(high), np.array(low), size


def asked(*cases):
    """
    Each way of asking for some derivative in some dtype; `cases` are pairs of the two.

    To compile in PyTorch takes seconds, each time; by default it does values and gradients in single precision.
    """
    by_default = [("float32", 0), ("float32", 1)]
    return pytest.mark.parametrize(
        ("backend", "jit", "dtype", "order"),
        [
            pytest.param(
                *(backend, jit, *case),
                marks=pytest.mark.slow if backend == "torch" and jit and case not in by_default else [],
                id="-".join([backend, "compiled" if jit else "eager", *map(str, case)]),
            )
            for backend, jit, case in itertools.product(BACKENDS, (True, False), cases)
        ],
    )


@pytest.mark.filterwarnings("ignore:Torchinductor does not support code generation for complex operators")
# Not the second derivative of complex numbers: PyTorch's first is conjugated, so the next is no polynomial.
@asked(*itertools.product(REAL, (0, 1, 2)), *itertools.product(COMPLEX, (0, 1)))
@pytest.mark.parametrize("every", [10, pytest.param(1, marks=pytest.mark.slow)])
def test_value_and_derivatives_are_the_polynomials(backend, order, dtype, jit, every):
    kind, tolerance = DTYPES[dtype]
    x = points(dtype)[::every]
    answer = operator_derivative(backend, order, jit)(x)
    assert (answer.dtype, answer.shape) == (x.dtype, x.shape)
    high, low, size = truth(dtype, order, every)
    if kind.kind == "c" and order == 1 and backend == "torch":
        answer = answer.conj()
    wide = answer.astype(np.complex128 if kind.kind == "c" else np.float64)
    assert np.all(np.abs((wide - high) - low) <= bound(tolerance, kind, size))


@pytest.mark.parametrize("dtype", ["float16", "float64", "complex128"])
def test_the_bound_is_no_wider_than_it_must_be(backend, dtype):
    kind, tolerance = DTYPES[dtype]
    high, low, size = truth(dtype, 0, 10)
    error = np.abs((operator_derivative(backend, 0, False)(points(dtype)[::10]).astype(high.dtype) - high) - low)
    assert (error / bound(tolerance, kind, size)).max() > 0.25


def bound(tolerance: Tolerance, kind: np.dtype, size: np.ndarray) -> np.ndarray:
    """Or half the smallest subnormal, where the rounding is to a multiple of that."""
    info = ml_dtypes.finfo(kind)
    return np.maximum(tolerance.epsilons * float(info.eps) * size, 0.51 * float(info.smallest_subnormal))


@pytest.mark.parametrize(("x", "value", "slope"), [(-1, -1, 6), (0, 0, -1.5), (0.5, -0.4375, 0.375), (1, 1, 6)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_exact_answers(backend, x, value, slope, dtype):
    at = np.array([x], DTYPES[dtype][0])
    assert operator_derivative(backend, 0, False)(at) == value
    assert operator_derivative(backend, 1, False)(at) == slope


@asked(("float32", 3), ("float64", 3))
def test_third_derivatives_are_exact(backend, order, dtype, jit):
    np.testing.assert_array_equal(operator_derivative(backend, order, jit)(points(dtype)[:1000]), 15)


def test_eager_frameworks_agree_to_the_bit_and_compiled_ones_within_the_bound():
    x = np.random.default_rng(7).uniform(-np.pi, np.pi, 10**6).astype(np.float32)
    for order in (0, 1):
        eager = operator_derivative("torch", order, False)(x)
        np.testing.assert_array_equal(operator_derivative("jax", order, False)(x), eager)
        terms = (2.5 * np.abs(x) ** 3, 1.5 * np.abs(x)) if order == 0 else (7.5 * x**2, np.full_like(x, 1.5))
        for backend in ("torch", "jax"):
            difference = np.abs(operator_derivative(backend, order, True)(x) - eager)
            assert np.all(difference <= bound(OPERATOR, x.dtype, np.maximum(*terms)))


@asked(*itertools.product(REAL, (0, 1)))
def test_special_values(backend, order, dtype, jit):
    kind = DTYPES[dtype][0]
    info = ml_dtypes.finfo(kind)
    tiny = float(info.tiny)
    x = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, float(info.max), -tiny, 2 * float(info.smallest_subnormal)], kind)
    value = np.array(
        [-0.0, 0.0, np.inf, -np.inf, np.nan, np.inf, 1.5 * tiny, -3 * float(info.smallest_subnormal)], kind
    )
    slope = np.array([-1.5, -1.5, np.inf, np.inf, np.nan, np.inf, -1.5, -1.5], kind)
    if backend == "jax" and dtype != "float16":
        value[-1] = -0.0  # XLA's arithmetic on a CPU takes subnormal numbers for 0; half precision it widens first
    exact = (value, slope)[order]
    answer = operator_derivative(backend, order, jit)(x).astype(np.float64)  # exact, and NumPy knows its NaN
    np.testing.assert_array_equal(answer, exact.astype(np.float64))
    np.testing.assert_array_equal(np.signbit(answer[x == x]), np.signbit(exact[x == x]))  # a NaN's is no matter


@asked(*itertools.product(REAL, (0,)))
def test_overflows_only_where_the_result_does(backend, order, dtype, jit):
    kind = DTYPES[dtype][0]
    info = ml_dtypes.finfo(kind)
    edge = np.cbrt(np.longdouble(float(info.max)) / np.longdouble(2.5))
    room = 4 * np.longdouble(float(info.eps))
    x = np.array([float(edge * (1 - room)), float(edge * (1 + room))], kind)
    inside, outside = operator_derivative(backend, order, jit)(x)
    assert 0 < inside < np.inf
    assert outside == np.inf


@pytest.mark.parametrize("shape", [(), (0,), (1,), (3, 4), (2, 1, 3)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_shapes_and_dtypes_are_kept(backend, shape, dtype):
    x = np.random.default_rng(0).uniform(-1, 1, shape).astype(DTYPES[dtype][0])
    for order in (0, 1):
        answer = operator_derivative(backend, order, False)(x)
        assert (answer.shape, answer.dtype) == (shape, x.dtype)


def test_strides_are_no_matter():
    x = (torch.arange(120, dtype=torch.float64) / 8 - 7).reshape(10, 12)  # few bits, so that all sums are exact
    whole = torchp3.legendre_p3(x)
    for view in (lambda x: x.T, lambda x: x[::2, 1::3], lambda x: x[:, :1].expand(10, 7), lambda x: x[None, :, 0]):
        assert torch.equal(torchp3.legendre_p3(view(x)), view(whole))
        leaf = x.clone().requires_grad_()
        torchp3.legendre_p3(view(leaf)).sum().backward()
        counted = x.clone().requires_grad_()
        view(counted).sum().backward()
        assert torch.equal(leaf.grad, counted.grad * torchp3.operator.derivative(x))


OPERATORS = {
    "torch": (torchp3.legendre_p3, torch.as_tensor),
    "jax": (jaxp3.legendre_p3, jnp.asarray),
    "jax custom_jvp": (jaxp3.legendre_p3_custom_jvp, jnp.asarray),
}


@pytest.fixture(params=OPERATORS)
def operator(request):
    return OPERATORS[request.param]


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")
def test_other_arrays_are_refused_too():
    takes = "legendre_p3 takes float16, .* and was given"
    for x in (torch.ones(2).to_sparse(), torch.eye(2).to_sparse_csr()):
        with pytest.raises(TypeError, match=rf"{takes} a tensor of layout torch\.sparse_.*, as in x\.to_dense\(\)"):
            torchp3.legendre_p3(x)
    for f in (jaxp3.legendre_p3, jaxp3.legendre_p3_custom_jvp):
        with pytest.raises(TypeError, match=rf"{takes} <class 'jax\.ShapeDtypeStruct'>"):
            f(jax.ShapeDtypeStruct((2,), jnp.float32))


@pytest.mark.parametrize("given", ["int", "bool", "list", "NoneType", "int32", "uint8", "boolean array"])
def test_what_p3_is_not_defined_for_is_refused(operator, given):
    f, array = operator
    x = {
        "int": 1,
        "bool": True,
        "list": [1.0],
        "NoneType": None,
        "int32": array(np.ones(2, np.int32)),
        "uint8": array(np.ones((), np.uint8)),
        "boolean array": array(np.ones(2, bool)),
    }[given]
    with pytest.raises(TypeError) as caught:
        f(x)
    assert str(caught.value).startswith(
        "legendre_p3 takes float16, bfloat16, float32, float64, complex64 and complex128, and was given "
    )
    assert "convert it, as in " in str(caught.value)


def test_the_autograd_function_itself_takes_floats_and_refuses_integers():
    assert torchp3.LegendrePolynomial3.apply(2.0) == 17
    with pytest.raises(TypeError, match=r"was given torch\.int64; convert it"):
        torchp3.LegendrePolynomial3.apply(torch.ones(2, dtype=torch.int64))


@pytest.mark.parametrize(("x", "value", "dtype"), [(2.0, 17, "float32"), (1j, -4j, "complex64")])
def test_python_numbers_are_promoted(operator, x, value, dtype):
    f, _ = operator
    answer = f(x)
    assert answer == value
    assert str(answer.dtype).removeprefix("torch.") == dtype


@pytest.mark.parametrize("x", [np.ones(2, np.float32), np.float32(1), np.float64(1), np.complex64(1)], ids=repr)
def test_numpys_arrays_and_scalars_are_jaxs_alone(x):
    assert np.all(jaxp3.legendre_p3(x) == 1)
    with pytest.raises(TypeError, match=r"was given <class 'numpy\."):
        torchp3.legendre_p3(x)


@pytest.mark.parametrize("f", [jaxp3.legendre_p3, jaxp3.legendre_p3_custom_jvp])
def test_jaxs_rules_take_python_and_numpy_numbers(f):
    with warnings.catch_warnings(action="error"):
        assert jax.grad(f)(2.0) == 28.5
        assert jax.grad(f)(np.float64(2)).dtype == np.float32
        assert jax.grad(lambda x: f(x).sum())(np.array([2.0])) == 28.5


@pytest.mark.parametrize("transform", ["jvp", "jacfwd", "grad of jvp"])
def test_forward_mode_of_the_custom_vjp_names_the_other(transform):
    f, x = jaxp3.legendre_p3, jnp.ones(3)
    with pytest.raises(TypeError, match=r"has no forward mode .*; use jaxp3\.legendre_p3_custom_jvp"):
        {
            "jvp": lambda: jax.jvp(f, (x,), (x,)),
            "jacfwd": lambda: jax.jacfwd(f)(x),
            "grad of jvp": lambda: jax.grad(lambda x: jax.jvp(f, (x,), (x,))[1].sum())(x),
        }[transform]()


@pytest.mark.filterwarnings("ignore:Attempted to insert a get_attr Node")  # of torch.func.linearize's own
@pytest.mark.parametrize("transform", ["grad", "vjp", "jacrev"])
def test_reverse_mode_of_pytorchs_linearize_names_jvp(transform):
    x = torch.ones(3)

    def slope(x):
        return torch.func.linearize(torchp3.legendre_p3, x)[1](torch.ones_like(x))

    torch.testing.assert_close(slope(x), torch.full((3,), 6.0), rtol=0, atol=0)
    with pytest.raises(NotImplementedError, match=r"gives no derivative to .*; use torch\.func\.jvp"):
        {
            "grad": lambda: torch.func.grad(lambda x: slope(x).sum())(x),
            "vjp": lambda: torch.func.vjp(slope, x),
            "jacrev": lambda: torch.func.jacrev(slope)(x),
        }[transform]()


def test_other_errors_are_left_alone():
    with pytest.raises(TypeError, match="positional argument"):
        jaxp3.legendre_p3(jnp.ones(3), jnp.ones(3))


def test_one_by_one_under_vmap_is_all_at_once(backend):
    x = points("float32")[::100]
    one_by_one = {
        "torch": lambda: torch.vmap(torch.func.grad(torchp3.legendre_p3))(torch.from_numpy(x)).numpy(),
        "jax": lambda: np.asarray(jax.vmap(jax.grad(jaxp3.legendre_p3))(x)),
    }[backend]()
    np.testing.assert_array_equal(one_by_one, operator_derivative(backend, 1, False)(x))


def checked_points(dtype: str) -> np.ndarray:
    moderate = [x for x in points(dtype)[:: len(points(dtype)) // 60] if 1e-3 < abs(x) < 4]
    return np.array([*ROOTS, *moderate]).astype(DTYPES[dtype][0])


@pytest.mark.parametrize("dtype", ["float64", "complex128"])
def test_gradcheck(dtype):
    x = torch.from_numpy(checked_points(dtype)).requires_grad_()
    assert torch.autograd.gradcheck(
        torchp3.legendre_p3,
        x,
        check_forward_ad=True,
        check_batched_grad=True,
        check_batched_forward_grad=True,
    )
    assert torch.autograd.gradgradcheck(
        torchp3.legendre_p3, x, check_fwd_over_rev=True, check_rev_over_rev=True, check_batched_grad=True
    )


@pytest.mark.parametrize("every", [10, pytest.param(2, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("f", "modes"), [(jaxp3.legendre_p3, ("rev",)), (jaxp3.legendre_p3_custom_jvp, ("fwd", "rev"))]
)
def test_check_grads(f, modes, every):
    # On scalars, since check_grads multiplies its tolerance by the number of elements. With a step of 3e-6, finite
    # differences of third order, in float64, come to 4e-9.
    with jax.enable_x64(True):
        for x in checked_points("float64")[::every]:
            jax.test_util.check_grads(f, (x,), order=3, modes=modes, atol=1e-8, rtol=1e-8, eps=3e-6)


def torch_gradient(x, compiled):
    function = torch.compile(torchp3.legendre_p3, fullgraph=True) if compiled else torchp3.legendre_p3
    x = torch.from_numpy(x).requires_grad_()
    (gradient,) = torch.autograd.grad(function(x).sum(), x)
    return gradient.numpy()


def jax_gradient(x, compiled):
    gradient = jax.grad(lambda x: jaxp3.legendre_p3(x).sum())
    return np.asarray((jax.jit(gradient) if compiled else gradient)(x))


def test_the_hand_written_rule_is_what_runs(backend, jit, monkeypatch):
    # Every other mode is in modes.py.
    x = points("float32")
    gradient = {"torch": torch_gradient, "jax": jax_gradient}[backend]
    true = gradient(x, jit)
    operator = {"torch": torchp3.operator, "jax": jaxp3.operator}[backend]
    derivative = operator.derivative
    monkeypatch.setattr(operator, "derivative", lambda x: 4 * derivative(x))  # a power of two is exact
    forget_compiled()
    marked = gradient(x, jit)
    forget_compiled()
    np.testing.assert_array_equal(marked, 4 * true)


def test_torch_func_inside_compile_keeps_the_rule_to_second_order(monkeypatch):
    x = torch.from_numpy(points("float32")[::1000])
    derivative = torchp3.operator.derivative
    monkeypatch.setattr(torchp3.operator, "derivative", lambda x: 4 * derivative(x))
    forget_compiled()
    first = torch.func.grad(lambda x: torchp3.legendre_p3(x).sum())
    second = torch.func.grad(lambda x: first(x).sum())
    torch.testing.assert_close(torch.compile(first, fullgraph=True)(x), 4 * derivative(x))
    torch.testing.assert_close(torch.compile(second, fullgraph=True)(x), 60 * x)
    forget_compiled()


def test_dynamo_does_not_notice_what_would_be_wrong_and_p3_does():
    x = torch.tensor([-2.25, -0.5, 0.25, 1.75], requires_grad=True)

    @torch.compile(fullgraph=True, backend="aot_eager")
    def changed_afterwards(x):
        z = 1.0 * x
        y = torchp3.legendre_p3(z)
        z.add_(1)
        return y

    with pytest.raises(Exception, match="modified by an inplace operation"):
        changed_afterwards(x)

    compiled = torch.compile(torchp3.legendre_p3, fullgraph=True, backend="eager")
    (first,) = torch.autograd.grad(compiled(x).sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), x)
    assert torch.equal(second, 15 * x)

    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x.detach(), torch.ones(4))
        with pytest.raises(Exception, match="make dual numbers inside of it"):
            torch.compile(torchp3.legendre_p3, fullgraph=True, backend="aot_eager")(dual)


def test_a_strict_export_has_the_gradient():
    class Module(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.tensor(2.0))

        def forward(self, x):
            return torchp3.legendre_p3(self.weight * x) + x

    x = torch.tensor([-2.25, -0.5, 0.25, 1.75])
    module = torch.export.export(Module(), (x,), strict=True).module()
    (gradient,) = torch.autograd.grad(module(x).sum(), module.parameters())
    assert gradient == (torchp3.operator.derivative(2 * x) * x).sum()


@pytest.mark.parametrize("dtype", ["float16", "float32", "complex64"])
def test_the_residual_is_x_alone(dtype):
    kept = []
    array = np.ones(1000, DTYPES[dtype][0])
    x = to_torch(array).requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        torchp3.legendre_p3(x)
    assert [tensor.data_ptr() for tensor in kept] == [x.data_ptr()]

    for f in (jaxp3.legendre_p3, jaxp3.legendre_p3_custom_jvp):
        _, vjp = jax.vjp(f, jnp.asarray(array))
        residuals = jax.tree.leaves(vjp)
        assert [(residual.shape, residual.dtype) for residual in residuals] == [((1000,), array.dtype)]
        np.testing.assert_array_equal(residuals[0], array)


@pytest.mark.parametrize("dtype", DTYPES)
def test_forward_mode_is_reverse_mode_to_the_bit(dtype):
    # Where both multiply by 1; so that the bounds above hold in forward mode too.
    x = points(dtype)
    tensor = to_torch(x)
    _, tangent = torch.func.jvp(torchp3.legendre_p3, (tensor,), (torch.ones_like(tensor),))
    reverse = operator_derivative("torch", 1, False)(x)
    np.testing.assert_array_equal(to_numpy(tangent), reverse.conj() if x.dtype.kind == "c" else reverse)
    with jax.enable_x64(x.dtype in (np.float64, np.complex128)):
        array = jnp.asarray(x)
        _, tangent = jax.jvp(jaxp3.legendre_p3_custom_jvp, (array,), (jnp.ones_like(array),))
        np.testing.assert_array_equal(np.asarray(tangent), operator_derivative("jax", 1, False)(x))


@pytest.mark.parametrize("f", [jaxp3.legendre_p3, jaxp3.legendre_p3_custom_jvp])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "complex64"])
def test_jaxs_strict_promotion_is_met(f, dtype):
    x = jnp.ones(3, DTYPES[dtype][0])
    with jax.numpy_dtype_promotion("strict"):
        y, vjp = jax.vjp(f, x)
        assert y.dtype == vjp(x)[0].dtype == x.dtype


@pytest.mark.parametrize("dtype", ["complex64", "complex128"])
def test_complex_gradients_follow_each_frameworks_convention(dtype):
    x = np.array([1 + 2j, 0.5 - 1j], DTYPES[dtype][0])  # few bits, so that all is exact
    slope = 7.5 * x * x - 1.5
    np.testing.assert_array_equal(operator_derivative("torch", 1, False)(x), slope.conj())
    np.testing.assert_array_equal(operator_derivative("jax", 1, False)(x), slope)
