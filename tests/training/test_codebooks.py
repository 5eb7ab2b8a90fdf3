"""Two processes over gloo: their codebooks follow both batches, and stay the same in both."""

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from text_head_toy import make_codec
from vector_quantize_pytorch import ResidualVQ

from uniaudio2.training.codebooks import synchronize_codebooks


def make_quantizer(dead_code_threshold: float) -> ResidualVQ:
    torch.manual_seed(0)
    return ResidualVQ(
        dim=6,
        codebook_dim=4,
        codebook_size=8,
        num_quantizers=2,
        decay=0.9,
        threshold_ema_dead_code=dead_code_threshold,
    ).train()


def make_batch() -> torch.Tensor:
    return torch.randn(4, 10, 6, generator=torch.Generator().manual_seed(1))


def follow(rank: int, rendezvous: str, folder: str, threshold: float) -> None:
    quantizer = make_quantizer(threshold)
    if rank == 1:  # drifted before the start
        with torch.no_grad():
            quantizer.layers[0]._codebook.embed.add_(1.0)
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=2)
    torch.manual_seed(rank)
    assert synchronize_codebooks(quantizer) == 2
    own = make_batch()[:1] if rank == 0 else make_batch()[1:]  # of different sizes
    for _ in range(3):
        quantizer(own)
    torch.save(quantizer.state_dict(), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def trained_by_two(tmp_path, threshold: float) -> tuple[dict, dict]:
    mp.spawn(follow, args=(str(tmp_path / "rendezvous"), str(tmp_path), threshold), nprocs=2)
    return tuple(torch.load(tmp_path / f"{rank}.pt") for rank in range(2))


@pytest.mark.slow
def test_two_processes_follow_as_one_would(tmp_path):
    first, second = trained_by_two(tmp_path, 0.0)
    alone = make_quantizer(0.0)
    for _ in range(3):
        alone(make_batch())
    for name, value in alone.state_dict().items():
        torch.testing.assert_close(first[name], value)
        torch.testing.assert_close(second[name], value)


@pytest.mark.slow
def test_dead_codes_are_replaced_alike(tmp_path):
    first, second = trained_by_two(tmp_path, 2.0)
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    (tmp_path / "without").mkdir()
    untouched, _ = trained_by_two(tmp_path / "without", 0.0)
    assert not torch.equal(first["layers.0._codebook.embed"], untouched["layers.0._codebook.embed"])


def test_a_process_alone_is_left_as_it_is():
    quantizer, untouched = make_quantizer(2.0), make_quantizer(2.0)
    assert synchronize_codebooks(quantizer) == 2
    torch.manual_seed(3)
    quantizer(make_batch())
    torch.manual_seed(3)
    untouched(make_batch())
    for name, value in untouched.state_dict().items():
        assert torch.equal(quantizer.state_dict()[name], value)


def test_codebooks_stay_in_single_precision():
    """As DeepSpeed casts a model: its codebooks keep their values, and small steps of the averages are not lost."""
    codec = make_codec()
    before = {name: value.clone() for name, value in codec.state_dict().items() if "_codebook." in name}
    codec.bfloat16()
    after = codec.state_dict()
    assert len(before) > 0 and after["reasoning_branch.quantizer.project_in.weight"].dtype == torch.bfloat16
    assert all(torch.equal(value, after[name]) and value.dtype == after[name].dtype for name, value in before.items())
    assert codec.to("meta").reasoning_branch.quantizer.layers[0]._codebook.embed.is_meta
