"""A StableMask model for transformers: decoder-only Transformer whose attention has StableMask
(Yin et al., "StableMask: Refining Causal Masking in Decoder-only Transformer", ICML 2024).

Row i of the scores has, besides those of its keys, pseudo scores at positions i+1 ... N-1 whose
weights are thrown away. Only the sum S_i of their exponentials matters, so they are one more key
with score log S_i and value 0: scaled_dot_product_attention then gives the exact result, with or
without a KV cache. Legend: B batch, T queries, K keys, H heads, D head dim, N mask length."""

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import DynamicCache, GenerationMixin, PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast

from .configuration_stablemask import StableMaskConfig

# log S of rows without pseudo slots: e^-4000 is 0, and 4000 times sqrt(D) is below fp16's maximum
# for D <= 256.
NO_MASS = -4000.0
# Columns added to queries and keys, a multiple of 8 for the fused kernels.
MASS_COLUMNS = 8
CACHE_NAMES = ("cache", "past_key_values")  # since and before transformers 5.24


def alibi_slopes(heads: int) -> torch.Tensor:
    """fp64 [H]: Press et al., arXiv 2108.12409."""
    power = 1 << (heads.bit_length() - 1)
    first = [2.0 ** (-8.0 * (h + 1) / power) for h in range(power)]
    rest = [2.0 ** (-8.0 * (2 * h + 1) / (2 * power)) for h in range(heads - power)]
    return torch.tensor(first + rest, dtype=torch.float64)


def initial_mask(config: StableMaskConfig) -> tuple[torch.Tensor, torch.Tensor]:
    """gamma and p_base of the config, fp64 [H]."""
    mask, heads = config.model["stable_mask"], config.num_attention_heads
    gamma = mask["gamma"]
    if gamma == "auto":
        gamma = 1.0 if config.model["position"] == "rope" else "slopes"
    decay = alibi_slopes(heads) if gamma == "slopes" else torch.tensor(gamma).double()
    return decay.expand(heads), torch.tensor(mask["p_base"]).double().expand(heads)


def log_pseudo_mass(gamma: torch.Tensor, p_base: torch.Tensor, rows: torch.Tensor,
                    length: torch.Tensor | int | None, infinite_beyond: bool) -> torch.Tensor:
    """log S_i, fp32 [B, H, T], of rows at positions [B, T]; gamma, p_base fp64 [H]; length N is
    None (infinite), a number, or int [B, 1].
    S_i = e^p_base (1 - e^(-gamma (N-1-i))) / (1 - e^-gamma); gamma -> 0: e^p_base (N-1-i)."""
    gamma, p_base = gamma[:, None], p_base[:, None]
    safe = torch.where(gamma > 0, gamma, 1.0)
    endless = torch.where(gamma > 0, p_base - torch.log(-torch.expm1(-safe)), math.inf)
    if length is None:
        return endless.expand(rows.shape[0], -1, rows.shape[1]).float()
    slots = (length - 1 - rows)[:, None, :]
    count = slots.clamp(min=1).double()
    decaying = torch.log(torch.expm1(-safe * count) / torch.expm1(-safe))
    mass = p_base + torch.where(gamma > 0, decaying, torch.log(count))
    mass = torch.where(slots > 0, mass, NO_MASS)
    if infinite_beyond:
        mass = torch.where(slots < 0, endless, mass)
    return mass.float()


