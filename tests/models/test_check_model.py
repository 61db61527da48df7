"""`p3.check_model` and `p3 check-model` as users meet them: the report, the options, and what is refused."""

import copy
import functools
import json
import re
import subprocess

import equinox as eqx
import flax.linen as linen
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from torch import nn

import jaxp3
import p3
from tests.support.commands import EITHER_WAY, refused

SOURCE = """
import torch
from flax import nnx
from torch import nn


class Net(nnx.Module):
    def __init__(self, rngs):
        self.fc = nnx.Linear(3, 4, rngs=rngs)
        self.norm = nnx.LayerNorm(4, epsilon={epsilon}, rngs=rngs)

    def __call__(self, x):
        return self.norm(self.fc(x))


class TorchNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(3, 4)
        self.norm = nn.LayerNorm(4)

    def forward(self, x):
        return self.norm(self.fc(x))


def torch_side():
    torch.manual_seed(0)
    return TorchNet()


def jax_side():
    return Net(nnx.Rngs(0))
"""


class TorchNet(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.fc = nn.Linear(3, 4)
        self.norm = nn.LayerNorm(4)

    def forward(self, x):
        return self.norm(self.fc(x))


class NnxNet(nnx.Module):
    def __init__(self, epsilon=1e-5):
        rngs = nnx.Rngs(0)
        self.fc = nnx.Linear(3, 4, rngs=rngs)
        self.norm = nnx.LayerNorm(4, epsilon=epsilon, rngs=rngs)

    def __call__(self, x):
        return self.norm(self.fc(x))


X = np.random.default_rng(0).normal(size=(5, 3))


@pytest.fixture(scope="module")
def wrong():
    return p3.check_model(torch=TorchNet(), jax=NnxNet(epsilon=1e-2), inputs=X)


def test_the_first_difference_and_its_cause(wrong):
    assert not wrong.ok
    assert (wrong.first.quantity, wrong.first.path, wrong.first.kind) == ("output", "norm", "semantic")
    with pytest.raises(AssertionError, match=r"The port differs: 1 cause\."):
        wrong.assert_ok()


def test_the_cause_stands_on_the_third_line(wrong):
    title, verdict, cause = str(wrong).splitlines()[:3]
    assert title.startswith("NnxNet (JAX")
    assert "as a port of TorchNet (PyTorch" in title
    assert verdict == "The port differs: 1 cause."
    assert cause.startswith("First cause: norm (LayerNorm, nnx.LayerNorm): output differs, semantic, ")


def test_another_epsilon_is_named():
    report = p3.check_model(torch=TorchNet(), jax=NnxNet(epsilon=1e-6), inputs=X)
    assert report.first.explanation == "the two agree if in PyTorch layer_norm has eps=1e-06"


def test_json_and_page(wrong):
    read = json.loads(wrong.to_json())
    assert [finding["path"] for finding in read["findings"]] == ["norm"]
    assert [row["reference"] for row in read["layers"]] == ["fc", "norm"]
    assert {row["transformation"] for row in read["parameters"]} == {"o i -> i o", "as it is"}
    page = wrong.to_html()
    assert page.count("<table>") == 2
    assert "First cause: norm" in page


@pytest.mark.parametrize("first", ["torch", "jax"])
def test_either_side_is_the_reference(first):
    sides = {"torch": TorchNet(), "jax": NnxNet(epsilon=1e-6)}
    report = p3.check_model(**{first: sides.pop(first)}, **sides, inputs=X)
    assert (report.first.quantity, report.first.path) == ("output", "norm")
    assert "eps=1e-06" in report.first.explanation


def test_neither_model_is_changed():
    model, port = TorchNet(), NnxNet()
    model.train()
    before = copy.deepcopy(model.state_dict()), [np.array(x) for x in jax.tree.leaves(nnx.state(port))]
    state = torch.get_rng_state()
    p3.check_model(torch=model, jax=port, inputs=X)
    after = model.state_dict(), [np.array(x) for x in jax.tree.leaves(nnx.state(port))]
    assert all(torch.equal(before[0][name], x) for name, x in after[0].items())
    assert all(np.array_equal(x, y) for x, y in zip(before[1], after[1], strict=True))
    assert type(port.fc) is nnx.Linear
    assert not model.fc._forward_hooks
    assert torch.equal(torch.get_rng_state(), state)
    assert jax.random.bernoulli.__module__.startswith("jax.")
    assert not jax.config.jax_enable_x64


def test_parameters_that_were_not_converted_right():
    """A square kernel that is not transposed is named as a parameter, where the others are loaded."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    parameters = {
        str(i): {"kernel": jnp.array(model[i].weight.detach().T), "bias": jnp.array(model[i].bias.detach())}
        for i in (0, 2)
    }

    def port(parameters, x):
        return dense(parameters["2"], jax.nn.relu(dense(parameters["0"], x)))

    x = np.random.default_rng(1).normal(size=(3, 4))
    assert p3.check_model(torch=model, jax=(port, parameters), inputs=x).ok
    parameters["2"]["kernel"] = parameters["2"]["kernel"].T
    report = p3.check_model(torch=model, jax=(port, parameters), inputs=x)
    assert (report.first.quantity, report.first.path) == ("parameter", "2.weight")
    assert report.first.explanation == "JAX's array is PyTorch's by 'as it is', where 'o i -> i o' is right"
    assert len(report.differences) == 1


def test_a_match_corrects_what_is_found():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    parameters = {name: {"w": jnp.ones((4, 4)), "b": jnp.ones(4)} for name in ("one", "two")}

    def port(parameters, x):
        for name in ("two", "one"):
            x = jaxp3.tap(name, x @ parameters[name]["w"] + parameters[name]["b"])
        return x

    x = np.random.default_rng(1).normal(size=(3, 4))
    given = {
        f"{i}.{mine}": f"{name}.{its}"
        for i, name in ((0, "two"), (1, "one"))
        for mine, its in (("weight", "w"), ("bias", "b"))
    }
    exchanged = {mine: its.replace("one", "-").replace("two", "one").replace("-", "two") for mine, its in given.items()}
    assert not p3.check_model(torch=model, jax=(port, parameters), inputs=x, match=exchanged).ok
    report = p3.check_model(torch=model, jax=(port, parameters), inputs=x, match=given)
    assert report.ok, str(report)
    assert [row.port for row in report.layers] == ["two", "one"]


class Dense(linen.Module):
    @linen.compact
    def __call__(self, x):
        return linen.Dense(4)(x)


REFUSED = {
    "no module": (
        {"torch": lambda x: x, "jax": NnxNet},
        r"torch= is function; give a torch\.nn\.Module",
    ),
    "no model": ({"torch": TorchNet, "jax": lambda: 3}, r"jax= is int; give a flax\.nnx or equinox module, "),
    "linen without variables": (
        {"torch": TorchNet, "jax": lambda: (Dense(), {"batch_stats": {}})},
        r'variables have no "params"; give what module\.init returns',
    ),
    "no parameters": (
        {"torch": TorchNet, "jax": lambda: (lambda p, x: x, {})},
        r"the parameters have no floating array",
    ),
    "another shape of input": (
        {"torch": TorchNet, "jax": lambda: eqx.nn.Linear(7, 4, key=jax.random.key(0))},
        r"Linear \(JAX .*\) cannot be called with inputs of float64\[5, 3\]: ",
    ),
    "one side": ({"torch": TorchNet}, r"torch= and jax= are the two models, and 1 of them given; give both"),
    "an option": (
        {"torch": TorchNet, "jax": NnxNet, "linear": lambda: True},
        r"there is no option 'linear'; there are ",
    ),
}


@pytest.mark.parametrize(("sides", "message"), REFUSED.values(), ids=REFUSED)
def test_refused_in_one_line(sides, message):
    made = {name: make() if name != "torch" or make is TorchNet else make for name, make in sides.items()}
    with pytest.raises(p3.InputError, match=message) as error:
        p3.check_model(**made, inputs=X)
    assert "\n" not in str(error.value)


def test_a_match_of_unknown_paths():
    with pytest.raises(p3.InputError, match=r"fc\.wait"):
        p3.check_model(torch=TorchNet(), jax=NnxNet(), inputs=X, match={"fc.wait": "fc.kernel"})


test_layer_by_layer = p3.parity_test(torch=TorchNet(), jax=NnxNet(), inputs=X)


def test_a_test_for_each_layer():
    faulty = p3.parity_test(torch=TorchNet(), jax=NnxNet(epsilon=1e-2), inputs=X)
    (mark,) = faulty.pytestmark
    assert mark.args[1] == ["fc", "norm", "the rest"]
    faulty("fc")
    faulty("the rest")
    with pytest.raises(AssertionError, match="norm"):
        faulty("norm")


@EITHER_WAY
def test_command(command, tmp_path):
    (tmp_path / "right.py").write_text(SOURCE.format(epsilon=1e-5))
    (tmp_path / "wrong.py").write_text(SOURCE.format(epsilon=1e-6))
    sides = ["right.py:torch_side", "right.py:jax_side", "--input", "normal(5, 3)"]
    finished = command("p3", "check-model", *sides, "--save-match", "match.json", cwd=tmp_path)
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.splitlines()[1].startswith("The port is right: 2 layers agree")
    sides[1] = "wrong.py:jax_side"
    finished = command("p3", "check-model", *sides, "--match", "match.json", "--report", "report.json", cwd=tmp_path)
    assert finished.returncode == 1, finished.stderr
    assert "agree if in PyTorch layer_norm has eps=1e-06" in finished.stdout
    assert not json.loads((tmp_path / "report.json").read_text())["ok"]


@EITHER_WAY
def test_command_refused(command, tmp_path):
    (tmp_path / "right.py").write_text(SOURCE.format(epsilon=1e-5))
    (tmp_path / "broken.json").write_text("{")
    sides = ["right.py:torch_side", "right.py:jax_side"]

    def finished(*options: str) -> subprocess.CompletedProcess:
        return command("p3", "check-model", *sides, *options, cwd=tmp_path)

    refused(finished("--input", "normal(5, 3)", "--match", "broken.json"), "has no match of parameters in it")
    (tmp_path / "list.json").write_text("[1]")
    refused(finished("--input", "normal(5, 3)", "--match", "list.json"), "is a list); give what --save-match")
    refused(finished("--input", "x=normal(5, 3)", "--input", "normal(5, 3)"), "some of --input have names")
    refused(finished("--input", "normal(5, 7)"), "cannot be called with inputs of float64[5, 7]")


def dense(parameters, x):
    return x @ parameters["kernel"] + parameters["bias"]


DENSE = {"kernel": jnp.ones((3, 4)), "bias": jnp.ones(4)}
OTHER_OUTPUTS = {
    "half a batch": (
        lambda p, x: dense(p, x)[:2],
        r"it has the shape \(5, 4\); the port returns output of shape \(2, 4\)",
    ),
    "a mean": (lambda p, x: dense(p, x).mean(-1), r"the port returns output of shape \(5,\) in its place"),
    "nothing": (lambda p, x: None, r"the port does not return it"),
}


@pytest.mark.parametrize(("port", "text"), OTHER_OUTPUTS.values(), ids=OTHER_OUTPUTS)
def test_outputs_of_other_shapes_are_a_difference(port, text):
    torch.manual_seed(0)
    report = p3.check_model(torch=nn.Linear(3, 4), jax=(port, DENSE), inputs=X)
    assert not report.ok
    assert (report.first.quantity, report.first.path) == ("output", "output")
    assert re.search(text, report.first.explanation)


class TwoHeads(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.one, self.two = nn.Linear(3, 4), nn.Linear(3, 4)

    def forward(self, x):
        return self.one(x), self.two(x)


def test_an_output_that_the_port_does_not_return():
    parameters = {name: dict(DENSE) for name in ("one", "two")}
    report = p3.check_model(torch=TwoHeads(), jax=(lambda p, x: (dense(p["one"], x),), parameters), inputs=X)
    assert [finding.path for finding in report.findings] == ["output[1]"]


@pytest.mark.parametrize("transposed", [False, True])
def test_square_matrices_of_layers_that_are_not_known(transposed):
    """Where neither a kind, nor a shape, nor a number tells the layout, it is the one by which the models agree."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 3))

    def port(parameters, x):
        (w, b), (v, c) = parameters
        w, v = (w.T, v.T) if transposed else (w, v)
        return jax.nn.relu(x @ w + b) @ v + c

    report = p3.check_model(torch=model, jax=(port, [(jnp.ones((3, 3)), jnp.ones(3))] * 2), inputs=X)
    assert report.ok, str(report)


class NamedOtherwise(nnx.Module):
    """Layers that run in another order than that of the alphabet."""

    def __init__(self):
        rngs = nnx.Rngs(0)
        self.proj_in, self.mixer = nnx.Linear(3, 4, rngs=rngs), nnx.Linear(4, 4, rngs=rngs)
        self.second = nnx.Linear(4, 4, rngs=rngs)

    def __call__(self, x):
        return self.mixer(self.second(self.proj_in(x)))


@pytest.mark.parametrize("first", ["torch", "jax"])
def test_layers_are_matched_in_the_order_in_which_they_run(first):
    torch.manual_seed(0)
    sides = {"torch": nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 4)), "jax": NamedOtherwise()}
    report = p3.check_model(**{first: sides.pop(first)}, **sides, inputs=X)
    assert report.ok, str(report)


