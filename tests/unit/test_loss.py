"""The chunked loss equals the loss from full logits, in float64 and in the training dtypes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from hpc_ewc.errors import ConfigError
from hpc_ewc.model.loss import IGNORE, build_loss, chunked_loss, full_loss


def inputs(n: int, hidden: int, vocabulary: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> tuple[Any, ...]:
    g = torch.Generator().manual_seed(seed)
    h = torch.randn(n, hidden, generator=g).to(dtype).requires_grad_()
    w = (0.3 * torch.randn(vocabulary, hidden, generator=g)).to(dtype).requires_grad_()
    y = torch.randint(0, vocabulary, (n,), generator=g)
    y[::5] = IGNORE
    return h, w, y


def oracle(h: torch.Tensor, w: torch.Tensor, y: torch.Tensor, softcap: float | None) -> tuple[torch.Tensor, ...]:
    """Return loss and gradients in float64 from full logits."""
    h, w = h.detach().double().requires_grad_(), w.detach().double().requires_grad_()
    logits = h @ w.t()
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    loss = torch.nn.functional.cross_entropy(logits, y, ignore_index=IGNORE, reduction="sum")
    loss.backward()
    return loss.detach(), h.grad, w.grad


def error(got: torch.Tensor, want: torch.Tensor) -> float:
    return float((got.double() - want).norm() / want.norm())


@pytest.mark.parametrize("softcap", [None, 30.0, 2.0])
@pytest.mark.parametrize("chunk_size", [1, 7, 64, 1000])
def test_loss_and_gradients_equal_float64_within_1e_6(softcap: float | None, chunk_size: int) -> None:
    h, w, y = inputs(64, 32, 301)
    loss = chunked_loss(h, w, y, softcap, chunk_size)
    (loss * 0.37).backward()
    want, want_h, want_w = oracle(h, w, y, softcap)
    assert abs(loss.item() - float(want)) < 1e-6 * float(want)
    assert error(h.grad, 0.37 * want_h) < 1e-6
    assert error(w.grad, 0.37 * want_w) < 1e-6


@settings(max_examples=25)
@given(n=st.integers(1, 40), chunk_size=st.integers(1, 50), seed=st.integers(0, 99))
def test_the_chunk_size_changes_nothing(n: int, chunk_size: int, seed: int) -> None:
    h, w, y = inputs(n, 8, 50, seed)
    a = chunked_loss(h, w, y, 3.0, chunk_size)
    b = full_loss(h, w, y, 3.0)
    torch.testing.assert_close(a, b, rtol=2e-6, atol=1e-6)


def test_bf16_is_as_close_to_float64_as_full_logits_in_bf16_are() -> None:
    h, w, y = inputs(256, 64, 500, dtype=torch.bfloat16)
    chunked_loss(h, w, y, 30.0, 32).backward()
    chunked = (h.grad, w.grad)
    h.grad = w.grad = None
    full_loss(h, w, y, 30.0).backward()
    _, want_h, want_w = oracle(h, w, y, 30.0)
    assert error(chunked[0], want_h) <= 1.05 * error(h.grad, want_h)
    assert error(chunked[1], want_w) <= 1.05 * error(w.grad, want_w)


def test_unscored_tokens_have_no_gradient_and_no_scored_tokens_give_zero_loss() -> None:
    h, w, y = inputs(20, 8, 30)
    chunked_loss(h, w, y, 30.0, 6).backward()
    assert (h.grad[y == IGNORE] == 0).all()
    assert (h.grad[y != IGNORE] != 0).any()
    h.grad = w.grad = None
    loss = chunked_loss(h, w, torch.full_like(y, IGNORE), 30.0, 6)
    loss.backward()
    assert loss.item() == 0.0
    assert not h.grad.any()
    assert not w.grad.any()


def test_without_gradients_the_loss_is_the_same() -> None:
    h, w, y = inputs(20, 8, 30)
    with torch.no_grad():
        quiet = chunked_loss(h, w, y, 30.0, 6)
    torch.testing.assert_close(quiet, chunked_loss(h, w, y, 30.0, 6).detach(), rtol=1e-6, atol=0)
    frozen = chunked_loss(h, w.detach(), y, 30.0, 6)
    frozen.backward()
    assert error(h.grad, oracle(h, w, y, 30.0)[1]) < 1e-6
    assert w.grad is None


def test_a_second_backward_is_refused() -> None:
    h, w, y = inputs(20, 8, 30)
    loss = chunked_loss(h, w, y, 30.0, 6)
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="back-propagated once"):
        loss.backward()


class Largest(TorchDispatchMode):
    """Records the largest number of elements of any tensor created."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple) else (result,):
            if isinstance(tensor, torch.Tensor):
                self.elements = max(self.elements, tensor.numel())
        return result


def test_no_tensor_is_as_large_as_all_logits() -> None:
    h, w, y = inputs(512, 16, 1000)
    with Largest() as full:
        full_loss(h, w, y, 30.0).backward()
    with Largest() as chunked:
        chunked_loss(h, w, y, 30.0, 32).backward()
    assert full.elements == 512 * 1000
    assert chunked.elements == 32 * 1000


def test_full_logits_give_the_same_loss() -> None:
    h, w, y = inputs(20, 8, 30)
    torch.testing.assert_close(build_loss("full", 30.0)(h, w, y), build_loss("chunked", 30.0)(h, w, y))


@pytest.mark.skipif(torch.cuda.is_available(), reason="this is about machines without a GPU")
def test_liger_without_a_gpu_is_refused_with_an_alternative() -> None:
    with pytest.raises(ConfigError, match=r'model.loss = "liger": .*take "chunked"'):
        build_loss("liger", 30.0)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="liger-kernel's Triton needs a GPU")
@pytest.mark.parametrize("softcap", [None, 30.0])
def test_liger_equals_full_logits_on_a_gpu(softcap: float | None) -> None:
    h, w, y = (t.detach().cuda() for t in inputs(512, 64, 3001, dtype=torch.bfloat16))
    h.requires_grad_(), w.requires_grad_()
    loss = build_loss("liger", softcap)(h, w, y)
    loss.backward()
    want, want_h, want_w = oracle(h, w, y, softcap)
    assert abs(loss.item() - float(want)) < 1e-2 * float(want)
    assert error(h.grad, want_h) < 2e-2
    assert error(w.grad, want_w) < 2e-2