def rope_frequencies(config: StableMaskConfig) -> tuple[torch.Tensor, float, float]:
    """Radians per position of RoPE's pairs, fp64 [R/2], the divisor of the positions, and the
    factor of cos and sin."""
    model = config.model
    dims, theta = model["rope_dims"] or config.head_dim, model["rope_theta"]
    index = torch.arange(dims // 2, dtype=torch.float64)
    frequency = torch.exp(index * (-2.0 * math.log(theta) / dims))
    scaling = model["rope_scaling"]
    if not isinstance(scaling, dict):
        return frequency, float(scaling), 1.0
    kind, factor = scaling["kind"], scaling["factor"]
    if kind == "linear":
        return frequency, factor, 1.0
    context = scaling["original_context"]
    turns = context * frequency / (2 * math.pi)  # of a pair within the original context
    if kind == "llama3":  # Llama 3.1
        low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
        kept = ((turns - low) / (high - low)).clamp(0, 1)
        return kept * frequency + (1 - kept) * frequency / factor, 1.0, 1.0
    if kind != "yarn":
        raise ValueError(f"config.json: rope_scaling of kind {kind!r} is not known")

    def pair_of(turns: float) -> float:  # Peng et al., arXiv 2309.00071
        return dims * math.log(context / (turns * 2 * math.pi)) / (2 * math.log(theta))

    first = max(math.floor(pair_of(scaling["beta_fast"])), 0)
    last = min(math.ceil(pair_of(scaling["beta_slow"])), dims - 1)
    slowed = ((index - first) / max(last - first, 0.001)).clamp(0, 1)
    magnitude = scaling.get("attention_factor") or 0.1 * math.log(factor) + 1
    return frequency * (1 - slowed) + frequency / factor * slowed, 1.0, magnitude


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """RoPE on x [B, H, T, D]; cos and sin fp32 [B, 1, T, R/2] turn the pairs (m, m + R/2)."""
    half = cos.shape[-1]
    a, b, rest = x.float().split([half, half, x.shape[-1] - 2 * half], dim=-1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin, rest], dim=-1).to(x.dtype)


def make_norm(size: int, config: StableMaskConfig) -> nn.Module:
    kind = nn.RMSNorm if config.model["norm"] == "rms" else nn.LayerNorm
    return kind(size, eps=config.model["norm_eps"])


def split_in_parts(x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """x fp32 [...] -> [..., MASS_COLUMNS] in `dtype`, whose sum is x to fp32's precision."""
    parts = []
    for _ in range(1 if dtype.itemsize >= 4 else 3):
        part = x.to(dtype)
        parts.append(part)
        x = x - part.float()
    columns = torch.stack(parts, dim=-1)
    return F.pad(columns, (0, MASS_COLUMNS - columns.shape[-1]))


def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None,
           log_mass: torch.Tensor | None) -> torch.Tensor:
    """Attention of q [B, H, T, D] to k, v [B, Hkv, K, D]. mask [B or 1, H or 1, T, K], boolean or
    added to the scores; None: causal, T = K, or T = 1 row that sees all. log_mass fp32 [B or 1, H,
    T] or None. The mass is one more key, the first one: q carries log S (in parts that are exact in
    q's dtype) where only this key is not 0."""
    groups, scale = q.shape[1] // k.shape[1], q.shape[-1] ** -0.5
    if groups > 1:
        k, v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)
    causal = mask is None and q.shape[2] > 1
    if log_mass is None:
        return F.scaled_dot_product_attention(q, k, v, mask, is_causal=causal, scale=scale)
    dims = v.shape[-1]
    mass = split_in_parts(log_mass.clamp(min=NO_MASS) / scale, q.dtype)
    q = torch.cat([q, mass.expand(*q.shape[:-1], -1)], dim=-1)
    k, v = F.pad(k, (0, MASS_COLUMNS, 1, 0)), F.pad(v, (0, MASS_COLUMNS, 1, 0))
    mass_key = F.pad(k.new_ones(MASS_COLUMNS), (dims, 0)).expand(*k.shape[:2], 1, -1)
    k = torch.cat([mass_key, k[:, :, 1:]], dim=2)
    if causal:  # an unused first row, so that row i + 1 sees the mass and keys 0 ... i
        q = F.pad(q, (0, 0, 1, 0))
    if mask is not None:
        mask = F.pad(mask, (1, 0), value=0 if mask.is_floating_point() else 1)
    out = F.scaled_dot_product_attention(q, k, v, mask, is_causal=causal, scale=scale)
    return out[:, :, int(causal):, :dims]


