"""One epoch of others' training loops with both towers locked: they encode in every epoch.

Images are tensors in memory and captions tokens already, so what is timed is the loop alone:
forward through the locked towers, backward through the projections, a step of AdamW. Weights are
random, which takes as long as trained ones.
"""

from __future__ import annotations

import tempfile
import time
from types import SimpleNamespace
from typing import Any

import torch
from transformers import BertConfig, ViTConfig

_SIZE, _N_TOKENS, _EMBED_DIM = 224, 16, 512
# The shapes of all-MiniLM-L6-v2 and of ViT-Ti/16.
_MINILM = {
    "hidden_size": 384,
    "num_hidden_layers": 6,
    "num_attention_heads": 12,
    "intermediate_size": 1536,
}
_VIT = {
    "hidden_size": 192,
    "num_hidden_layers": 12,
    "num_attention_heads": 3,
    "intermediate_size": 768,
    "image_size": _SIZE,
}


def open_clip_epoch(n_pairs: int, batch_size: int) -> float:
    """Return the seconds that open_clip takes for an epoch.

    The model is its CustomTextCLIP of a timm and a transformers tower, locked by its
    ``lock_image_tower`` and ``lock_text_tower``; their projections train, by its own
    ``train_one_epoch`` and ``ClipLoss``.
    """
    from open_clip.loss import ClipLoss
    from open_clip.model import CLIPTextCfg, CLIPVisionCfg, CustomTextCLIP
    from open_clip_train.train import train_one_epoch

    with tempfile.TemporaryDirectory() as folder:
        BertConfig(**_MINILM).save_pretrained(folder)
        model = CustomTextCLIP(
            _EMBED_DIM,
            CLIPVisionCfg(timm_model_name="tf_efficientnet_lite0", image_size=_SIZE),
            CLIPTextCfg(
                hf_model_name=folder,
                hf_model_pretrained=False,
                hf_proj_type="mlp",
                hf_pooler_type="mean_pooler",
            ),
            output_dict=True,
        )
    model.lock_image_tower(freeze_bn_stats=True)
    model.lock_text_tower()
    trained = [p for p in model.parameters() if p.requires_grad]
    assert sum(p.numel() for p in trained) < 2e6  # the projections and the scale
    images, tokens = _data(n_pairs)
    batches = list(zip(images.split(batch_size), tokens.split(batch_size), strict=True))
    loader = _Loader(batches)
    loader.num_batches, loader.num_samples = len(batches), n_pairs
    data = {"train": SimpleNamespace(dataloader=loader, set_epoch=lambda epoch: None)}
    args = SimpleNamespace(
        device="cpu",
        precision="fp32",
        distill=False,
        accum_freq=1,
        skip_scheduler=True,
        grad_clip_norm=None,
        horovod=False,
        log_every_n_steps=10**9,
        rank=0,
        local_rank=0,
        log_local=False,
        world_size=1,
        batch_size=batch_size,
        wandb=False,
    )
    optimizer = torch.optim.AdamW(trained)
    start = time.perf_counter()
    train_one_epoch(model, data, ClipLoss(), 0, optimizer, None, None, None, args)
    return time.perf_counter() - start


def transformers_epoch(n_pairs: int, batch_size: int) -> float:
    """Return the seconds of an epoch of transformers' VisionTextDualEncoderModel.

    Both towers are frozen and its two linear projections train, by the loss that it returns.
    """
    from transformers import VisionTextDualEncoderConfig, VisionTextDualEncoderModel

    config = VisionTextDualEncoderConfig.from_vision_text_configs(
        ViTConfig(**_VIT), BertConfig(**_MINILM), projection_dim=_EMBED_DIM
    )
    model = VisionTextDualEncoderModel(config).train()
    for tower in (model.vision_model, model.text_model):
        tower.requires_grad_(False)
    optimizer = torch.optim.AdamW(p for p in model.parameters() if p.requires_grad)
    images, tokens = _data(n_pairs)
    start = time.perf_counter()
    for rows in torch.randperm(n_pairs).split(batch_size):
        optimizer.zero_grad()
        found = model(input_ids=tokens[rows], pixel_values=images[rows], return_loss=True)
        found.loss.backward()
        optimizer.step()
    return time.perf_counter() - start


class _Loader(list[Any]):
    """Batches, with the counts that open_clip reads."""

    num_batches: int
    num_samples: int


def _data(n_pairs: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(n_pairs, 3, _SIZE, _SIZE, generator=generator)
    return images, torch.randint(1000, 20_000, (n_pairs, _N_TOKENS), generator=generator)
