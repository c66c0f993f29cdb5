"""Sizes of published models: enough to reckon what a run costs where their files are not, and without their licence's
click. Facts from the models' own configs; nothing here is a weight."""

from __future__ import annotations

from typing import Any

from diptych.backbones.focus_vit import CONFIG as FOCUS_VIT


def _llama_3(width: int, mlp: int, layers: int, heads: int, *, head_dim: int, tied: bool) -> dict[str, Any]:
    return {
        "model_type": "llama",
        "vocab_size": 128256,
        "hidden_size": width,
        "intermediate_size": mlp,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": 8,
        "head_dim": head_dim,
        "max_position_embeddings": 131072,
        "tie_word_embeddings": tied,
    }


LANGUAGE_SHAPES: dict[str, dict[str, Any]] = {
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
    },
}
for _suffix in ("", "-Instruct"):
    LANGUAGE_SHAPES |= {
        f"meta-llama/Llama-3.2-1B{_suffix}": _llama_3(2048, 8192, 16, 32, head_dim=64, tied=True),
        f"meta-llama/Llama-3.2-3B{_suffix}": _llama_3(3072, 8192, 28, 24, head_dim=128, tied=True),
        f"meta-llama/Llama-3.1-8B{_suffix}": _llama_3(4096, 14336, 32, 32, head_dim=128, tied=False),
    }

ENCODER_SHAPES: dict[str, dict[str, Any]] = {
    "vit-s14-focus": {key: value for key, value in FOCUS_VIT.items() if key not in ("architectures", "dtype")},
    "google/siglip-so400m-patch14-384": {
        "model_type": "siglip_vision_model",
        "hidden_size": 1152,
        "intermediate_size": 4304,
        "num_hidden_layers": 27,
        "num_attention_heads": 16,
        "image_size": 384,
        "patch_size": 14,
    },
    "openai/clip-vit-large-patch14": {
        "model_type": "clip_vision_model",
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "image_size": 224,
        "patch_size": 14,
        "projection_dim": 768,
    },
}

DIFFUSION_SHAPES: dict[str, dict[str, dict[str, Any]]] = {
    "stable-diffusion-v1-5/stable-diffusion-v1-5": {
        "unet": {
            "_class_name": "UNet2DConditionModel",
            "sample_size": 64,
            "in_channels": 4,
            "out_channels": 4,
            "block_out_channels": [320, 640, 1280, 1280],
            "layers_per_block": 2,
            "cross_attention_dim": 768,
            "attention_head_dim": 8,
        },
        "vae": {
            "_class_name": "AutoencoderKL",
            "in_channels": 3,
            "out_channels": 3,
            "latent_channels": 4,
            "block_out_channels": [128, 256, 512, 512],
            "layers_per_block": 2,
            "down_block_types": ["DownEncoderBlock2D"] * 4,
            "up_block_types": ["UpDecoderBlock2D"] * 4,
            "sample_size": 512,
        },
        "scheduler": {
            "_class_name": "PNDMScheduler",
            "beta_start": 0.00085,
            "beta_end": 0.012,
            "beta_schedule": "scaled_linear",
            "num_train_timesteps": 1000,
            "skip_prk_steps": True,
            "steps_offset": 1,
        },
    }
}
"""Parts of a diffusers pipeline, by their folders' names."""
