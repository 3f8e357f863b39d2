"""Settings of a dump. torch is not imported here, so that `logitcache dump --help` is fast."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from logitcache.runtime.progress import Callbacks, OnProgress
from logitcache.runtime.settings import Settings, option

if TYPE_CHECKING:
    from torch import nn


__all__ = [
    "ENCODINGS",
    "DumpExecution",
    "DumpRequest",
    "DumpSettings",
    "EncodingSettings",
    "InputSettings",
    "SampleSettings",
    "ServerSettings",
    "TeacherSettings",
    "ViewSettings",
]

ENCODINGS = ("full", "topk", "sampled")


@dataclass(frozen=True, kw_only=True, repr=False)
class TeacherSettings(Settings):
    """The teacher's weights and classes."""

    panel = "Teacher"

    teacher_weights: str | Sequence[str] | None = option(
        None,
        form="one-or-more",
        metavar="FILE",
        help="Weights of the teacher: a safetensors file, a torch checkpoint, the name of torchvision weights, or demo for the teacher "
        "that ships with logitcache. For several teachers, pass one for each, in the same order.",
    )
    teacher_classes: int | None = option(
        None,
        metavar="N",
        minimum=2,
        shown="the classes of the data, or 1,000 with a class map",
        help="Number of classes of the teacher's output.",
    )
    class_map: str | Sequence[int] | None = option(
        None,
        metavar="FILE",
        shown="the same classes",
        help="JSON file that maps each class name of the data to the teacher's class index. Only the logits of these classes are stored. "
        "In Python, a sequence of indices is accepted too.",
    )
    average: bool = option(False, help="Store the mean logits of several teachers instead of each teacher's logits.")
    test_time_views: str = option(
        "none",
        metavar="none|flip",
        help="Test-time augmentation of the teacher: with flip, logits are averaged over an image and its mirror image.",
    )

    def __post_init__(self) -> None:
        """Check names, and convert a sequence of class indices to a tuple."""
        super().__post_init__()
        if self.class_map is not None and not isinstance(self.class_map, str):
            object.__setattr__(self, "class_map", tuple(int(number) for number in self.class_map))


@dataclass(frozen=True, kw_only=True, repr=False)
class ViewSettings(Settings):
    """The views to dump."""

    panel = "Data"

    augment: str = option(
        "none",
        metavar="RECIPE[,RECIPE]",
        help="Augmentation of the views: none, cifar, cifar-strong, imagenet, imagenet-strong, or steps like pad-crop-flip+randaugment+"
        "cutmix (docs/views.md). Two recipes separated by a comma make pairs of views.",
    )
    views: int = option(
        1,
        metavar="V",
        minimum=1,
        help="Number of views of the data set for each recipe; epoch e trains on view e mod V. A larger number extends an existing cache.",
    )
    seed: int = option(
        0, minimum=0, help="Seed for the augmentation, the choice of probe rows and the draws of sampled rows."
    )
    samples: tuple[int, int] | None = option(
        None,
        form="span",
        metavar="A:B",
        shown="all",
        help="Range of samples to dump, A to B - 1; `logitcache merge` joins partial caches.",
    )

    def __post_init__(self) -> None:
        """Check ranges."""
        super().__post_init__()
        self.check("seed", lambda seed: seed < 2**64, "below 2**64")


@dataclass(frozen=True, kw_only=True, repr=False)
class SampleSettings(Settings):
    """Samples to leave out, and options for reading samples."""

    panel = "Data"

    exclude: "str | Path | Sequence[int] | None" = option(
        None,
        form="samples",
        metavar="FILE",
        shown="none",
        conduct=True,
        help="Samples to leave out: a file with one sample per line, given by its path in an image folder or its id; or ids separated by "
        "commas. More samples can be excluded when a dump is resumed; finished work is kept.",
    )
    skip_unreadable: bool = option(
        False,
        conduct=True,
        help="Leave out samples that cannot be read, and list them at the end, instead of stopping with an error.",
    )
    check_data: bool = option(
        False,
        conduct=True,
        help="Read every sample once before the teacher runs, and list all that cannot be read.",
    )
    exif_orientation: bool = option(
        False,
        help="Rotate images according to their EXIF orientation. Part of the cache's identity, so training does the same.",
    )


