"""Models of Hugging Face's transformers, whose classes for Flax are ports of those for torch."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import transformers
from torch import nn

from tests.support.models import Fault, Pair
from tests.support.models.common import integers, normal, seeded

VOCABULARY = 32  # also the width
SMALL = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,
}


def text() -> dict[str, np.ndarray]:
    """Three sequences of tokens, of which two are padded at their end, by token 1."""
    mask = (np.arange(8) < np.array([8, 5, 3])[:, None]).astype(np.int64)
    return {"input_ids": np.where(mask, integers(VOCABULARY - 2, 3, 8) + 2, 1), "attention_mask": mask}


def images() -> dict[str, np.ndarray]:
    """Three images of four patches."""
    return {"pixel_values": normal(3, 3, 8, 8)}


@dataclass(frozen=True)
class Family:
    """The classes of a family, the small configuration, inputs, and what the module of Flax needs besides them."""

    torch: type
    flax: type
    config: type
    options: Mapping[str, Any]
    inputs: Callable[[], dict[str, np.ndarray]] = text
    keywords: Mapping[str, Any] | None = None


def positions() -> jax.Array:
    """The positions of the tokens of `text`."""
    return jnp.broadcast_to(jnp.arange(8), (3, 8))


FAMILIES = {
    "gpt2": Family(
        transformers.GPT2LMHeadModel,
        transformers.FlaxGPT2LMHeadModel,
        transformers.GPT2Config,
        {
            "vocab_size": VOCABULARY,
            "n_embd": 32,
            "n_layer": 2,
            "n_head": 4,
            "n_positions": 64,
            "initializer_range": 0.2,
            "bos_token_id": 0,
            "eos_token_id": 1,
            "use_cache": False,
        },
        keywords={"position_ids": positions},
    ),
    "bert": Family(
        transformers.BertModel,
        transformers.FlaxBertModel,
        transformers.BertConfig,
        SMALL,
        keywords={"position_ids": positions, "token_type_ids": lambda: jnp.zeros((3, 8), int)},
    ),
    "roberta": Family(transformers.RobertaModel, transformers.FlaxRobertaModel, transformers.RobertaConfig, SMALL),
    "vit": Family(
        transformers.ViTModel,
        transformers.FlaxViTModel,
        transformers.ViTConfig,
        {**SMALL, "image_size": 8, "patch_size": 4, "hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1},
        images,
        {},
    ),
    "llama": Family(
        transformers.LlamaForCausalLM,
        transformers.FlaxLlamaForCausalLM,
        transformers.LlamaConfig,
        {**SMALL, "num_key_value_heads": 2, "use_cache": False},
    ),
}


def torch_model(family: Family, training: bool, padding_rows: bool) -> Callable[[], Any]:
    """
    A factory of the model in torch, with its attention by hand in training, and by torch otherwise.

    The row of an embedding for padding has no gradient in torch, and has one in Flax, unless `padding_rows` is false:
    then it has one in torch too.
    """

    def build() -> nn.Module:
        attention = "eager" if training else "sdpa"
        model = family.torch(family.config(**family.options, attn_implementation=attention))
        for module in model.modules():
            if isinstance(module, nn.Embedding) and not padding_rows:
                module.padding_idx = None
        return model

    return seeded(build, training=training)


def flax_model(family: Family, *, linen: bool, dtype: str, training: bool) -> Callable[..., tuple[Any, ...]]:
    """A factory of the model in Flax, as a function or as a Linen module, with changes of its configuration."""

    def make(*, training: bool = training, given: Mapping[str, Any] | None = None, **changes: Any) -> tuple[Any, ...]:
        given = {} if given is None else given
        with jax.enable_x64(dtype == "float64"):
            model = family.flax(family.config(**{**family.options, **changes}), dtype=jnp.dtype(dtype), seed=1)
        if linen:
            keywords = {name: value() for name, value in family.keywords.items()} | given
            if training:
                keywords |= {"deterministic": False, "rngs": {"dropout": jax.random.key(2)}}
            return model.module, {"params": model.params}, keywords

        random = {"train": True, "dropout_rng": jax.random.PRNGKey(2)} if training else {}

        def function(params: Any, **inputs: Any) -> Any:
            return model(**(inputs | given), params=params, **random)

        return function, model.params

    return make


def pair(
    family: str,
    *,
    linen: bool = False,
    dtype: str = "float32",
    training: bool = False,
    padding_rows: bool = False,
    **faults: Fault,
) -> Pair:
    """The pair of a family, whose name says what it is beside a function with float32 in evaluation."""
    ways = (
        "linen" if linen else "",
        "float64" if dtype == "float64" else "",
        "training" if training else "",
        "padding" if padding_rows else "",
    )
    return Pair(
        "-".join(filter(None, (family, *ways))),
        "linen" if linen else "function",
        torch_model(FAMILIES[family], training, padding_rows),
        flax_model(FAMILIES[family], linen=linen, dtype=dtype, training=training),
        FAMILIES[family].inputs,
        faults,
    )


def change(path: str | tuple[str, ...], quantity: str, cause: str, **keywords: Any) -> Fault:
    """A fault by a change of the configuration or by `given` inputs."""
    return Fault(keywords, path, quantity, cause)


MASK = np.ones((3, 8), np.int64)
EVALUATED = change("embeddings.dropout", "output", "dropout|mode|train|eval|deterministic", training=False)
BERT_EPSILON = change("embeddings.LayerNorm", "output", "eps|epsilon", layer_norm_eps=1e-5)
BERT_ACTIVATION = change(
    (
        "encoder.layer.0.intermediate.intermediate_act_fn",
        "encoder.layer.0.intermediate",
        "encoder.layer.0.output.dense",
    ),
    "output",
    "approximate|tanh|gelu",
    hidden_act="gelu_new",
)
BERT_ATTENTION = ("encoder.layer.0.attention.self", "encoder.layer.0.attention.output.dense")
GPT2_ATTENTION = ("transformer.h.0.attn", "transformer.h.0.attn.c_proj")
GPT2_ACTIVATION = ("transformer.h.0.mlp.act", "transformer.h.0.mlp.c_proj")
LLAMA_ATTENTION = ("model.layers.0.self_attn", "model.layers.0.self_attn.o_proj")
PAIRS = (
    pair(
        "gpt2",
        epsilon=change("transformer.h.0.ln_1", "output", "eps|epsilon", layer_norm_epsilon=1e-6),
        exact=change(GPT2_ACTIVATION, "output", "approximate|tanh|gelu", activation_function="gelu"),
        heads=change(GPT2_ATTENTION, "input", "head|scale|attention", n_head=2),
        mask_ignored=change(GPT2_ATTENTION, "input", "mask", given={"attention_mask": MASK}),
        position_offset=change(
            "transformer.wpe",
            "input",
            "position|offset|shift|1",
            given={"position_ids": np.arange(1, 9)[None] + 0 * MASK},
        ),
        untied=change(
            ("lm_head.weight", "transformer.wte.weight"),
            "parameter",
            "tied|shared|one array",
            tie_word_embeddings=False,
        ),
    ),
    pair("gpt2", dtype="float64"),
    pair(
        "gpt2",
        linen=True,
        layer_missing=change(
            ("transformer.h.1", "transformer.h.1.ln_1.weight"), "parameter", "missing|layer|transformer.h.1", n_layer=1
        ),
        relu=change(GPT2_ACTIVATION, "output", "relu|gelu|activation", activation_function="relu"),
    ),
    pair(
        "gpt2",
        training=True,
        evaluated=change("transformer.drop", "output", "dropout|mode|train|eval|deterministic", training=False),
        rate=change("transformer.drop", "output", "rate|dropout|0.9|0.1", embd_pdrop=0.9),
    ),
    pair(
        "bert",
        epsilon=BERT_EPSILON,
        approximate=BERT_ACTIVATION,
        mask_ignored=change(BERT_ATTENTION, "output", "mask", given={"attention_mask": MASK}),
        token_types=change(
            "embeddings.token_type_embeddings", "input", "token_type|type", given={"token_type_ids": MASK}
        ),
    ),
    pair("bert", dtype="float64", epsilon=BERT_EPSILON),
    pair("bert", linen=True, heads=change(BERT_ATTENTION, "output", "head|scale|attention", num_attention_heads=2)),
    pair("bert", linen=True, training=True, evaluated=EVALUATED),
    pair("bert", training=True, evaluated=EVALUATED),
    pair(
        "roberta",
        epsilon=BERT_EPSILON,
        positions_without_padding=change(
            "embeddings.position_embeddings",
            "input",
            "position|offset|shift|2",
            given={"position_ids": np.arange(8)[None] + 0 * MASK},
        ),
    ),
    pair("roberta", dtype="float64", approximate=BERT_ACTIVATION),
    pair("roberta", training=True, evaluated=EVALUATED),
    pair(
        "vit",
        epsilon=change("encoder.layer.0.layernorm_before", "output", "eps|epsilon", layer_norm_eps=1e-6),
        no_bias=change(
            tuple(f"encoder.layer.0.attention.attention.{name}.bias" for name in ("query", "key", "value")),
            "parameter",
            "bias",
            qkv_bias=False,
        ),
        approximate=change(
            (
                "encoder.layer.0.intermediate.intermediate_act_fn",
                "encoder.layer.0.intermediate",
                "encoder.layer.0.output.dense",
            ),
            "output",
            "approximate|tanh|gelu",
            hidden_act="gelu_new",
        ),
    ),
    pair("vit", linen=True, dtype="float64"),
    pair("vit", training=True, evaluated=EVALUATED),
    pair(
        "llama",
        epsilon=change("model.layers.0.input_layernorm", "output", "small constant", rms_norm_eps=1e-3),
        gelu=change(
            ("model.layers.0.mlp.act_fn", "model.layers.0.mlp.down_proj"),
            "output",
            "silu|swish|gelu|activation",
            hidden_act="gelu",
        ),
        mask_ignored=change(LLAMA_ATTENTION, "output", "mask", given={"attention_mask": MASK}),
        positions_doubled=change(
            LLAMA_ATTENTION,
            "output",
            "position|rope|rotary|2",
            given={"position_ids": np.arange(8)[None] * 2 + 0 * MASK},
        ),
    ),
    pair("llama", dtype="float64"),
)

# What is not equal between the libraries, without a fault of anyone's: the fault has no keywords.
DIFFERENT = (
    pair(
        "roberta",
        padding_rows=True,
        padding=change(
            ("embeddings.word_embeddings", "embeddings.position_embeddings", "embeddings.word_embeddings.weight"),
            "gradient",
            "padding",
        ),
    ),
)
