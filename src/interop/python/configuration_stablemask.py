"""Configuration of a StableMask model for transformers: AutoConfig reads it from config.json."""

from typing import Any

from transformers import PreTrainedConfig

MODEL_DEFAULTS: dict[str, Any] = {
    "preset": "",
    "vocab_size": 32000,
    "layers": 6,
    "channels": 512,
    "heads": 8,
    "kv_heads": 0,  # 0: heads
    "head_dim": 0,  # 0: channels / heads
    "ffn_hidden": 1536,
    "ffn": "swiglu",
    "norm": "rms",
    "norm_eps": 1e-5,
    "qk_norm": False,
    "bias": "none",
    "parallel_residual": False,
    "tied_head": False,
    "position": "rope",
    "learned_positions": 0,
    "rope_theta": 10000.0,
    "rope_scaling": 1.0,
    "rope_dims": 0,  # 0: head_dim
    "window": 0,  # keys that a query sees, its own included; 0: all
    "log_length_scale": False,
    "init_std": 0.02,
    "attention": "auto",  # the backend of the program that wrote the model; not used here
}

MASK_DEFAULTS: dict[str, Any] = {
    "enabled": True,
    "gamma": "auto",
    "p_base": 0.0,
    "mask_length": "infinite",
    "beyond": "infinite",
    "learnable": False,
}


def with_defaults(stated: dict[str, Any], defaults: dict[str, Any], where: str) -> dict[str, Any]:
    unknown = sorted(set(stated) - set(defaults))
    if unknown:
        raise ValueError(
            f"config.json: {where}.{unknown[0]} is not known to configuration_stablemask.py; "
            "export the model again with the program that wrote it"
        )
    return {**defaults, **stated}


class StableMaskConfig(PreTrainedConfig):
    """`stablemask` has the section "model" of the program's own config ("stablemask config
    reference" describes every field). The attributes with transformers' usual names are copies of
    it, made here, for generation and other code that reads them; only `vocab_size`,
    `tie_word_embeddings` and `use_cache` may differ from it."""

    model_type = "stablemask"
    keys_to_ignore_at_inference = ["past_key_values", "cache"]

    def __init__(
        self,
        stablemask: dict[str, Any] | None = None,
        vocab_size: int | None = None,
        tie_word_embeddings: bool | None = None,
        max_position_embeddings: int = 2048,
        use_cache: bool = True,
        **kwargs: Any,
    ) -> None:
        stated = dict((stablemask or {}).get("model", {}))
        mask = with_defaults(stated.pop("stable_mask", {}), MASK_DEFAULTS,
                             "stablemask.model.stable_mask")
        model = with_defaults(stated, MODEL_DEFAULTS, "stablemask.model")
        self.stablemask = stablemask or {}
        self.model = {**model, "stable_mask": mask}

        self.vocab_size = vocab_size if vocab_size is not None else model["vocab_size"]
        self.hidden_size = model["channels"]
        self.intermediate_size = model["ffn_hidden"]
        self.num_hidden_layers = model["layers"]
        self.num_attention_heads = model["heads"]
        self.num_key_value_heads = model["kv_heads"] or model["heads"]
        self.head_dim = model["head_dim"] or model["channels"] // model["heads"]
        self.max_position_embeddings = max_position_embeddings
        # The rows of such a model change with every further token, so nothing can be cached.
        self.depends_on_length = model["log_length_scale"] or (
            mask["enabled"] and mask["mask_length"] == "sequence"
        )
        self.use_cache = use_cache and not self.depends_on_length
        for derived in ("hidden_size", "intermediate_size", "num_hidden_layers", "model",
                        "num_attention_heads", "num_key_value_heads", "head_dim",
                        "depends_on_length"):
            kwargs.pop(derived, None)
        tied = model["tied_head"] if tie_word_embeddings is None else tie_word_embeddings
        super().__init__(tie_word_embeddings=tied, **kwargs)

    def to_dict(self) -> dict[str, Any]:
        """Without the fields that __init__ derives and nobody else reads."""
        values = super().to_dict()
        for derived in ("model", "depends_on_length"):
            values.pop(derived, None)
        return values
