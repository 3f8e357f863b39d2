"""Shell completion of methods, networks and caches (`logitcache --install-completion`)."""

from pathlib import Path

__all__ = ["caches", "methods", "networks"]


def methods(incomplete: str) -> list[str]:
    """Return the methods whose names start with the typed text."""
    from logitcache.methods import METHODS

    return [name for name in METHODS if name.startswith(incomplete)]


def networks(incomplete: str) -> list[str]:
    """Return the networks whose names start with the typed text; those of torchvision and timm once the prefix is typed."""
    library, colon, begun = incomplete.partition(":")
    if not colon:
        from logitcache.models import CIFAR_NETWORKS

        return [name for name in [*CIFAR_NETWORKS, "torchvision:", "timm:", "hf:"] if name.startswith(incomplete)]
    return [f"{library}:{name}" for name in _of_library(library) if name.startswith(begun)]


def _of_library(library: str) -> list[str]:
    if library == "torchvision":
        from torchvision import models

        return list(models.list_models(module=models))
    if library == "timm":
        try:
            import timm  # type: ignore[import-not-found,import-untyped,unused-ignore]
        except ImportError:
            return []
        return list(timm.list_models())
    return []


def caches(incomplete: str) -> list[str]:
    """Return the caches whose paths start with the typed text, and the folders that may contain caches."""
    begun = Path(incomplete)
    folder = begun if incomplete.endswith("/") else begun.parent
    if not folder.is_dir():
        return []
    found = sorted(str(one) if (one / "zarr.json").exists() else f"{one}/" for one in folder.iterdir() if one.is_dir())
    return [path for path in found if path.startswith(incomplete) and not Path(path).name.startswith(".")]
