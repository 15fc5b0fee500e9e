"""Devices: what was asked for, or an error; bfloat16 only where the hardware has it."""

import contextlib

import pytest
import torch

from hsal_cli.errors import HsalError, UsageError
from hsal_cli.vision import devices
from hsal_cli.vision.devices import autocast_gains, choose_device, computing, fitting, forward_context


@pytest.fixture
def hardware(monkeypatch):
    """Pretends that the machine has so many GPUs."""

    def pretend(gpus: int = 0, mps: bool = False):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
        monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)

    return pretend


@pytest.mark.parametrize(
    ("name", "gpus", "mps", "found"),
    [
        ("auto", 0, False, "cpu"),
        ("auto", 2, False, "cuda:0"),
        ("auto", 0, True, "mps"),
        ("cpu", 2, True, "cpu"),
        ("cuda", 2, False, "cuda:0"),
        ("cuda:1", 2, False, "cuda:1"),
        ("mps", 0, True, "mps"),
    ],
)
def test_the_device_asked_for_is_chosen(hardware, name, gpus, mps, found):
    hardware(gpus, mps)
    assert choose_device(name) == torch.device(found)


@pytest.mark.parametrize(
    ("name", "gpus", "words"),
    [
        ("cuda", 0, "not available"),
        ("cuda:0", 0, "not available"),
        ("mps", 0, "not available"),
        ("cuda:7", 2, "numbered 0 to 1"),
        ("gpu", 2, "no device 'gpu'"),
        ("cuda:-1", 2, "no device"),
        ("cuda:", 2, "no device"),
        ("CPU", 0, "no device"),
        ("", 0, "no device"),
    ],
)
def test_a_device_that_is_not_there_is_refused_and_never_replaced_by_the_cpu(hardware, name, gpus, words):
    hardware(gpus)
    with pytest.raises(UsageError, match=words) as caught:
        choose_device(name)
    assert "--device" in caught.value.hint or "auto" in caught.value.hint


@pytest.mark.parametrize(
    ("flags", "gains"),
    [("fpu sse avx2", False), ("avx512f avx512_bf16", True), ("amx_tile amx_bf16", True), ("avx512f avx512_bf16x", False), (None, False)],
)
def test_a_cpu_computes_in_bfloat16_only_if_it_has_the_units(flags, gains, tmp_path, monkeypatch):
    file = tmp_path / "cpuinfo"
    if flags is not None:
        file.write_text(f"processor\t: 0\nflags\t\t: {flags}\nbugs\t\t: amx_bf16\n\nprocessor\t: 1\n")
    monkeypatch.setattr(devices, "CPU_FLAGS", file)
    cpu = torch.device("cpu")
    assert autocast_gains(cpu) is gains
    with forward_context(cpu) as context:
        assert torch.is_autocast_enabled("cpu") is gains
    assert gains or isinstance(forward_context(cpu), contextlib.nullcontext), context


def test_the_gpu_that_is_chosen_is_the_one_that_torch_means(hardware, monkeypatch):
    hardware(2)
    chosen = []
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)  # pinned memory and get_device_name() go by it
    choose_device("cuda:1")
    assert chosen == [torch.device("cuda:1")]


@pytest.mark.parametrize(
    "said", ["CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`", "cuDNN error: CUDNN_STATUS_ALLOC_FAILED"]
)
def test_a_workspace_that_does_not_fit_is_told_as_memory_that_ran_out(said):
    with pytest.raises(HsalError, match="out of memory on cuda:0 with a batch size of 128") as caught, fitting("cuda:0", 128):
        raise RuntimeError(said)
    assert "--batch-size 64" in caught.value.hint


@pytest.mark.parametrize("deterministic", [False, True])
def test_a_gpu_computes_in_tf32_unless_it_is_to_give_the_same_each_time(deterministic, monkeypatch):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    before = torch.get_float32_matmul_precision()
    with computing(torch.device("cuda"), deterministic):
        assert torch.get_float32_matmul_precision() == ("highest" if deterministic else "high")
        assert torch.are_deterministic_algorithms_enabled() is deterministic
    assert torch.get_float32_matmul_precision() == before and not torch.are_deterministic_algorithms_enabled()


def test_an_apple_gpu_computes_in_float32():
    assert not autocast_gains(torch.device("mps"))
