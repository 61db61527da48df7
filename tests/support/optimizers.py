"""Optimizers and schedules that the tests fit with."""

# None at a default in what decides it, so that no default of a framework's can stand in for it unseen; and none of
# those with which the steps jump to and fro near the minimum, where rounding grows without bound.
RULES = {
    "sgd": {"name": "sgd"},
    "momentum": {"name": "sgd", "momentum": 0.9},
    "nesterov, weight decay": {"name": "sgd", "momentum": 0.9, "nesterov": True, "weight_decay": 0.1},
    "dampening, weight decay": {"name": "sgd", "momentum": 0.9, "dampening": 0.3, "weight_decay": 0.1},
    "adam": {"name": "adam", "learning_rate": 0.003, "beta1": 0.8, "beta2": 0.98, "epsilon": 1e-3},
    "adam, weight decay, clipped norm": {
        "name": "adam",
        "learning_rate": 0.01,
        "weight_decay": 0.1,
        "clip_norm": 50.0,
        "clip_value": 40.0,
    },
    "adamw, clipped values": {"name": "adamw", "learning_rate": 0.01, "clip_value": 20.0, "weight_decay": 0.1},
    "adamax": {
        "name": "adamax",
        "learning_rate": 0.003,
        "weight_decay": 0.1,
        "beta1": 0.8,
        "beta2": 0.98,
        "epsilon": 1.0,
    },
    "adagrad": {"name": "adagrad", "learning_rate": 0.01, "weight_decay": 0.1, "epsilon": 1e-3},
    "rmsprop, momentum": {
        "name": "rmsprop",
        "learning_rate": 1e-4,
        "weight_decay": 0.1,
        "momentum": 0.5,
        "decay": 0.98,
        "epsilon": 1e-3,
    },
    "rmsprop, momentum, centered": {"name": "rmsprop", "momentum": 0.9, "centered": True, "decay": 0.98},
    "adadelta": {"name": "adadelta", "learning_rate": 0.8, "weight_decay": 0.1, "decay": 0.95, "epsilon": 1e-8},
}
SCHEDULES = {
    "step": {"name": "step", "period": 7, "factor": 0.8},
    "multi_step": {"name": "multi_step", "milestones": [3, 50, 120], "factor": 0.2},
    "exponential": {"name": "exponential", "factor": 0.97},
    "polynomial": {"name": "polynomial", "power": 2.0},
    "polynomial, held": {"name": "polynomial", "power": 1.5, "decay_steps": 100},
    "linear_warmup": {"name": "linear_warmup", "warmup_steps": 30, "start_factor": 0.2},
    "cosine": {"name": "cosine"},
    "cosine, held": {"name": "cosine", "decay_steps": 50, "final_factor": 0.1},
    "warmup_cosine": {
        "name": "warmup_cosine",
        "warmup_steps": 30,
        "start_factor": 0.2,
        "decay_steps": 150,
        "final_factor": 0.01,
    },
    "warm_restarts": {"name": "warm_restarts", "period": 13},
    "warm_restarts, longer": {"name": "warm_restarts", "period": 13, "period_factor": 2, "final_factor": 0.1},
    "one_cycle": {"name": "one_cycle"},
    "one_cycle, top between steps": {
        "name": "one_cycle",
        "warmup_fraction": 0.333,
        "start_factor": 0.2,
        "final_factor": 0.01,
    },
}
# PyTorch's compiler takes some seconds for each rule.
SOME_COMPILED = ["nesterov, weight decay", "adamw, clipped values"]
