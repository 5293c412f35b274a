"""Which models there are, what each is after, and how one is made by its name."""

from __future__ import annotations

import difflib
import fnmatch
import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from .. import _checks

FAMILIES = (
    "fully convolutional",
    "encoder-decoder",
    "atrous",
    "pyramid",
    "attention",
    "context",
    "refinement",
    "efficient",
)
FIDELITIES = ("verified", "structural", "partial", "reconstruction")


@dataclass(frozen=True)
class Anchor:
    """A number of parameters that a faithful build has to the last one."""

    parameters: int
    options: dict[str, Any]  # of create_model
    source: str  # where the number comes from


@dataclass(frozen=True)
class Card:
    """What a reader wants to know of a model before the code."""

    title: str  # of the paper
    authors: str
    year: int  # of the venue
    venue: str
    url: str  # of the paper
    family: str  # one of FAMILIES
    canonical: str  # which of the published variants this is
    uncertain: str  # what the sources leave open, and how it was decided; "" for nothing
    fidelity: str  # verified: also against an independent build's outputs; structural: parameters and layers
    kernels: tuple[str, ...]  # operators of segops that it runs on
    anchors: tuple[Anchor, ...]
    small: dict[str, Any] = field(default_factory=dict)  # options of a build that tests and first steps can afford
    without_gradient: tuple[str, ...] = ()  # parameters (patterns) that training does not reach, by design

    def __post_init__(self) -> None:
        _checks.choice("family", self.family, FAMILIES)
        _checks.choice("fidelity", self.fidelity, FIDELITIES)


_MODELS: dict[str, tuple[type[nn.Module], Card]] = {}


def register_model(name: str, card: Card) -> Callable[[type[nn.Module]], type[nn.Module]]:
    """Class decorator: make a model known to :func:`create_model` under ``name``, with its card.

    Args:
        name: lower case, the name of its file.
        card: what to tell of it.

    Raises:
        ValueError: for a name that is taken.
    """

    def register(model: type[nn.Module]) -> type[nn.Module]:
        if name in _MODELS:
            raise ValueError(f"name: {name!r} is {_MODELS[name][0].__name__} already")
        _MODELS[name] = model, card
        return model

    return register


def _look_up(name: Any) -> tuple[type[nn.Module], Card]:
    if name not in _MODELS:
        near = difflib.get_close_matches(str(name), _MODELS, n=3) or sorted(_MODELS)
        raise ValueError(
            f"name: expected a model of segops.models.list_models(), got {name!r}; near: {', '.join(near)}"
        )
    return _MODELS[name]


def model_card(name: str) -> Card:
    """The card of a model: paper, family, what is canonical and what uncertain, parameters, kernels.

    Raises:
        ValueError: for a name that no model has.

    Example:
        >>> import segops
        >>> card = segops.models.model_card("fcn")
        >>> card.year, card.family
        (2015, 'fully convolutional')
    """
    return _look_up(name)[1]


def list_models(pattern: str = "*", *, family: str | None = None) -> list[str]:
    """Names of models, sorted.

    Args:
        pattern: with the wildcards of a shell. Default all.
        family: one of ``segops.models.FAMILIES``. Default any.

    Raises:
        ValueError: for a family that there is not.

    Example:
        >>> import segops
        >>> segops.models.list_models("fcn*", family="fully convolutional")
        ['fcn', 'fcn_vgg']
    """
    if family is not None:
        _checks.choice("family", family, FAMILIES)
    names = (name for name, (_, card) in _MODELS.items() if family in (None, card.family))
    return sorted(fnmatch.filter(names, pattern))


def create_model(name: str, **options: Any) -> nn.Module:
    """Make a model by its name.

    Args:
        name: one of :func:`list_models`.
        **options: of the model's class; those that nearly all have are ``num_classes``, ``encoder`` (a name of timm),
            ``pretrained`` (ImageNet weights of the encoder), ``output_stride`` and ``aux`` (the auxiliary head of
            training). What is left out is as in the paper.

    Returns:
        The model, in training mode, with random weights: see :class:`segops.models.SegmentationModel`.

    Raises:
        ValueError: for a name that no model has; what the class raises of its options.
        TypeError: for an option that the model does not have.

    Example:
        >>> import torch, segops
        >>> model = segops.models.create_model("fcn", encoder="resnet18", num_classes=5).eval()
        >>> model(torch.randn(1, 3, 65, 97)).shape
        torch.Size([1, 5, 65, 97])
    """
    model, _ = _look_up(name)
    parameters = inspect.signature(model).parameters
    known = [option for option, how in parameters.items() if how.kind is not inspect.Parameter.VAR_KEYWORD]
    for option in options:
        if option not in known and len(known) == len(parameters):  # or else the model hands them to another
            raise TypeError(f"{option}: {name} has no such option; it has {', '.join(known)}")
    return model(**options)