class LearnableMask(nn.Module):
    """gamma = softplus(gamma_raw) and p_base of each head."""

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.gamma_raw = nn.Parameter(torch.empty(heads))
        self.p_base = nn.Parameter(torch.empty(heads))

    def forward(self) -> tuple[torch.Tensor, torch.Tensor]:
        return F.softplus(self.gamma_raw.float()).double(), self.p_base.double()


@dataclass
class RowInputs:
    """What all layers share in a forward pass."""
    positions: torch.Tensor  # [B or 1, T]
    lengths: torch.Tensor  # [B or 1, 1], without padding
    mask: torch.Tensor | None  # as in attend()
    rope: tuple[torch.Tensor, torch.Tensor] | None = None
    log_mass: torch.Tensor | None = None  # None with learnable masks, of which each layer has one


class StableMaskAttention(nn.Module):
    def __init__(self, config: StableMaskConfig, layer_idx: int) -> None:
        super().__init__()
        model, dims = config.model, config.head_dim
        self.config, self.layer_idx = config, layer_idx
        queries, keys = config.num_attention_heads * dims, config.num_key_value_heads * dims
        biased = model["bias"] != "none"
        self.q_proj = nn.Linear(config.hidden_size, queries, bias=biased)
        self.k_proj = nn.Linear(config.hidden_size, keys, bias=biased)
        self.v_proj = nn.Linear(config.hidden_size, keys, bias=biased)
        self.o_proj = nn.Linear(queries, config.hidden_size, bias=model["bias"] == "all")
        if model["qk_norm"]:
            self.q_norm = nn.RMSNorm(dims, eps=model["norm_eps"])
            self.k_norm = nn.RMSNorm(dims, eps=model["norm_eps"])
        if model["stable_mask"]["enabled"] and model["stable_mask"]["learnable"]:
            self.stable_mask = LearnableMask(config.num_attention_heads)

    def forward(self, x: torch.Tensor, rows: RowInputs, cache: Any) -> torch.Tensor:
        def heads(y: torch.Tensor) -> torch.Tensor:
            return y.unflatten(-1, (-1, self.config.head_dim)).transpose(1, 2)

        q, k, v = heads(self.q_proj(x)), heads(self.k_proj(x)), heads(self.v_proj(x))
        if self.config.model["qk_norm"]:
            q, k = self.q_norm(q), self.k_norm(k)
        if rows.rope is not None:
            q, k = rotate(q, *rows.rope), rotate(k, *rows.rope)
        if self.config.model["log_length_scale"]:
            factor = torch.log(rows.lengths.float()) / math.log(1024)
            q = q * factor[:, :, None, None].to(q.dtype)
        if cache is not None:
            k, v = cache.update(k, v, self.layer_idx)
        log_mass = rows.log_mass
        if hasattr(self, "stable_mask"):
            log_mass = model_log_mass(self.config, *self.stable_mask(), rows)
        out = attend(q, k, v, rows.mask, log_mass)
        return self.o_proj(out.transpose(1, 2).flatten(2))


def model_log_mass(config: StableMaskConfig, gamma: torch.Tensor, p_base: torch.Tensor,
                   rows: RowInputs) -> torch.Tensor:
    mask = config.model["stable_mask"]
    length = mask["mask_length"]
    if length == "infinite":
        length = None
    elif length == "sequence":
        length = rows.lengths
    fixed = isinstance(length, int)
    return log_pseudo_mass(gamma, p_base, rows.positions, length,
                           fixed and mask["beyond"] == "infinite")


class StableMaskMLP(nn.Module):
    def __init__(self, config: StableMaskConfig) -> None:
        super().__init__()
        size, hidden = config.hidden_size, config.intermediate_size
        self.kind, biased = config.model["ffn"], config.model["bias"] == "all"
        if self.kind == "swiglu":
            self.gate_proj = nn.Linear(size, hidden, bias=biased)
        self.up_proj = nn.Linear(size, hidden, bias=biased)
        self.down_proj = nn.Linear(hidden, size, bias=biased)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        up = self.up_proj(x)
        if self.kind == "swiglu":
            return self.down_proj(F.silu(self.gate_proj(x)) * up)
        approximation = "tanh" if self.kind == "gelu_tanh" else "none"
        return self.down_proj(F.gelu(up, approximate=approximation))


