"""Foreign checkpoints: random ones in Meta's layout, others made by their own libraries."""

import json
from pathlib import Path
from typing import Any

import torch
import transformers

transformers.utils.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()


def random_checkpoint(
    directory: Path, seed: int = 0, dtype: torch.dtype = torch.float32, **changes: Any
) -> dict[str, torch.Tensor]:
    """Writes a small checkpoint with random weights in Meta's layout and returns its tensors."""
    params = {
        "dim": 48,
        "n_layers": 5,
        "n_heads": 4,
        "n_kv_heads": 4,
        "vocab_size": 61,
        "multiple_of": 16,
        "norm_eps": 1e-5,
        "n_future_tokens": 3,
        "rope_theta": 10000.0,
    } | changes
    from conversion.layout import places
    from conversion.meta_mtp import LAYOUT, read_config

    directory.mkdir(parents=True, exist_ok=True)
    (directory / "params.json").write_text(json.dumps(params))
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, place in places(LAYOUT, read_config(directory)).items():
        noise = torch.randn(place.shape, generator=generator)
        tensors[name] = (1 + 0.1 * noise if len(place.shape) == 1 else 0.15 * noise).to(dtype)
    torch.save(tensors, directory / "consolidated.pth")
    return tensors


def llama_config(**changes) -> transformers.LlamaConfig:
    """A small, oddly sized LLaMA."""
    sizes = {
        "hidden_size": 60,
        "intermediate_size": 92,
        "num_hidden_layers": 3,
        "num_attention_heads": 6,
        "num_key_value_heads": 6,
        "vocab_size": 71,
        "max_position_embeddings": 512,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": False,
    }
    return transformers.LlamaConfig(**(sizes | changes))


def randomize(model: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Weights of a size at which a wrong one shows; transformers' own start is nearly uniform."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(1 + 0.1 * noise if parameter.dim() == 1 else 0.15 * noise)
    return model.eval()


def save_llama(folder: Path, *, shards: int = 1, binary: bool = False, **changes) -> transformers.LlamaForCausalLM:
    """Saves a LLaMA as transformers does (or in the older ``.bin`` form, with rotary buffers as those have)."""
    model = randomize(transformers.LlamaForCausalLM(llama_config(**changes)))
    if not binary:
        size = sum(p.nbytes for p in model.parameters())
        model.save_pretrained(folder, max_shard_size=size if shards == 1 else size // shards)
        return model
    folder.mkdir(parents=True)
    model.config.save_pretrained(folder)
    state = dict(model.state_dict())
    for i in range(model.config.num_hidden_layers):
        state[f"model.layers.{i}.self_attn.rotary_emb.inv_freq"] = torch.ones(5)
    names = list(state)
    if shards == 1:
        torch.save(state, folder / "pytorch_model.bin")
        return model
    weight_map = {name: f"pytorch_model-{i % shards + 1:05}-of-{shards:05}.bin" for i, name in enumerate(names)}
    for file in set(weight_map.values()):
        torch.save({name: state[name] for name in names if weight_map[name] == file}, folder / file)
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    return model


def save_starling(folder: Path, with_config: bool = True) -> tuple[transformers.LlamaModel, torch.Tensor]:
    """A reward model as published: ``transformer.``, ``v_head``, and the backbone again under ``model.``."""
    model = randomize(transformers.LlamaModel(llama_config(num_key_value_heads=2)))
    v_head = torch.randn(1, 60, generator=torch.Generator().manual_seed(1))
    state = {f"{prefix}.{name}": t for prefix in ("transformer", "model") for name, t in model.state_dict().items()}
    folder.mkdir(parents=True)
    if with_config:
        model.config.save_pretrained(folder)
    else:
        for i in range(3):
            state[f"transformer.layers.{i}.self_attn.rotary_emb.inv_freq"] = torch.ones(5)
    torch.save({**state, "v_head.weight": v_head}, folder / "pytorch_model.bin")
    return model, v_head