@dataclass(frozen=True, kw_only=True, repr=False)
class TextSettings(Settings):
    """Options that turn text into contexts of tokens."""

    panel = "Text"

    sequence_length: int | None = option(
        None,
        metavar="TOKENS",
        minimum=2,
        shown="the longest document, for text",
        help="Maximum number of tokens in a context, which the teacher reads at a time.",
    )
    too_long: str | None = option(
        None,
        metavar="split|cut|drop",
        shown="split, for text",
        help="Treatment of documents that are longer than that: split into several contexts, cut after the first tokens, or drop.",
    )
    pack: str | None = option(
        None,
        metavar="none|stream",
        shown="none, for text",
        help="Whether the teacher reads each document separately (none), or windows of one stream of all documents (stream).",
    )
    rows: str | None = option(
        None,
        metavar="assistant|completion|all",
        shown="assistant, for text",
        help="Tokens to store logits for: completions of prompts, the assistant's turns in a chat, and every token of plain text "
        "(assistant); the same, but in a chat only the assistant's last turn (completion); or all.",
    )
    documents_by: str | None = option(
        None,
        metavar="file|blank-line",
        shown="file, for text",
        help="End of a document in a text file: the end of the file, or a blank line.",
    )
    tokenizer: str | None = option(
        None,
        metavar="hf:PATH",
        shown="that of the teacher, for text",
        help="Tokenizer for text, if it is not the teacher's.",
    )


@dataclass(frozen=True, kw_only=True, repr=False)
class EncodingSettings(Settings):
    """Encoding of the stored logits."""

    panel = "Encoding"

    encoding: str | None = option(
        None,
        metavar="full|topk|sampled",
        shown="full up to 1,000 classes, unless a number of logits is given",
        help="Contents of a stored row: the logits of every class (full), the largest logits and statistics of the others (topk), or "
        "classes drawn from the teacher's distribution (sampled), for KD at temperature 1.",
    )
    top_k: int | None = option(
        None, metavar="K", minimum=1, shown="64", help="Number of logits per row that topk stores."
    )
    draws: int | None = option(
        None,
        metavar="N",
        minimum=1,
        shown="50",
        help="Number of classes that sampled draws for each row and view, with replacement.",
    )
    proposal_temperature: float | None = option(
        None,
        metavar="T",
        shown="1",
        help="Temperature of the distribution that sampled draws from, 0.5 to 4; draws are importance-weighted to correct for it.",
    )
    precision: str = option(
        "f16",
        metavar="f32|f16|u8",
        help="Precision of stored logits: f32 is lossless, f16 takes half the space, and u8 a quarter.",
    )
    block_rows: int | None = option(
        None,
        form="python",
        minimum=1,
        shown="a number chosen by the size of a row",
        help="Number of rows per block of the cache.",
    )

    def __post_init__(self) -> None:
        """Check names."""
        super().__post_init__()
        self.check_name("encoding", "encoding", ENCODINGS)


@dataclass(frozen=True, kw_only=True, repr=False)
class InputSettings(Settings):
    """Preprocessing of the teacher."""

    panel = "Preprocessing of images"

    mean: Sequence[float] | None = option(
        None,
        form="numbers",
        metavar="R,G,B",
        shown="that of the weights or the data",
        help="Per-channel mean of the teacher's input, in [0, 1].",
    )
    std: Sequence[float] | None = option(
        None,
        form="numbers",
        metavar="R,G,B",
        shown="that of the weights or the data",
        help="Per-channel standard deviation of the teacher's input, in [0, 1].",
    )
    image_size: int | None = option(
        None,
        metavar="PIXELS",
        minimum=1,
        shown="that of the weights or the data",
        help="Height and width of the teacher's input in pixels.",
    )
    crop_pct: float | None = option(
        None,
        metavar="FRACTION",
        shown="that of the weights or the data",
        help="Fraction of the shorter side kept by the center crop when images are resized.",
    )


@dataclass(frozen=True, kw_only=True, repr=False)
class DumpExecution(Settings):
    """Batches, numerics and devices."""

    panel = "Run"

    batch_size: int | str | None = option(
        None,
        form="rows",
        metavar="SAMPLES|auto",
        shown="256 images, or 8 documents",
        help="Number of samples per forward pass of the teacher. With auto, as many as fit on a GPU.",
    )
    amp: bool = option(
        False, help="Run the teacher with automatic mixed precision in bfloat16. Part of the cache's identity."
    )
    channels_last: bool = option(
        False,
        help="Use the channels-last memory format (faster convolutions on GPUs). Part of the cache's identity.",
    )
    compiled: bool = option(
        False, flag="compile", help="Compile the teacher with torch.compile. Part of the cache's identity."
    )
    deterministic: bool = option(
        False,
        help="Use torch's deterministic algorithms, so that two dumps on the same GPU are bit-identical; slower on GPUs. Part of the "
        "cache's identity.",
    )
    device: str = option("auto", metavar="NAME", help="Device to run the teacher on: auto, cpu, cuda, cuda:1, ...")
    render_device: str = option(
        "cpu",
        metavar="cpu|teacher",
        conduct=True,
        help="Device that crops and hashes in-memory images: the host (cpu) or the teacher's device, so that a GPU waits less. The bytes "
        "are the same. Not tried on a GPU yet.",
    )
    workers: int | None = option(
        None,
        metavar="N",
        minimum=0,
        shown="a number that suits the data",
        conduct=True,
        help="Number of worker processes that decode images.",
    )
    threads: int | None = option(
        None,
        metavar="N",
        minimum=1,
        shown="torch's, or that of the unfinished cache",
        help="Number of CPU threads of a forward pass. Part of the cache's identity.",
    )
    allow_mixed: bool = option(
        False, conduct=True, help="Resume a cache that was started on another device or with other library versions."
    )

    def __post_init__(self) -> None:
        """Check the batch size and names."""
        super().__post_init__()
        self.check_name("render_device", "render device", ("cpu", "teacher"))
        self.check(
            "batch_size",
            lambda rows: rows == "auto" or (isinstance(rows, int) and not isinstance(rows, bool) and rows >= 1),
            "1 or more, or auto",
        )