class StableMaskDecoderLayer(GradientCheckpointingLayer):
    def __init__(self, config: StableMaskConfig, layer_idx: int) -> None:
        super().__init__()
        self.parallel = config.model["parallel_residual"]
        self.self_attn = StableMaskAttention(config, layer_idx)
        self.mlp = StableMaskMLP(config)
        self.input_layernorm = make_norm(config.hidden_size, config)
        self.post_attention_layernorm = make_norm(config.hidden_size, config)

    def forward(self, x: torch.Tensor, rows: RowInputs, cache: Any = None) -> torch.Tensor:
        attended = x + self.self_attn(self.input_layernorm(x), rows, cache)
        fed = x if self.parallel else attended
        return attended + self.mlp(self.post_attention_layernorm(fed))


class StableMaskPreTrainedModel(PreTrainedModel):
    config_class = StableMaskConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["StableMaskDecoderLayer"]
    _supports_sdpa = True

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, LearnableMask):
            gamma, p_base = initial_mask(self.config)
            # softplus inverted; where gamma is 0 its gradient would vanish.
            nn.init.zeros_(module.gamma_raw).add_(
                torch.log(torch.expm1(gamma.clamp(min=1e-4))).to(module.gamma_raw))
            nn.init.zeros_(module.p_base).add_(p_base.to(module.p_base))


