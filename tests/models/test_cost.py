"""Multiply-adds against known ones and against counting by hand; the table and the pages of all models."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from typer.testing import CliRunner

import segops
from segops.cli import app
from segops.cli.models import page, row
from segops.models import create_model, list_models, model_card
from segops.models.cost import FORMULAS, multiply_adds, parameters


@pytest.mark.parametrize(
    ("name", "options", "size", "expected"),
    [
        # torchvision says 152.717 with the auxiliary head, which is 2,359,296 + 256 x 21 products at 65 x 65.
        ("fcn", {"encoder": "resnet50"}, (520, 520), 152.717e9 - (2_359_296 + 256 * 21) * 65 * 65),
        ("espnet", {"num_classes": 20}, (512, 1024), 4.78e9),
    ],
)
def test_known_multiply_adds(name, options, size, expected):
    with torch.device("meta"):
        model = create_model(name, **options)
    assert multiply_adds(model, size) == pytest.approx(expected, rel=2e-3)
    assert model.training


def products(call, *arguments) -> int:
    """What the counter says of a call of an operator."""
    mapping = {getattr(torch.ops.segops, name): formula for name, formula in FORMULAS.items()}
    with FlopCounterMode(display=False, custom_mapping=mapping) as counter, torch.no_grad():
        call(*arguments)
    return counter.get_total_flops() // 2


def meta(*shape: int) -> torch.Tensor:
    return torch.empty(shape, device="meta")


N, D, C, H, W, K = 2, 4, 6, 10, 12, 3


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        (lambda: segops.nonlocal_attention(meta(N, D, H, W), meta(N, D, 5, 6), meta(N, C, 5, 6)), N * H * W * 30 * (D + C)),
        (lambda: segops.criss_cross_attention(meta(N, D, H, W), meta(N, D, H, W), meta(N, C, H, W)), N * H * W * (H + W - 1) * (D + C)),
        (lambda: segops.em_attention(meta(N, C, H, W), meta(1, C, K), iterations=2), 5 * N * H * W * C * K),
        (lambda: segops.encoding(meta(N, C, H, W), meta(K, C), meta(K)), 2 * N * H * W * C * K),
        (lambda: segops.psa_collect(meta(N, C, H, W), meta(N, 19 * 23, H, W)), N * C * (H * W) ** 2),
        (lambda: segops.interlaced_attention(*[meta(N, D, H, W)] * 2, meta(N, C, H, W), relation="local", down_factor=(5, 4)), N * H * W * 20 * (D + C)),
        (lambda: segops.interlaced_attention(*[meta(N, D, H, W)] * 2, meta(N, C, H, W), relation="global", down_factor=(5, 4)), N * H * W * 6 * (D + C)),
        (lambda: segops.atrous_conv2d(meta(N, C, H, W), meta(K, C, 3, 3), padding=6, dilation=6), N * H * W * 9 * C * K),
        (lambda: segops.aspp(meta(N, C, H, W), [meta(K, C, 3, 3)] * 2, None, rates=(2, 4)), 2 * N * H * W * 9 * C * K),
    ],
)  # fmt: skip
def test_formulas(call, expected):
    assert products(call) == expected


def test_a_convolution_counts_the_same_with_either_operator():
    convs = nn.Conv2d(8, 6, 3, stride=2, padding=4, dilation=4, groups=2), segops.nn.AtrousConv2d(8, 6, 3, stride=2, padding=4, dilation=4, groups=2)  # fmt: skip
    one, other = (products(conv.to("meta"), meta(N, 8, H, W)) for conv in convs)
    assert one == other > 0


def test_the_table():
    result = CliRunner().invoke(app, ["models", "fcn*", "--json"], catch_exceptions=False)
    assert result.exit_code == 0
    rows = {r["name"]: r for r in json.loads(result.output)}
    assert rows["fcn"]["parameters"] == model_card("fcn").anchors[0].parameters
    assert rows["fcn"]["multiply_adds"] > 1e11 and rows["fcn"]["kernels"] == ["atrous_conv2d"]
    shown = CliRunner().invoke(app, ["models", "fcn", "--no-cost"], catch_exceptions=False)
    assert "35.32 M" in shown.output and "2015" in shown.output
    for bad in (["models", "nothing*"], ["models", "--family", "none"]):
        result = CliRunner().invoke(app, bad)
        assert result.exit_code == 1 and "error: " in result.output


@pytest.mark.parametrize("name", list_models())
def test_the_page_of_a_model_is_what_its_card_says(name, request):
    path = request.config.rootpath / "docs" / "models" / f"{name}.md"
    assert path.read_text() == "\n".join(page(row(name))) + "\n", "python -m segops models --pages docs/models"
    assert f"[{name}]({name}.md)" in (path.parent / "index.md").read_text()


def test_parameters():
    assert parameters(nn.Conv2d(3, 4, 3)) == 112