@dataclass(frozen=True, kw_only=True, repr=False)
class ServerSettings(Settings):
    """Requests to a teacher behind a server."""

    panel = "Teacher behind a server"

    concurrency: int = option(
        16,
        metavar="N",
        minimum=1,
        conduct=True,
        help="Number of documents to request concurrently from a teacher behind a server.",
    )
    request_timeout: float = option(
        600.0,
        metavar="SECONDS",
        conduct=True,
        help="Seconds to wait for a server's answer before the request is retried.",
    )
    server_patience: float = option(
        1800.0,
        metavar="SECONDS",
        conduct=True,
        help="Seconds to keep retrying a server that is busy, slow or restarting before the dump stops; the same command resumes it.",
    )

    def __post_init__(self) -> None:
        """Check ranges."""
        super().__post_init__()
        self.check("request_timeout", lambda seconds: seconds > 0, "greater than 0")
        self.check("server_patience", lambda seconds: seconds >= 0, "0 or more")


@dataclass(frozen=True, kw_only=True, repr=False)
class DumpSettings(
    TeacherSettings,
    ViewSettings,
    SampleSettings,
    TextSettings,
    EncodingSettings,
    InputSettings,
    DumpExecution,
    ServerSettings,
):
    """All settings of a dump except the teacher, the data and the cache. They can be used for any number of dumps.

    The fields are the keyword arguments of `dump_logits` and the options of `logitcache dump`, which describe them.
    Use `dataclasses.replace` to change some of them.

    Raises:
        UnknownNameError: If there is no such setting, encoding or test-time augmentation.
        InputError: If a value is out of range.
    """


@dataclass(frozen=True, kw_only=True, repr=False)
class DumpRequest(Settings):
    """The arguments of a single call besides the settings: teacher, data, cache and callbacks."""

    teacher: "str | nn.Module | Sequence[str | nn.Module]" = option(
        form="one-or-more",
        metavar="NAME",
        panel="Teacher",
        help="Teacher network: a CIFAR network (resnet56, wrn-40-2, ...), torchvision:NAME, timm:NAME or package.module:factory; for "
        "text hf:PATH (a folder or hub name of transformers) or hf:FILE.gguf; or vllm:URL or sglang:URL for a model behind a server "
        "(docs/servers.md). Several teachers run in one pass; on the command line, repeat the option.",
    )
    data: Any = option(
        metavar="SPEC",
        panel="Data",
        help="Data set: fashion-mnist-mini, cifar10, cifar100, fashion-mnist (each also :test), imagefolder:PATH, webdataset:PATH, "
        "arrays:FILE.npz, hf:PATH, parquet:PATH or package.module:factory; text as text:PATH, jsonl:PATH, tokens:FILE.npz, hf:PATH or "
        "parquet:PATH (docs/names.md).",
    )
    out: str | Path = option(
        metavar="PATH",
        panel="Output",
        help="Path of the cache, a folder or s3://BUCKET/PATH. An unfinished cache is resumed.",
    )
    settings: "DumpSettings | None" = option(
        None, form="python", conduct=True, help="Settings; keyword arguments override its fields."
    )
    callbacks: Callbacks | None = option(
        None,
        form="python",
        conduct=True,
        help="Object whose methods are called after every batch. If its `should_stop` returns True, the dump commits what it has and "
        "raises CacheIncompleteError.",
    )
    should_stop: Callable[[], bool] | None = option(
        None, form="python", conduct=True, help="Function to use as `Callbacks.should_stop`."
    )
    on_progress: OnProgress | None = option(
        None, form="python", conduct=True, help="Function to use as `Callbacks.on_step`."
    )
