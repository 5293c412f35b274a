"""What every model promises, at the small size of its card."""

from __future__ import annotations

import fnmatch
from functools import cache

import pytest
import torch
from torch import nn

import segops
from segops.models import create_model, list_models, model_card

MODELS = list_models()
SIZE = (65, 97)  # odd, and not square


def small(name: str, **options) -> nn.Module:
    """With parameters and statistics away from their first values, which may be zeros that hide a fault."""
    torch.manual_seed(0)
    model = create_model(name, **{**model_card(name).small, **options})
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.02 * torch.randn_like(parameter)
        for buffer_name, buffer in model.named_buffers():
            if buffer_name.endswith("running_var"):
                buffer.uniform_(0.5, 2)
    return model


@cache
def image(batch: int = 2, size: tuple[int, int] = SIZE) -> torch.Tensor:
    return torch.randn(batch, 3, *size, generator=torch.Generator().manual_seed(1))


def num_classes(name: str) -> int:
    return model_card(name).small["num_classes"]


def labels(name: str, batch: int = 2) -> torch.Tensor:
    generator = torch.Generator().manual_seed(2)
    target = torch.randint(num_classes(name), (batch, 5, 7), generator=generator)
    target = target.repeat_interleave(13, 1).repeat_interleave(14, 2)[:, : SIZE[0], : SIZE[1]].contiguous()
    target[:, :3] = 255
    return target


def assert_close(out: torch.Tensor, expected: torch.Tensor, epsilons: float) -> None:
    assert out.shape == expected.shape
    error = (out.float() - expected.float()).norm() / expected.float().norm()
    assert error <= epsilons * torch.finfo(out.dtype).eps, float(error)


@pytest.mark.parametrize(
    ("name", "anchor"), [(name, anchor) for name in MODELS for anchor in model_card(name).anchors], ids=str
)
def test_parameters(name, anchor):
    with torch.device("meta"):
        model = create_model(name, **anchor.options)
    assert sum(p.numel() for p in model.parameters()) == anchor.parameters


@pytest.mark.parametrize("name", MODELS)
def test_logits_at_the_size_of_the_image(name):
    model = small(name).eval()
    with torch.no_grad():
        out = model(image())
        assert out.shape == (2, num_classes(name), *SIZE) and out.dtype == torch.float32 and out.isfinite().all()
        one = model(image()[1:])
        assert_close(one, out[1:], 84)  # no image sees another
        wide = model(image().contiguous(memory_format=torch.channels_last))
        assert_close(wide, out, 84)
        wide = model.to(memory_format=torch.channels_last)(image().contiguous(memory_format=torch.channels_last))
        assert_close(wide, out, 84)


@pytest.mark.parametrize("name", MODELS)
def test_training_gives_a_dict_and_gradients_to_all_parameters(name):
    model = small(name).train()
    maps = model(image())
    assert maps["out"].shape == (2, num_classes(name), *SIZE)
    assert any(key in model.loss_weights for key in maps)
    floats = [m for m in maps.values() if m.requires_grad]
    sum((m * torch.randn_like(m)).sum() for m in floats).backward()
    for parameter_name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            assert parameter.grad is None
            continue
        given = parameter.grad is not None and bool(parameter.grad.abs().sum() > 0)
        none = any(fnmatch.fnmatch(parameter_name, pattern) for pattern in model_card(name).without_gradient)
        assert given != none, parameter_name


@pytest.mark.parametrize("name", MODELS)
def test_a_step_down_the_gradient_lowers_the_loss(name):
    model, target = small(name).train(), labels(name)
    parameters = [p for p in model.parameters() if p.requires_grad]

    def loss() -> torch.Tensor:
        torch.manual_seed(3)  # of dropout
        return model.loss(model(image()), target)

    before = loss()
    assert before.shape == () and before.isfinite()
    before.backward()
    square = sum(float(p.grad.square().sum()) for p in parameters if p.grad is not None)
    with torch.no_grad():
        for p in parameters:
            if p.grad is not None:
                p -= 0.01 * float(before) / square * p.grad  # one percent less, were the loss linear
        assert loss() < before


@pytest.mark.parametrize("name", MODELS)
def test_autocast(name):
    model = small(name).eval()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        out = model(image())
    with torch.no_grad():
        expected = model(image())
    assert out.isfinite().all()
    assert_close(out.bfloat16(), expected, 16)


@pytest.mark.parametrize("name", MODELS)
def test_compile_and_export(name):
    """In one graph; what comes after that, export does as well, and the compiler itself is tested with the operators."""
    model = small(name).eval()
    with torch.no_grad():
        expected = model(image())
        assert_close(torch.compile(model, backend="eager", fullgraph=True)(image()), expected, 84)
        assert_close(torch.export.export(model, (image(),)).module()(image()), expected, 84)
    torch.compiler.reset()


@pytest.mark.parametrize("name", MODELS)
def test_bad_images_and_options(name):
    model = small(name).eval()
    for bad, error in (
        (image()[:, :1], ValueError),
        (image()[0], ValueError),
        (image()[..., :0], ValueError),
        (image().long(), TypeError),
        (image().numpy(), TypeError),
    ):
        with pytest.raises(error, match="image"):
            model(bad)
    with pytest.raises(TypeError, match="colour"):
        create_model(name, colour="red")
    with pytest.raises(ValueError, match="num_classes"):
        create_model(name, **{**model_card(name).small, "num_classes": 0})


@pytest.mark.parametrize("name", MODELS)
def test_card_and_file(name):
    card = model_card(name)
    module = type(small(name)).__module__
    assert module == f"segops.models.{name}", "a model is found under its name"
    assert card.anchors or card.uncertain, "no count of parameters: say why"
    assert all(hasattr(segops, kernel) for kernel in card.kernels)