class StableMaskModel(StableMaskPreTrainedModel):
    def __init__(self, config: StableMaskConfig) -> None:
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        if config.model["position"] == "learned":
            self.embed_positions = nn.Embedding(config.model["learned_positions"],
                                                config.hidden_size)
        self.layers = nn.ModuleList(
            StableMaskDecoderLayer(config, layer) for layer in range(config.num_hidden_layers))
        self.norm = make_norm(config.hidden_size, config)
        self.gradient_checkpointing = False
        self._constants: dict[torch.device, dict[str, Any]] = {}
        self.post_init()

    def shared_inputs(self, x: torch.Tensor, past: int, attention_mask: torch.Tensor | None,
                      position_ids: torch.Tensor | None) -> RowInputs:
        """attention_mask [B, past + T] is 0 at padding, which may be on either side."""
        config, model, device = self.config, self.config.model, x.device
        count, keys = x.shape[1], past + x.shape[1]
        if attention_mask is not None and attention_mask.shape != (x.shape[0], keys):
            raise ValueError(
                f"attention_mask: expected [batch, cached + new tokens] = [{x.shape[0]}, {keys}], "
                f"got {list(attention_mask.shape)}; use a DynamicCache and no masks of other forms")
        columns = torch.arange(keys, device=device)[None]
        lengths = torch.full((1, 1), keys, device=device)
        padding = attention_mask is not None and not bool(attention_mask.all())
        if padding:
            columns = (attention_mask.long().cumsum(-1) - 1).clamp(min=0)
            lengths = attention_mask.long().sum(-1, keepdim=True)
        # Distances in the mask are those of columns; they equal those of positions.
        positions = columns[:, past:] if position_ids is None else position_ids.to(device)
        slots = torch.arange(keys, device=device)
        distance = slots[past:, None] - slots[None]
        window, alibi = model["window"], model["position"] == "alibi"
        plain = count == keys or count == 1
        mask = None
        if not plain or padding or alibi or 0 < window < keys:
            visible = distance >= 0
            if window > 0:
                visible = visible & (distance < window)
            mask = visible = visible[None, None]
            if padding:  # rows of padding see themselves, so that no row is without a key
                real = attention_mask[:, None, None, :].bool()
                mask = visible = visible & (real | (distance == 0))
            if alibi:
                slopes = self.constants(device)["slopes"][None, :, None, None]
                mask = (-slopes * distance).to(x.dtype)
                mask = mask.masked_fill(~visible, -math.inf)
        rows = RowInputs(positions, lengths, mask)
        if model["position"] == "rope":
            frequency, divisor, magnitude = self.constants(device)["rope"]
            angle = (positions.double() / divisor)[:, None, :, None] * frequency
            rows.rope = (angle.cos() * magnitude).float(), (angle.sin() * magnitude).float()
        if model["stable_mask"]["enabled"] and not model["stable_mask"]["learnable"]:
            rows.log_mass = model_log_mass(config, *self.constants(device)["mask"], rows)
        return rows

    def constants(self, device: torch.device) -> dict[str, Any]:
        """Small fp64 tensors that follow from the config. They are no buffers, which `to(dtype)`
        would round."""
        if device not in self._constants:
            frequency, divisor, magnitude = rope_frequencies(self.config)
            gamma, p_base = initial_mask(self.config)
            self._constants[device] = {
                "slopes": alibi_slopes(self.config.num_attention_heads).to(device),
                "rope": (frequency.to(device), divisor, magnitude),
                "mask": (gamma.to(device), p_base.to(device))}
        return self._constants[device]

    def forward(self, input_ids: torch.Tensor | None = None,
                attention_mask: torch.Tensor | None = None,
                position_ids: torch.Tensor | None = None, cache: Any = None,
                inputs_embeds: torch.Tensor | None = None, use_cache: bool | None = None,
                output_hidden_states: bool | None = None, past_key_values: Any = None,
                **kwargs: Any) -> BaseModelOutputWithPast:
        """`past_key_values` is another name of `cache`, that of older versions."""
        cache = cache if cache is not None else past_key_values
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give either input_ids or inputs_embeds")
        x = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        use_cache = self.config.use_cache if use_cache is None else use_cache
        if self.gradient_checkpointing and self.training:
            use_cache, cache = False, None
        if use_cache and cache is None and not self.training:
            cache = DynamicCache()
        past = cache.get_seq_length() if cache is not None else 0
        if cache is not None and self.config.depends_on_length:
            raise ValueError(
                "this model's mask_length \"sequence\" or log_length_scale depends on the length "
                "of the input, so it cannot run with a KV cache; call it with use_cache=False")
        rows = self.shared_inputs(x, int(past), attention_mask, position_ids)
        if self.config.model["position"] == "learned":
            learned = self.embed_positions.num_embeddings
            if attention_mask is None and past + x.shape[1] > learned:
                raise ValueError(f"{past + x.shape[1]} tokens are more than the {learned} "
                                 "positions that the model has learned")
            x = x + self.embed_positions(rows.positions)
        hidden = [x]
        for layer in self.layers:
            x = layer(x, rows, cache=cache)
            hidden.append(x)
        x = self.norm(x)
        wanted = output_hidden_states or self.config.output_hidden_states
        states = (*hidden[:-1], x) if wanted else None
        return BaseModelOutputWithPast(x, cache, states)


class StableMaskForCausalLM(StableMaskPreTrainedModel, GenerationMixin):
    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}

    def __init__(self, config: StableMaskConfig) -> None:
        super().__init__(config)
        self.model = StableMaskModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def forward(self, input_ids: torch.Tensor | None = None,
                attention_mask: torch.Tensor | None = None,
                position_ids: torch.Tensor | None = None, cache: Any = None,
                inputs_embeds: torch.Tensor | None = None, labels: torch.Tensor | None = None,
                use_cache: bool | None = None, logits_to_keep: int | torch.Tensor = 0,
                output_hidden_states: bool | None = None, past_key_values: Any = None,
                return_dict: bool | None = None, **kwargs: Any) -> Any:
        """`labels` are shifted here; -100 is left out of the loss."""
        outputs = self.model(input_ids, attention_mask, position_ids, cache, inputs_embeds,
                             use_cache, output_hidden_states, past_key_values)
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(outputs.last_hidden_state[:, kept])
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels,
                                      vocab_size=self.config.vocab_size, **kwargs)
        cache = next((outputs[name] for name in CACHE_NAMES if name in outputs.keys()), None)
        result = CausalLMOutputWithPast(loss, logits, cache, outputs.hidden_states)
        return result.to_tuple() if return_dict is False else result
