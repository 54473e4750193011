"""A Llama of transformers whose attention is StableMask's: its loss and a text that it generates.

    python3 llama.py MODEL            # a folder or a name on the hub
"""

import sys
from typing import Any

import stablemask
import torch
from transformers import (AttentionInterface, AttentionMaskInterface, AutoModelForCausalLM,
                          AutoTokenizer, PreTrainedModel)


def attend(module: torch.nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor,
           mask: None, scaling: float, dropout: float = 0.0, **_: Any) -> tuple[torch.Tensor, None]:
    assert dropout == 0, "the operator has no dropout"
    out = stablemask.attention(query, key, value, scale=scaling, **module.config.stable_mask)
    return out.transpose(1, 2), None


def no_mask(attention_mask: torch.Tensor | None = None, **_: Any) -> None:
    """Padding on the right changes no row of the text; on the left it would shift positions."""
    if attention_mask is not None and not attention_mask[:, 0].all():
        raise ValueError("stablemask: no padding on the left; set padding_side to 'right'")


def use_stable_mask(model: PreTrainedModel, **options: Any) -> None:
    """`options` are those of stablemask.attention."""
    AttentionInterface.register("stablemask", attend)
    AttentionMaskInterface.register("stablemask", no_mask)
    model.config.stable_mask = options
    model.set_attn_implementation("stablemask")


if __name__ == "__main__":
    llama = AutoModelForCausalLM.from_pretrained(sys.argv[1])
    tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
    use_stable_mask(llama, gamma=1.0, p_base=-4.0, mask_length=2048)
    text = tokenizer("The river rises in the north and flows", return_tensors="pt")
    print("loss", llama(**text, labels=text["input_ids"]).loss.item())
    print(tokenizer.decode(llama.generate(**text, max_new_tokens=20)[0]))
