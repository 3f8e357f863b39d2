"""The settings of a dump (no torch, so that `logitcache dump --help` stays fast)."""

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
        "that ships with logitcache. For several teachers, one each in the same order.",
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
        help="JSON file that maps the name of each class of the data to the teacher's class number. Only the logits of these classes are "
        "stored. In Python also the numbers in order.",
    )
    average: bool = option(False, help="Store the mean of the logits of several teachers instead of those of each.")
    test_time_views: str = option(
        "none",
        metavar="none|flip",
        help="Test-time augmentation of the teacher: with flip, logits are averaged over an image and its mirror image.",
    )

    def __post_init__(self) -> None:
        """Check names, and accept any sequence of class numbers."""
        super().__post_init__()
        if self.class_map is not None and not isinstance(self.class_map, str):
            object.__setattr__(self, "class_map", tuple(int(number) for number in self.class_map))


@dataclass(frozen=True, kw_only=True, repr=False)
class ViewSettings(Settings):
    """The views that the teacher is shown."""

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
        help="Number of views of the whole data set for each recipe; epoch e trains on view e mod V. A larger number extends a cache.",
    )
    seed: int = option(0, minimum=0, help="Seed of the augmentation, of the choice of probe rows and of draws.")
    samples: tuple[int, int] | None = option(
        None,
        form="span",
        metavar="A:B",
        shown="all",
        help="Range of samples to dump, from A to B - 1; `logitcache merge` joins such caches.",
    )

    def __post_init__(self) -> None:
        """Check ranges."""
        super().__post_init__()
        self.check("seed", lambda seed: seed < 2**64, "below 2**64")


@dataclass(frozen=True, kw_only=True, repr=False)
class SampleSettings(Settings):
    """The samples that are left out, and how they are read."""

    panel = "Data"

    exclude: "str | Path | Sequence[int] | None" = option(
        None,
        form="samples",
        metavar="FILE",
        shown="none",
        conduct=True,
        help="Samples to leave out: a file with one a line, its path in an image folder or its number in the data set; or numbers "
        "separated by commas. A dump that was begun goes on with more of them, and keeps what it has.",
    )
    skip_unreadable: bool = option(
        False,
        conduct=True,
        help="Leave out samples that cannot be read, and list them at the end, instead of stopping.",
    )
    check_data: bool = option(
        False,
        conduct=True,
        help="Read every sample once before the teacher runs, and name all that cannot be read.",
    )
    exif_orientation: bool = option(
        False,
        help="Turn images as their EXIF orientation says; part of the cache's identity, so that training does so too.",
    )


@dataclass(frozen=True, kw_only=True, repr=False)
class TextSettings(Settings):
    """How text becomes contexts of tokens, of which each target is a row."""

    panel = "Text"

    sequence_length: int | None = option(
        None,
        metavar="TOKENS",
        minimum=2,
        shown="the longest document, for text",
        help="Most tokens that the teacher reads at a time.",
    )
    too_long: str | None = option(
        None,
        metavar="split|cut|drop",
        shown="split, for text",
        help="What is done with documents of more tokens: split into several, cut after the first, or dropped.",
    )
    pack: str | None = option(
        None,
        metavar="none|stream",
        shown="none, for text",
        help="Whether the teacher reads each document alone (none), or all of them as one stream cut into windows (stream).",
    )
    rows: str | None = option(
        None,
        metavar="assistant|completion|all",
        shown="assistant, for text",
        help="Tokens to store logits for: completions of prompts, whatever the assistant says in a chat, and every token of plain text "
        "(assistant); the same, but of a chat only the last that it says (completion); or all.",
    )
    documents_by: str | None = option(
        None,
        metavar="file|blank-line",
        shown="file, for text",
        help="Where a document of a text file ends: with the file, or at a blank line.",
    )
    tokenizer: str | None = option(
        None,
        metavar="hf:PATH",
        shown="that of the teacher, for text",
        help="Tokenizer that makes tokens of text, if it is not the teacher's.",
    )


@dataclass(frozen=True, kw_only=True, repr=False)
class EncodingSettings(Settings):
    """How logits are stored."""

    panel = "Encoding"

    encoding: str | None = option(
        None,
        metavar="full|topk|sampled",
        shown="full up to 1,000 classes, unless a number of logits is given",
        help="What to store of a row: the logits of every class (full), the largest with statistics of the others (topk), or classes drawn "
        "from the teacher's distribution (sampled), which serve KD at temperature 1.",
    )
    top_k: int | None = option(
        None, metavar="K", minimum=1, shown="64", help="Number of the largest logits that topk stores."
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
        help="Temperature of the distribution that sampled draws from, 0.5 to 4; each draw then weighs by what it should have been.",
    )
    precision: str = option(
        "f16",
        metavar="f32|f16|u8",
        help="Precision of stored logits: f32 is lossless, f16 takes half of its space, and u8 a quarter.",
    )
    block_rows: int | None = option(
        None,
        form="python",
        minimum=1,
        shown="a number chosen by the size of a row",
        help="Rows per block of the cache.",
    )

    def __post_init__(self) -> None:
        """Check names."""
        super().__post_init__()
        self.check_name("encoding", "encoding", ENCODINGS)


