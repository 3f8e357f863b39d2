"""Teachers and students by name: CIFAR networks, torchvision, timm, or a user's factory."""

import json
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from logitcache.errors import InputError, explain_foreign_errors, first_line, unknown_name
from logitcache.models.cifar import CIFAR_NETWORKS
from logitcache.models.hub import without_waiting
from logitcache.models.modes import (
    checkpointing_gradients,
    evaluating,
    explain_forward_errors,
    float_dtype,
    input_channels,
    restoring_modes,
)
from logitcache.models.outputs import logits_of
from logitcache.models.weights import DEMO_TEACHER, hash_weights, read_notes, read_weights, save_weights
from logitcache.runtime.plugins import import_extra, resolve
from logitcache.runtime.wording import counted

__all__ = [
    "CIFAR_NETWORKS",
    "DEMO_TEACHER",
    "Network",
    "checkpointing_gradients",
    "evaluating",
    "explain_forward_errors",
    "fill_network",
    "float_dtype",
    "hash_weights",
    "load_network",
    "logits_of",
    "read_class_map",
    "read_weights",
    "restoring_modes",
    "save_weights",
]


@dataclass(frozen=True, slots=True)
class Network:
    """A network with its name, weights and preprocessing.

    Attributes:
        module: Module that maps images, [B, 3, H, W] float32, to logits, [B, C]. Inputs and outputs of other modalities are defined by
            the modality.
        name: Name as given by the user.
        weights: Weights as given by the user; empty for an untrained network.
        preprocessing: Preprocessing with which the weights were trained, as far as it is known: `mean`, `std`, `image_size`, `crop_pct`,
            and `in_channels` for a network of grayscale images.
        from_timm: Names of those settings that come from timm's configuration of the architecture, because the weights record none.
    """

    module: nn.Module
    name: str
    weights: str
    preprocessing: dict[str, Any]
    from_timm: frozenset[str] = frozenset()


def load_network(name: str | nn.Module, classes: int, weights: str | None = None) -> Network:
    """Build a network and load its weights.

    Args:
        name: Key of `CIFAR_NETWORKS`, `torchvision:NAME`, `timm:NAME`, `package.module:factory` (called with the number of
            classes), or a module.
        classes: Number of classes of the data.
        weights: A file (see `read_weights`), `demo`, for torchvision the name of its weights (`IMAGENET1K_V1`, `DEFAULT`), or for
            timm `DEFAULT` (the pretrained tag in the name, as in `resnet50.a1_in1k`).

    Raises:
        UnknownNameError: If there is no such network.
        InputError: If weights are missing or do not match the network.
    """
    found = _loaded(name, classes, weights)
    if any(isinstance(one, nn.UninitializedParameter) for one in found.module.parameters()):
        raise InputError(
            f"{found.name} has uninitialized parameters (lazy modules); run it once on an example in its factory"
        )
    grey = {"in_channels": 1} if input_channels(found.module) == 1 else {}
    return replace(found, preprocessing=found.preprocessing | grey)


def _loaded(name: str | nn.Module, classes: int, weights: str | None) -> Network:
    if isinstance(name, nn.Module):
        return fill_network(name, type(name).__name__, classes, weights)
    library, _, network = name.partition(":")
    if library == "torchvision" and network:
        return _torchvision(name, network, classes, weights)
    if library == "timm" and network:
        return _timm(name, network, classes, weights)
    if library in ("hf", "llama"):
        raise InputError(
            f"{name} is a language model, but the data is not text; pass text with --data, or choose another network"
        )
    if name in CIFAR_NETWORKS:
        module = CIFAR_NETWORKS[name](classes)
    elif ":" in name:
        factory = resolve(name, "network")
        with explain_foreign_errors(f"network {name} cannot be created for {classes} classes"):
            module = factory(classes)
        if not isinstance(module, nn.Module):
            raise InputError(
                f"{name} returned {type(module).__name__}; a factory must take the number of classes and return a torch module"
            )
    else:
        raise unknown_name(
            "network", name, [*CIFAR_NETWORKS, "torchvision:NAME", "timm:NAME", "package.module:factory"]
        )
    return fill_network(module, name, classes, weights)


def fill_network(module: nn.Module, name: str, classes: int, weights: str | None) -> Network:
    """Load a weights file, if given, into a module.

    Args:
        module: Module to fill.
        name: Name of the network as given by the user.
        classes: Number of classes of the data.
        weights: A file (see `read_weights`), or None.

    Raises:
        InputError: If weights are missing or do not match the network.
    """
    if not weights:
        return Network(module, name, "", {})
    _fill(module, read_weights(weights, module.state_dict()), name, weights, classes)
    return Network(module, name, weights, read_notes(weights).get("preprocessing", {}))