class Image(nnx.Module):
    def __init__(self):
        self.conv = nnx.Conv(3, 4, (3, 3), padding="VALID", rngs=nnx.Rngs(0))

    def __call__(self, x):
        return self.conv(x)


@pytest.mark.parametrize(
    ("first", "shape"), [("torch", (2, 3, 8, 7)), ("jax", (2, 8, 7, 3)), ("torch", (2, 3, 3, 3)), ("jax", (2, 3, 3, 3))]
)
def test_images_in_the_layout_of_the_reference(first, shape):
    torch.manual_seed(0)
    sides = {"torch": nn.Sequential(nn.Conv2d(3, 4, 3)), "jax": Image()}
    inputs = np.random.default_rng(0).normal(size=shape)
    report = p3.check_model(**{first: sides.pop(first)}, **sides, inputs=inputs)
    assert report.ok, str(report)
    assert any(note.startswith("The port takes its inputs with axes 0, ") for note in report.notes)
    assert [set(row.kinds) for row in report.layers] == [{"Conv2d", "nnx.Conv"}]


ODD = {
    "NaN": ({"inputs": X * np.nan}, r"inputs has NaN in it"),
    "no inputs": ({"inputs": None}, r"there are no inputs; give inputs="),
    "a match that is a number": ({"match": 3}, r"match= is int; give \{"),
    "a number in a match": ({"match": {"fc.weight": 3}}, r"given 3 for 'fc\.weight'; give the JAX path"),
    "a seed": ({"seed": -1}, r"seed=-1 is no seed"),
}


