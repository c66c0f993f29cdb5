"""The shape of a language model without its weights, on the meta device: for reckoning what a run costs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from huggingface_hub import hf_hub_download
from transformers import AutoConfig, AutoModelForCausalLM

EMBEDDED_SHAPES: dict[str, dict[str, Any]] = {
    "smollm2-135m-instruct": {
        "model_type": "llama",
        "vocab_size": 49152,
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "head_dim": 64,
        "max_position_embeddings": 8192,
        "tie_word_embeddings": True,
    }
}
"""What matters to cost, of the embedded models: known without fetching them."""


def build_language_skeleton(name: str, *, trust_remote_code: bool = False) -> Any:
    """A Hugging Face causal LM whose weights take no memory; `name` as for `load_language_model`. Reads no weights.

    Raises ValueError that names the model if its config is found neither in a folder nor on the Hub.
    """
    if name in EMBEDDED_SHAPES:
        config = AutoConfig.for_model(**EMBEDDED_SHAPES[name])
    else:
        folder = Path(name).expanduser()
        try:
            source = folder if folder.is_dir() else Path(hf_hub_download(name, "config.json")).parent
            config = AutoConfig.from_pretrained(source, local_files_only=True, trust_remote_code=trust_remote_code)
        except (OSError, ValueError) as error:
            reason = str(error).strip().splitlines()[0]
            raise ValueError(
                f"the config of language model {name!r} is in no folder here and could not be fetched: {reason}; "
                f"give a folder, a Hugging Face id, or one of: {', '.join(EMBEDDED_SHAPES)}"
            ) from error
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
    return model.eval().requires_grad_(False)