@dataclass(frozen=True, kw_only=True, repr=False)
class InputSettings(Settings):
    """The preprocessing for the teacher."""

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
        help="Samples per forward pass of the teacher. With auto, as many as fit on a GPU.",
    )
    amp: bool = option(
        False, help="Run the teacher in bfloat16 under automatic mixed precision; part of the cache's identity."
    )
    channels_last: bool = option(
        False,
        help="Use the channels-last memory format, which makes convolutions on GPUs faster; part of the cache's identity.",
    )
    compiled: bool = option(
        False, flag="compile", help="Compile the teacher with torch.compile; part of the cache's identity."
    )
    deterministic: bool = option(
        False,
        help="Run the teacher with torch's deterministic algorithms, so that two dumps on one GPU have the same bits; slower there, and "
        "part of the cache's identity.",
    )
    device: str = option("auto", metavar="NAME", help="Device to run the teacher on: auto, cpu, cuda, cuda:1, ...")
    render_device: str = option(
        "cpu",
        metavar="cpu|teacher",
        conduct=True,
        help="Where images that are in memory are cropped and hashed: on the host (cpu) or on the device of the teacher, which a GPU then "
        "waits for less. The bytes are the same. Not tried on a GPU yet.",
    )
    workers: int | None = option(
        None,
        metavar="N",
        minimum=0,
        shown="a number that suits the data",
        conduct=True,
        help="Number of processes that decode images.",
    )
    threads: int | None = option(
        None,
        metavar="N",
        minimum=1,
        shown="torch's, or those the cache was begun with",
        help="CPU threads of a forward pass; part of the cache's identity.",
    )
    allow_mixed: bool = option(
        False, conduct=True, help="Continue a cache that was begun on another device or with other library versions."
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
    """How a teacher behind a server is asked."""

    panel = "Teacher behind a server"

    concurrency: int = option(
        16,
        metavar="N",
        minimum=1,
        conduct=True,
        help="Documents that a teacher behind a server is asked about at once.",
    )
    request_timeout: float = option(
        600.0, metavar="SECONDS", conduct=True, help="Seconds to wait for a server's answer before asking again."
    )
    server_patience: float = option(
        1800.0,
        metavar="SECONDS",
        conduct=True,
        help="Seconds for which a server that is busy, slow or restarting is asked again before the dump stops; the same command continues "
        "it.",
    )

    def __post_init__(self) -> None:
        """Check ranges."""
        super().__post_init__()
        self.check("request_timeout", lambda seconds: seconds > 0, "above 0")
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
    """All settings of a dump but the teacher, the data and the cache; reusable for any number of dumps.

    The fields are the keyword arguments of `dump_logits` and the options of `logitcache dump`, where each is described.
    Use `dataclasses.replace` to change some of them.

    Raises:
        UnknownNameError: There is no such setting, encoding or test-time augmentation.
        InputError: A value is out of range.
    """


@dataclass(frozen=True, kw_only=True, repr=False)
class DumpRequest(Settings):
    """What a single call adds to the settings: the teacher, the data, the cache, and who is told of it."""

    teacher: "str | nn.Module | Sequence[str | nn.Module]" = option(
        form="one-or-more",
        metavar="NAME",
        panel="Teacher",
        help="Teacher network: a CIFAR network (resnet56, wrn-40-2, ...), torchvision:NAME, timm:NAME or package.module:factory; for "
        "text hf:PATH, a folder or name of transformers, or hf:FILE.gguf; or vllm:URL or sglang:URL, a model behind a server "
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
        help="Path of the cache, a folder or s3://BUCKET/PATH. A dump that was stopped there is continued.",
    )
    settings: "DumpSettings | None" = option(
        None, form="python", conduct=True, help="Settings; keyword arguments replace fields of it."
    )
    callbacks: Callbacks | None = option(
        None,
        form="python",
        conduct=True,
        help="Object whose methods are called after every batch, and asked after every block whether to stop. A dump that is asked to "
        "stop commits what it has and raises CacheIncompleteError.",
    )
    should_stop: Callable[[], bool] | None = option(
        None, form="python", conduct=True, help="Function called as `Callbacks.should_stop`."
    )
    on_progress: OnProgress | None = option(
        None, form="python", conduct=True, help="Function called as `Callbacks.on_step`."
    )