@pytest.mark.parametrize(("options", "message"), ODD.values(), ids=ODD)
def test_odd_options_in_one_line(options, message):
    with pytest.raises(p3.InputError, match=message):
        p3.check_model(torch=TorchNet(), jax=NnxNet(), **{"inputs": X, **options})


def test_a_border_at_another_place_is_no_difference_of_a_layer():
    """An activation is in a layer in one model and after it in the other; what differs is another layer alone."""

    class Activated(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight, self.bias = nn.Parameter(torch.randn(4, 3)), nn.Parameter(torch.randn(4))

        def forward(self, x):
            return torch.tanh(x @ self.weight.T + self.bias)

    torch.manual_seed(0)
    model = nn.Sequential(Activated(), nn.LayerNorm(4), nn.Linear(4, 2))

    class Port(nnx.Module):
        def __init__(self):
            rngs = nnx.Rngs(0)
            self.one, self.two = nnx.Linear(3, 4, rngs=rngs), nnx.Linear(4, 2, rngs=rngs)
            self.norm = nnx.LayerNorm(4, epsilon=1e-2, rngs=rngs)

        def __call__(self, x):
            return self.two(self.norm(jnp.tanh(self.one(x))))

    report = p3.check_model(torch=model, jax=Port(), inputs=X)
    assert [finding.path for finding in report.findings] == ["1"], str(report)


class TorchAffine(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.fc = nn.Linear(3, 4)

    def forward(self, x):
        return torch.tanh(self.fc(x))


def affine(scale=1.0):
    """A port as a function, its parameters, and a list with an element for each time that its Python code runs."""
    random, traced = np.random.default_rng(1), []
    parameters = {name: jnp.asarray(random.normal(size=shape)) for name, shape in (("kernel", (3, 4)), ("bias", 4))}

    def port(parameters, x):
        traced.append(x.dtype)
        fc = jaxp3.tap("fc", x @ parameters["fc"]["kernel"] + parameters["fc"]["bias"])
        return jnp.tanh(scale * fc)

    return port, {"fc": parameters}, traced


def test_a_port_is_traced_once_for_each_precision():
    """However many runs a check takes, JAX's Python code runs once in float64 and once in float32."""
    for scale in (1.0, 1.01):
        port, parameters, traced = affine(scale)
        report = p3.check_model(torch=TorchAffine(), jax=(port, parameters), inputs=X)
        assert report.ok == (scale == 1.0), str(report)
        assert sorted(map(str, traced)) == ["float32", "float64"]


@pytest.mark.parametrize("scale", [1.0, 1.01])
def test_python_code_that_depends_on_the_numbers(scale):
    """What cannot be traced without its numbers runs with them, and differs where it should."""

    def port(parameters, x):
        fc = jaxp3.tap("fc", x @ parameters["fc"]["kernel"] + parameters["fc"]["bias"])
        number = sum(1 for value in np.asarray(jax.lax.stop_gradient(fc)).ravel() if value > 1e6)
        return jnp.tanh(scale * fc) if fc.sum() < 1e6 and not number else fc

    _, parameters, _ = affine()
    report = p3.check_model(torch=TorchAffine(), jax=(port, parameters), inputs=X)
    assert report.ok == (scale == 1.0), str(report)
    assert report.ok or [finding.path for finding in report.findings] == ["output"]


def test_a_compiled_port_that_has_run_before():
    """What `jax.jit` has compiled of a port before the check does not hide its layers."""
    port, parameters, _ = affine(1.01)
    compiled = jax.jit(port)
    compiled(parameters, X)
    report = p3.check_model(torch=TorchAffine(), jax=(compiled, parameters), inputs=X)
    assert [finding.path for finding in report.findings] == ["output"]
    assert report.findings[0].title == "code after fc, output"


def linear(name, features):
    """The parameters of a layer of a port that is a function."""
    random = np.random.default_rng(2)
    return {name: {"kernel": jnp.asarray(random.normal(size=features)), "bias": jnp.zeros(features[1])}}


def tapped(parameters, name, x):
    return jaxp3.tap(name, x @ parameters[name]["kernel"] + parameters[name]["bias"])


def test_a_model_that_writes_into_what_a_layer_returns():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(inplace=True), nn.Linear(4, 2))

    def port(parameters, x):
        return tapped(parameters, "2", jax.nn.relu(tapped(parameters, "0", x)))

    report = p3.check_model(torch=model, jax=(port, linear("0", (3, 4)) | linear("2", (4, 2))), inputs=X)
    assert report.ok, str(report)
    assert {row.reference for row in report.layers} == {"0", "2"}


@pytest.mark.parametrize("rate", [0.25, 0.3])
def test_a_mask_that_is_true_where_an_element_is_dropped(rate):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.25), nn.Linear(4, 2)).train()

    def port(parameters, x):
        x = tapped(parameters, "0", x)
        dropped = jax.random.bernoulli(jax.random.key(0), rate, x.shape)
        return tapped(parameters, "2", jnp.where(dropped, 0, x / (1 - rate)))

    report = p3.check_model(torch=model, jax=(port, linear("0", (3, 4)) | linear("2", (4, 2))), inputs=X)
    assert report.ok == (rate == 0.25), str(report)
    assert report.ok or report.first.explanation.startswith("dropout keeps with probability 0.75, and ")