def _torchvision(name: str, network: str, classes: int, weights: str | None) -> Network:
    from torchvision import models  # noqa: PLC0415  (takes a second to import, and most commands do not need it)

    if network not in models.list_models(module=models):
        raise unknown_name(
            "torchvision network", network, models.list_models(module=models), "`torchvision.models.list_models()`"
        )
    if not weights or Path(weights).expanduser().is_file():
        return fill_network(models.get_model(network, weights=None, num_classes=classes), name, classes, weights)
    known = {str(entry.name): entry for entry in models.get_model_weights(network)}
    if weights != "DEFAULT" and weights not in known:
        raise unknown_name(f"weights file or weights of {name}", weights, [*known, "DEFAULT"])
    entry = models.get_model_weights(network).DEFAULT if weights == "DEFAULT" else known[weights]
    try:
        module = models.get_model(network, weights=entry)
    except OSError as error:
        raise InputError(
            f"weights {weights} of {name} cannot be downloaded: {error}. Download them on another machine and pass the file."
        ) from error
    recipe = entry.transforms()
    side = recipe.crop_size[0]
    return Network(
        module,
        name,
        weights,
        {
            "mean": list(recipe.mean),
            "std": list(recipe.std),
            "image_size": side,
            "crop_pct": side / recipe.resize_size[0],
        },
    )


def _timm(name: str, network: str, classes: int, weights: str | None) -> Network:
    timm = import_extra("timm", name, "timm")
    if not timm.is_model(network.partition(".")[0]):
        raise unknown_name("timm network", network, timm.list_models(), "`timm.list_models()`")
    own = weights == "DEFAULT"
    try:
        with without_waiting() if own else nullcontext():
            module = timm.create_model(network, pretrained=own, **({} if own else {"num_classes": classes}))
    except (OSError, RuntimeError) as error:
        raise InputError(
            f"{name} cannot be created: {first_line(error)}. Download its weights on another machine and pass the file."
        ) from error
    config = timm.data.resolve_model_data_config(module)
    known = {
        "mean": list(config["mean"]),
        "std": list(config["std"]),
        "image_size": config["input_size"][-1],
        "crop_pct": config["crop_pct"],
    }
    if own:
        return Network(module, name, "DEFAULT", known)
    filled = fill_network(module, name, classes, weights)
    if not weights:
        return filled
    recorded = filled.preprocessing
    return replace(filled, preprocessing=known | recorded, from_timm=frozenset(known.keys() - recorded.keys()))


def read_class_map(given: str | Sequence[int], classes: Sequence[str]) -> tuple[int, ...]:
    """Return the network's class for each class of the data.

    Args:
        given: Network's class of each data class, in order; or a JSON file with that list, or with an object that maps names of data
            classes to network classes.
        classes: Names of the data's classes.

    Raises:
        InputError: If the class map cannot be read, is incomplete, or maps two classes to the same one.
    """
    found: Any = given
    if isinstance(given, str):
        try:
            found = json.loads(Path(given).expanduser().read_text())
        except (OSError, ValueError) as error:
            raise InputError(f"--class-map {given} cannot be read as JSON: {first_line(error)}") from error
    if isinstance(found, dict):
        if missing := [name for name in classes if name not in found]:
            raise InputError(
                f"--class-map {given} lacks {', '.join(missing[:5])} (missing: {len(missing)} of the data's classes); add them"
            )
        found = [found[name] for name in classes]
    numbers = list(found) if isinstance(found, list | tuple) else []
    if len(numbers) != len(classes) or not all(type(n) is int and n >= 0 for n in numbers):
        raise InputError(
            f"--class-map must map each of the data's {len(classes)} classes to a different class of the teacher, 0 or more, "
            f"not {str(found)[:80]}"
        )
    if len({*numbers}) < len(numbers):
        twice = next(number for number in numbers if numbers.count(number) > 1)
        first, second = [name for name, number in zip(classes, numbers, strict=True) if number == twice][:2]
        raise InputError(
            f"--class-map maps {first!r} and {second!r} to the same class of the teacher, {twice}; map them to different ones"
        )
    return tuple(numbers)


def _fill(module: nn.Module, weights: dict[str, Tensor], name: str, file: str, classes: int) -> None:
    expected = module.state_dict()
    tied: Any = getattr(module, "tied_names", ())  # further names of tied weights, which are stored once
    weights = {key: value for key, value in weights.items() if key not in tied}
    wrong = {
        key: (list(expected[key].shape), list(value.shape))
        for key, value in weights.items()
        if key in expected and expected[key].shape != value.shape
    }
    missing = sorted(name for name in expected.keys() - weights.keys() if not name.endswith("num_batches_tracked"))
    unknown = sorted(weights.keys() - expected.keys())
    if not missing and not unknown and wrong and all(_only_classes_differ(*pair, classes) for pair in wrong.values()):
        found = next(iter(wrong.values()))[1][0]
        raise InputError(
            f"{file} is a {name} for {counted(found, 'class')}, but the data has {classes}. Use weights trained on these classes."
        )
    if missing or unknown or wrong:
        parts = [f"lacks {', '.join(missing[:3])}{' ...' * (len(missing) > 3)}"] * bool(missing)
        parts += [f"has {', '.join(unknown[:3])}{' ...' * (len(unknown) > 3)}, which are unknown"] * bool(unknown)
        parts += [f"{key} is {found} instead of {want}" for key, (want, found) in list(wrong.items())[:2]]
        raise InputError(
            f"{file} does not match {name}: it {'; '.join(parts)}. Choose the network that the weights were saved from."
        )
    module.load_state_dict(weights, strict=False)  # old checkpoints lack the counters of batch normalization


def _only_classes_differ(want: list[int], found: list[int], classes: int) -> bool:
    return want[:1] == [classes] != found[:1] and want[1:] == found[1:]
