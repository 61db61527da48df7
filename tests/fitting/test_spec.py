"""The specification: its default, its file, what it refuses, and how it says so."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from p3 import InputError, TrainingSpec
from p3.fitting.optimizers import Adam
from tests.support.problems import COMPARISONS, PROBLEMS


def test_the_default_is_the_tutorials_problem():
    assert PROBLEMS["tutorial"] == TrainingSpec()
    assert TrainingSpec().model_dump() == {
        "data": {"points": 2000, "low": -3.141592653589793, "high": 3.141592653589793, "target": "sin"},
        "start": {"a": 0.0, "b": -1.0, "c": 0.0, "d": 0.3},
        "optimizer": {
            "name": "sgd",
            "learning_rate": 5e-6,
            "weight_decay": 0.0,
            "clip_norm": None,
            "clip_value": None,
            "momentum": 0.0,
            "dampening": 0.0,
            "nesterov": False,
        },
        "schedule": {"name": "constant"},
        "batch_size": None,
        "seed": 0,
        "steps": 2000,
        "log_every": 100,
        "trace": True,
        "dtype": "float32",
        "device": "auto",
        "devices": 1,
        "jit": True,
    }


def test_the_shipped_files_name_every_field():
    for name in PROBLEMS:
        text = (COMPARISONS / f"{name}.toml").read_text(encoding="utf-8")
        for field in ("points", "low", "high", "target", "a", "b", "c", "d", "name", "learning_rate"):
            assert f"\n{field} = " in text
        for field in ("steps", "log_every", "dtype", "device", "jit"):
            assert f"\n{field} = " in text


finite = st.floats(allow_nan=False, allow_infinity=False)
specs = st.builds(
    lambda low_high, start, **fields: TrainingSpec().replace(
        {
            "data": {"low": min(low_high), "high": max(low_high), "points": fields.pop("points")},
            "start": dict(zip("abcd", start, strict=True)),
            "optimizer": {"learning_rate": fields.pop("learning_rate")},
        }
        | fields
    ),
    st.lists(finite, min_size=2, max_size=2, unique=True),
    st.lists(finite, min_size=4, max_size=4),
    points=st.integers(2, 10**12),
    steps=st.integers(1, 10**12),
    log_every=st.integers(1, 10**12),
    learning_rate=st.floats(min_value=0, exclude_min=True, allow_infinity=False),
    dtype=st.sampled_from(["float32", "float64"]),
    device=st.sampled_from(["cpu", "gpu", "auto"]),
    jit=st.booleans(),
)


@given(spec=specs)
def test_toml_out_and_in_again(spec, tmp_path_factory):
    path = tmp_path_factory.mktemp("spec") / "spec.toml"
    spec.to_toml(path)
    assert TrainingSpec.from_toml(path) == spec


def test_a_specification_is_frozen():
    with pytest.raises(ValidationError, match="frozen"):
        TrainingSpec().steps = 1


# The file's text, and the one line that comes of it.
REFUSED = [
    ("step = 5", "step is not a field; allowed here: data, start, optimizer, schedule, batch_size, seed, steps, log_"),
    ("[data]\npoint = 5", "data.point is not a field; allowed here: points, low, high, target"),
    ("steps = 0", "steps = 0: it must be greater than or equal to 1"),
    ("steps = -3", "steps = -3: it must be greater than or equal to 1"),
    ("steps = 2.5", "steps = 2.5: it must be a valid integer"),
    ('steps = "2000"', "steps = '2000': it must be a valid integer"),
    ("steps = true", "steps = True: it must be a valid integer"),
    ("steps = 1000000000001", "steps = 1000000000001: it must be less than or equal to 1000000000000"),
    ("log_every = 0", "log_every = 0: it must be greater than or equal to 1"),
    ("jit = 1", "jit = 1: it must be a valid boolean"),
    ("[start]\na = nan", "start.a = nan: it must be a finite number"),
    ("[start]\nd = inf", "start.d = inf: it must be a finite number"),
    ("[data]\nlow = -inf", "data.low = -inf: it must be a finite number"),
    ("[data]\npoints = 1", "data.points = 1: it must be greater than or equal to 2"),
    ("[data]\nlow = 4.0", "data: low = 4.0 must be less than high = 3.141592653589793"),
    ("[data]\nlow = 1\nhigh = 1", "data: low = 1.0 must be less than high = 1.0"),
    ('[data]\ntarget = "tan"', "data.target = 'tan': it must be 'sin', 'cos', 'exp', 'tanh', 'arctan' or 'cbrt'"),
    ('dtype = "float16"', "dtype = 'float16': it must be 'float32' or 'float64'"),
    ('device = "tpu"', "device = 'tpu': it must be 'cpu', 'gpu' or 'auto'"),
    ('[optimizer]\nname = "Adam"', "optimizer.name = 'Adam': it must be one of 'sgd', 'adam', 'adamw', 'adamax', 'ad"),
    ('[optimizer]\nname = "nadam"', "optimizer.name = 'nadam' is not the same in both: PyTorch's momentum follows a"),
    ('[optimizer]\nname = "lbfgs"', "optimizer.name = 'lbfgs' is not the same in both: PyTorch and optax search along"),
    ('[optimizer]\nname = "adam"\nmomentum = 0.9', "optimizer.momentum is not a field; allowed here: name, learning_r"),
    ('[optimizer]\nname = "adam"\nbeta1 = 1.0', "optimizer.beta1 = 1.0: it must be less than 1"),
    ("[optimizer]\nnesterov = true", "optimizer: nesterov needs a momentum above 0, and no dampening"),
    ("[optimizer]\ndampening = 0.1", "optimizer: dampening needs a momentum above 0"),
    ("optimizer = 3", "optimizer = 3: it must be a table with name, learning_rate, weight_decay"),
    ('[schedule]\nname = "linear"', "schedule.name = 'linear': it must be one of 'constant', 'step', 'multi_step'"),
    ('[schedule]\nname = "multi_step"\nmilestones = [5, 5]', "schedule: milestones = 5, 5: each must be more than the"),
    ('[optimizer]\nname = "L-BFGS"', "optimizer.name = 'L-BFGS' is not the same in both: "),
    ('[optimizer]\nname = "rmsprop"\ncentered = true\ndecay = 0.0', "optimizer: centered needs a decay above 0"),
    ('[schedule]\nname = "multi_step"\nmilestones = [5, 0]', "schedule.milestones.1 = 0: it must be greater than or"),
    ('steps = 9\n[schedule]\nname = "warmup_cosine"', "schedule.warmup_steps = 100 must be less than the 9 steps of"),
    ('steps = 3\n[schedule]\nname = "one_cycle"', "schedule.warmup_fraction = 0.3 of 3 steps must be more than one"),
    ("batch_size = 2001", "batch_size = 2001 is more than data.points = 2000"),
    ('[optimizer]\nlearning_rate = "fast"', "optimizer.learning_rate = 'fast': it must be a valid number"),
    ("[optimizer]\nlearning_rate = 0.0", "optimizer.learning_rate = 0.0: it must be greater than 0"),
    ("[optimizer]\nlearning_rate = nan", "optimizer.learning_rate = nan: it must be a finite number"),
    ("data = 3", "data = 3: it must be a table with points, low, high, target"),
    ("steps = 0\nlog_every = 0", "steps = 0: it must be greater than or equal to 1 (and 1 more)"),
    ("a = " + 3000 * "[", "is not TOML: maximum recursion depth exceeded"),
    ("steps = " + 5000 * "9", "is not TOML: Exceeds the limit (4300 digits) for integer string conversion"),
    ("steps = ", "is not TOML: Invalid value (at end of document)"),
]


@pytest.mark.parametrize(("text", "message"), REFUSED, ids=[text.replace("\n", " ")[:40] for text, _ in REFUSED])
def test_a_bad_file_is_refused_in_one_line(text, message, tmp_path):
    path = tmp_path / "spec.toml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InputError) as caught:
        TrainingSpec.from_toml(path)
    assert str(caught.value).startswith(f"{path}: {message}")


def test_another_optimizer_keeps_nothing_of_the_first():
    spec = TrainingSpec().replace({"optimizer": {"momentum": 0.9, "learning_rate": 1e-6}})
    assert spec.replace({"optimizer": {"nesterov": True}}).optimizer.momentum == 0.9
    assert spec.replace({"optimizer": {"name": "adam"}}).optimizer == Adam()
    assert spec.replace({"optimizer": {"name": "sgd"}}).optimizer == spec.optimizer


def test_a_file_that_cannot_be_read(tmp_path):
    with pytest.raises(InputError, match=r"nowhere\.toml: cannot be read: No such file or directory"):
        TrainingSpec.from_toml(tmp_path / "nowhere.toml")
    with pytest.raises(InputError, match="cannot be read: Is a directory"):
        TrainingSpec.from_toml(tmp_path)
    (tmp_path / "spec.toml").write_bytes(b"steps = 3 # \xff")
    with pytest.raises(InputError, match=r"is not TOML: .* can't decode"):
        TrainingSpec.from_toml(tmp_path / "spec.toml")