@pytest.mark.parametrize("scale", [1.0, 1.01])
def test_code_that_feeds_several_layers_is_told_once(scale):
    names = ("query", "key", "value")

    class Heads(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.first = nn.Linear(3, 4)
            self.heads = nn.ModuleDict({name: nn.Linear(4, 5) for name in names})

        def forward(self, x):
            x = torch.tanh(self.first(x))
            return torch.cat([head(x) for head in self.heads.values()], -1)

    def port(parameters, x):
        x = scale * jnp.tanh(tapped(parameters, "first", x))
        return jnp.concatenate([tapped(parameters, f"heads.{name}", x) for name in names], -1)

    parameters = linear("first", (3, 4))
    for name in names:
        parameters |= linear(f"heads.{name}", (4, 5))
    report = p3.check_model(torch=Heads(), jax=(port, parameters), inputs=X)
    assert len(report.findings) == (scale != 1.0), str(report)


@pytest.mark.parametrize("scale", [1.0, 1.01])
def test_two_results_of_a_layer_in_another_order(scale):
    """Which of two results of one shape corresponds to which is not guessed, and what differs later is told alone."""

    class Halves(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(8, 3))

        def forward(self, x):
            return (x @ self.weight.T).chunk(2, -1)

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.halves, self.out = Halves(), nn.Linear(4, 2)

        def forward(self, x):
            a, b = self.halves(x)
            return self.out(torch.sigmoid(a) * b)

    class PortHalves(nnx.Module):
        def __init__(self):
            self.weight = nnx.Param(jnp.zeros((8, 3)))

        def __call__(self, x):
            a, b = jnp.split(x @ self.weight[...].T, 2, -1)
            return b, a

    class Port(nnx.Module):
        def __init__(self):
            self.halves, self.out = PortHalves(), nnx.Linear(4, 2, rngs=nnx.Rngs(0))

        def __call__(self, x):
            b, a = self.halves(x)
            return scale * self.out(jax.nn.sigmoid(a) * b)

    report = p3.check_model(torch=Model(), jax=Port(), inputs=X)
    assert [finding.path for finding in report.findings] == ["output"] * (scale != 1.0), str(report)


ONES = functools.cache(lambda features: jnp.ones(features) / 2)


def in_a_branch(parameters, x):
    """What a layer returns in a branch, which XLA compiles as a whole."""
    return jax.lax.cond(x.sum() > -1e6, lambda x: tapped(parameters, "fc", x), lambda x: jnp.zeros((5, 4)), x)


def in_a_counted_loop(parameters, x):
    """A loop that has no reverse mode but where its counter is known."""
    y = tapped(parameters, "fc", x)
    return jax.lax.while_loop(lambda carry: carry[0] < 1, lambda carry: (carry[0] + 1, carry[1] * 1), (0, y))[1]


def with_what_is_kept(parameters, x):
    """An array that the port keeps for later calls."""
    return tapped(parameters, "fc", x) * ONES(4) * 2


def beside_a_constant(parameters, x):
    """A layer that receives an array which depends on nothing."""
    return tapped(parameters, "fc", x) + jaxp3.tap("nothing", jnp.zeros(4))


@pytest.mark.parametrize("first", ["torch", "jax"])
@pytest.mark.parametrize("scale", [1.0, 1.01])
@pytest.mark.parametrize("port", [in_a_branch, in_a_counted_loop, with_what_is_kept, beside_a_constant])
def test_ports_that_are_hard_to_trace(first, scale, port):
    def scaled(parameters, x):
        return jnp.tanh(scale * port(parameters, x))

    sides = {"torch": TorchAffine(), "jax": (scaled, linear("fc", (3, 4)))}
    for _ in range(2):  # the second check finds what JAX has kept of the first
        report = p3.check_model(**({first: sides[first]} | sides), inputs=X)
        assert [finding.path for finding in report.findings] == ["output"] * (scale != 1.0), str(report)
    assert np.isfinite(scaled(sides["jax"][1], X)).all()  # which would raise if the check had left a tracer behind


@pytest.mark.parametrize("first", ["torch", "jax"])
def test_a_dropout_that_is_drawn_again_in_the_backward_pass(first):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.5), nn.Linear(4, 2), nn.Dropout(0.25)).train()

    def port(parameters, x):
        @jax.checkpoint
        def dropped(x):
            kept = jax.random.bernoulli(jax.random.key(0), 0.5, x.shape)
            return jnp.where(kept, x / 0.5, 0)

        x = tapped(parameters, "2", dropped(tapped(parameters, "0", x)))
        rate = jnp.asarray(0.75)  # an array, as where it is a variable of the model
        return jnp.where(jax.random.bernoulli(jax.random.key(1), rate, x.shape), x / rate, 0)

    sides = {"torch": model, "jax": (port, linear("0", (3, 4)) | linear("2", (4, 2)))}
    for _ in range(2):
        report = p3.check_model(**({first: sides[first]} | sides), inputs=X)
        assert report.ok, str(report)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("name", ["kernel", "weight"])
def test_square_matrices_that_are_stacked(name, transposed):
    """Where neither the layers' kinds nor the numbers tell the layout, it is the one by which the models agree."""
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Sequential(nn.Linear(4, 4), nn.Tanh()) for _ in range(3)))
    random = np.random.default_rng(0)
    parameters = {"layers": {name: jnp.asarray(random.normal(size=(3, 4, 4))), "bias": jnp.zeros((3, 4))}}

    def port(parameters, x):
        def layer(x, p):
            return jnp.tanh(x @ (p[name].T if transposed else p[name]) + p["bias"]), None

        return jax.lax.scan(layer, x, parameters["layers"])[0]

    report = p3.check_model(torch=model, jax=(port, parameters), inputs=random.normal(size=(5, 4)))
    assert report.ok, str(report)


def test_an_output_that_is_an_array_of_numpy():
    class Numbered(TorchAffine):
        def forward(self, x):
            return super().forward(x), torch.arange(3)

    def port(parameters, x):
        return jnp.tanh(tapped(parameters, "fc", x)), np.arange(3)

    report = p3.check_model(torch=Numbered(), jax=(port, linear("fc", (3, 4))), inputs=X)
    assert report.ok, str(report)
