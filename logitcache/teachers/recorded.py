"""Rebuild the teacher recorded in a manifest, with the same forward pass as in the dump."""

from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

import torch
from torch import nn

from logitcache.data import find_modality
from logitcache.errors import CacheMismatchError, InputError, UnknownNameError
from logitcache.models import Network, hash_weights
from logitcache.store import Cache, Manifest
from logitcache.teachers.forward import Teacher, Teachers
from logitcache.teachers.given import GivenTeacher
from logitcache.teachers.servers.server import SERVERS, Asking, connect, is_server

__all__ = ["live_teacher_of", "recorded_teacher", "served_teacher_of"]


def recorded_teacher(network: Network, entry: Mapping[str, Any], manifest: Manifest, device: torch.device) -> Teacher:
    """Prepare a network with the forward pass recorded in a manifest.

    Args:
        network: Network with its weights.
        entry: Entry of this teacher in the manifest.
        manifest: Manifest of the cache.
        device: Device to run on.
    """
    mapped = entry["class_map"] or {"classes": len(manifest.classes), "indices": None}
    modality = find_modality(manifest.modality)
    return Teacher(
        network,
        modality.read_inputs(entry["preprocessing"]),
        modality,
        classes=mapped["classes"],
        batch_size=manifest.batch_size,
        threads=manifest.threads,
        device=device,
        class_map=mapped["indices"],
        **manifest.forward,
    )


def live_teacher_of(
    cache: Cache, teacher: str | nn.Module | None, weights: str | None, device: torch.device
) -> Teachers:
    """Build the teacher of a cache with the forward pass of the dump, or all teachers if the cache holds their mean.

    Args:
        cache: Cache that records the teacher, batch size, threads and preprocessing.
        teacher: Network, if it was given as an object or has another name now.
        weights: Weights file, if it has moved since the dump.
        device: Device to run on.

    Raises:
        CacheMismatchError: If the network's weights are not those of the recorded teacher.
        InputError: If the teacher cannot be built.
    """
    (entry,) = cache.of(None).manifest.teachers
    if "gives" in entry:
        raise InputError(
            f"the teacher of {cache.place}, {entry['name']}, does not run here; train from the cache instead of the live teacher"
        )
    members = entry["members"] or [entry]
    if len(members) > 1 and (teacher is not None or weights is not None):
        raise InputError(
            f"{cache.place} holds the {entry['name']}, which a single network or file cannot replace. Leave it out to build the teachers "
            "from the names and files of the dump."
        )
    return Teachers([_live(cache, member, teacher, weights, device) for member in members])


def served_teacher_of(cache: Cache, address: str | None) -> Teachers:
    """Connect to the server that a cache's rows came from.

    Args:
        cache: Cache that records the model and its server.
        address: Current address of the server, `vllm:URL` or `sglang:URL`. Defaults to the recorded address.

    Raises:
        CacheMismatchError: If the server serves another model.
        InputError: If the rows did not come from a server, or if the server refuses the request.
        CacheIncompleteError: If the server does not respond.
    """
    manifest = cache.manifest
    (entry,) = cache.of(None).manifest.teachers
    if entry["gives"]["by"] not in SERVERS:
        raise InputError(
            f"the rows of {cache.place} were imported ({entry['name']}), so there is no teacher to run again. Leave out --replay."
        )
    if address is not None and not is_server(address):
        raise InputError(f"the teacher of {cache.place} is a server; pass its address as {entry['gives']['by']}:URL")
    asking = Asking()
    server = connect(address or f"{entry['gives']['by']}:{entry['weights']}", asking)
    if entry["name"] not in (server.name, PurePath(server.name).name):  # an anonymous cache keeps the last part
        server.close()
        raise CacheMismatchError(
            f"{server.url} serves {server.name}, but {cache.place} was dumped from {entry['name']}; serve that model"
        )
    inputs = find_modality(manifest.modality).read_inputs(entry["preprocessing"])
    one = GivenTeacher(
        server,
        inputs,
        k=manifest.encoding["k"],
        classes=len(manifest.classes),
        concurrency=asking.concurrency,
    )
    return Teachers([one])


def _live(
    cache: Cache, entry: Mapping[str, Any], teacher: str | nn.Module | None, weights: str | None, device: torch.device
) -> Teacher:
    manifest = cache.manifest
    file = weights or (entry["weights"] if teacher is None else None) or None
    classes = entry["class_map"]["classes"] if entry["class_map"] else len(manifest.classes)
    try:
        network = find_modality(manifest.modality).network(teacher or entry["name"], classes, file)
    except UnknownNameError as error:
        if teacher is not None:
            raise
        raise InputError(
            f"the teacher of {cache.place} was given as an object ({entry['name']}); pass it again, as an object or by name"
        ) from error
    found = hash_weights(network.module.state_dict())
    if found != entry["weights_sha256"]:
        raise CacheMismatchError(
            f"the live teacher {network.name} has weights sha256 {found[:12]}, but {cache.place} was dumped with "
            f"{entry['weights_sha256'][:12]}. Pass the recorded weights with --teacher-weights, or dump again."
        )
    return recorded_teacher(network, entry, manifest, device)
