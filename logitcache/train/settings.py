"""The settings of a training (no torch, so that `logitcache train --help` stays fast).

The defaults are the CIFAR-100 recipe of the papers: 240 epochs of SGD in batches of 64.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from logitcache.errors import InputError
from logitcache.runtime.progress import Callbacks, OnProgress
from logitcache.runtime.settings import Settings, option
from logitcache.train.metrics import EpochMetrics

if TYPE_CHECKING:
    from torch import nn

    from logitcache.store import Cache

__all__ = [
    "EXTENSIONS",
    "LOSSES_ON",
    "OPTIMIZERS",
    "SCHEDULES",
    "DataSettings",
    "Execution",
    "MethodSettings",
    "NetworkSettings",
    "Optimization",
    "Schedule",
    "TrainRequest",
    "TrainSettings",
    "Training",
]

# Each optimizer with those of the settings below that it has.
OPTIMIZERS: dict[str, tuple[str, ...]] = {
    "adam": ("betas", "eps"),
    "adamax": ("betas", "eps"),
    "adamw": ("betas", "eps"),
    "nadam": ("betas", "eps"),
    "radam": ("betas", "eps"),
    "rmsprop": ("momentum", "eps"),
    "sgd": ("momentum", "nesterov"),
}
SCHEDULES = ("cosine", "onecycle", "step")
EXTENSIONS = ("continue", "stretch")
CUDA_GRAPHS = ("auto", "on", "off")
LOSSES_ON = ("all", "assistant", "completion")
_OPTIMIZERS_OWN = ("momentum", "nesterov", "betas", "eps")
_MOMENTUM = 0.9
_WEIGHT_DECAY = 5e-4


@dataclass(frozen=True, kw_only=True, repr=False)
class NetworkSettings(Settings):
    """The student's initial weights, and which teacher it learns from."""

    panel = "Student and teacher"

    teacher: str | None = option(
        None,
        flag="cached-teacher",
        metavar="SLUG",
        shown="the only one",
        help="Teacher to learn from, if the cache holds several; `logitcache stats` lists them.",
    )
    student_weights: str | None = option(
        None, metavar="FILE", help="File with the weights that the student starts from, instead of random ones."
    )
    live_teacher: "bool | nn.Module" = option(
        False,
        form="flag",
        help="Run the teacher in every step instead of reading its logits from the cache, as a baseline.",
    )
    teacher_weights: str | None = option(
        None,
        metavar="FILE",
        shown="the file used for the dump",
        help="File with the live teacher's weights, if it has moved.",
    )


@dataclass(frozen=True, kw_only=True, repr=False)
class MethodSettings(Settings):
    """The distillation method and the weights of its terms."""

    panel = "Method"

    method: str | Any = option(
        "kd",
        metavar="NAME",
        help="Distillation method, or package.module:name for one of your own; `logitcache methods` lists them.",
    )
    parameters: Mapping[str, Any] | None = option(
        None,
        flag="set",
        form="assignments",
        metavar="NAME=VALUE",
        help="Hyperparameter of the method; repeatable. In Python, a mapping.",
    )
    preset: str | None = option(
        None,
        metavar="NAME",
        help="Preset of the method's hyperparameters, from its paper; `logitcache methods NAME` lists them.",
    )
    refine: str | None = option(
        None,
        metavar="loca|swap|none",
        shown="the method's own",
        help="Correction of the teacher's logits by the label.",
    )
    standardize: bool | None = option(
        None, shown="the method's own", help="Standardize the logits of both networks to z-scores over the classes."
    )
    temperature: float | str | tuple[float | str, ...] | None = option(
        None,
        form="value",
        metavar="T",
        shown="the method's own",
        help="Softmax temperature: a number, several separated by commas, adaptive or deviation.",
    )
    tail: str | None = option(
        None,
        metavar="uniform|bucket",
        shown="uniform",
        help="Treatment of classes that a top-k cache does not keep: share their probability evenly (uniform), or merge them into one "
        "class (bucket).",
    )
    pair_views: bool | None = option(
        None,
        shown="what the method's paper does, if the cache has pairs",
        help="Sum the loss over both views of a pair in every step.",
    )
    ce_weight: float | None = option(
        None, metavar="W", shown="the method's own", help="Weight of the cross-entropy with the labels."
    )
    kd_weight: float | None = option(
        None, metavar="W", shown="the method's own", help="Weight of the distillation loss."
    )
    kd_warmup: float | None = option(
        None,
        metavar="FRACTION",
        shown="the method's own",
        help="Fraction of the epochs over which the weight of the distillation loss grows linearly from 0.",
    )


@dataclass(frozen=True, kw_only=True, repr=False)
class DataSettings(Settings):
    """The images, and the preprocessing for the student."""

    panel = "Data"

    data: Any = option(
        None,
        metavar="SPEC",
        shown="the data used for the dump",
        help="Training data, if it has moved since the dump or if there is no cache.",
    )
    test_data: Any = option(
        None,
        metavar="SPEC",
        shown="the test split of the training data",
        help="Data to evaluate the student on after every epoch.",
    )
    holdout: float | None = option(
        None,
        metavar="SHARE",
        shown="no share",
        panel="Text",
        help="For text, the share of the cache's documents, the last ones, that is not trained on but evaluated after every epoch, against "
        "their labels and the teacher's rows; in the place of test data.",
    )
    loss_on: str | None = option(
        None,
        metavar="all|assistant|completion",
        shown="all rows of the cache",
        panel="Text",
        help="For text, the rows that count, where a cache has others too: all; completions, and whatever the assistant says in a chat "
        "(assistant); or completions, and of a chat the last that it says (completion).",
    )
    generate: int | None = option(
        None,
        metavar="PROMPTS",
        minimum=1,
        shown="none",
        panel="Text",
        help="For text, number of test prompts, the first ones, that the student completes after every epoch. `rouge_l` compares with the "
        "completions of the data; needs the package rouge-score.",
    )
    generate_tokens: int | None = option(
        None, metavar="N", minimum=1, shown="256", panel="Text", help="Most tokens of such a completion."
    )
    generate_temperature: float | None = option(
        None,
        metavar="T",
        shown="0, the most likely token",
        panel="Text",
        help="Temperature at which tokens of such a completion are drawn.",
    )
    exclude: "str | Path | Sequence[int] | None" = option(
        None,
        form="samples",
        metavar="FILE",
        shown="those that the cache leaves out",
        help="More samples to leave out: a file with one a line, its path in an image folder or its number in the data set; or numbers "
        "separated by commas. The run records the numbers.",
    )
    exif_orientation: bool = option(
        False,
        help="Turn images as their EXIF orientation says, when training without a cache; a cache says it itself.",
    )
    augment: str | None = option(
        None, metavar="RECIPE", help="Augmentation for training without a cache; a cache has its own."
    )
    mean: Sequence[float] | None = option(
        None,
        form="numbers",
        metavar="R,G,B",
        shown="that of the weights or the teacher",
        panel="Preprocessing of images",
        help="Per-channel mean of the student's input, in [0, 1].",
    )
    std: Sequence[float] | None = option(
        None,
        form="numbers",
        metavar="R,G,B",
        shown="that of the weights or the teacher",
        panel="Preprocessing of images",
        help="Per-channel standard deviation of the student's input, in [0, 1].",
    )
    image_size: int | None = option(
        None,
        metavar="PIXELS",
        minimum=1,
        shown="that of the weights or the teacher",
        panel="Preprocessing of images",
        help="Height and width of the student's input in pixels.",
    )
    crop_pct: float | None = option(
        None,
        metavar="FRACTION",
        shown="that of the weights or the teacher",
        panel="Preprocessing of images",
        help="Fraction of the shorter side kept by the center crop when images are resized.",
    )

    def __post_init__(self) -> None:
        """Check that what is evaluated is said once."""
        super().__post_init__()
        self.check_name("loss_on", "rows to count", LOSSES_ON)
        self.check("holdout", lambda share: 0 < share < 1, "a share between 0 and 1")
        self.check("generate_temperature", lambda t: 0 <= t < math.inf, "0 or more")
        for name in ("generate_tokens", "generate_temperature"):
            if self.generate is None and getattr(self, name) is not None:
                raise InputError(f"{self.flag(name)} says how prompts are completed: give --generate PROMPTS too")
        if self.holdout is not None and self.test_data is not None:
            raise InputError(
                "--holdout and --test-data each say what is evaluated: give one of them (test data has no cached rows to compare with)"
            )


@dataclass(frozen=True, kw_only=True, repr=False)
class Optimization(Settings):
    """The optimizer, its hyperparameters and the size of a step."""

    panel = "Optimization"

    opt: str | Callable[[Any], Any] = option(
        "sgd",
        metavar="NAME",
        help="Optimizer: sgd, adamw, adam, adamax, nadam, radam or rmsprop. In Python also a callable that takes parameters or parameter "
        "groups and returns a torch optimizer; the schedule sets its learning rate.",
    )
    lr: float = option(0.05, help="Peak learning rate.")
    momentum: float | None = option(None, shown="0.9", help="Momentum of SGD and RMSprop.")
    nesterov: bool = option(False, help="Use Nesterov momentum with SGD.")
    betas: Sequence[float] | None = option(
        None,
        form="numbers",
        metavar="B1,B2",
        shown="torch's",
        help="Decay rates of the moment estimates of Adam and its variants.",
    )
    eps: float | None = option(
        None,
        shown="torch's",
        help="Term added to the denominator by Adam, its variants and RMSprop for numerical stability.",
    )
    weight_decay: float | None = option(
        None,
        shown="0.0005",
        help="Weight decay of all parameters. A callable optimizer has its own, unless this is given.",
    )
    norm_weight_decay: float | None = option(
        None, shown="the weight decay", help="Weight decay of biases and normalization layers."
    )
    clip_grad: float | None = option(
        None, metavar="NORM", shown="no limit", help="Maximum norm of the gradient; larger gradients are scaled down."
    )
    label_smoothing: float = option(
        0.0, metavar="FRACTION", help="Label smoothing of the cross-entropy, from 0 to below 1."
    )
    class_weights: "str | Sequence[float] | Mapping[str, float] | None" = option(
        None,
        form="value",
        metavar="balanced|FILE|W,W,...",
        shown="all the same",
        help="Weights of the classes in cross-entropy: balanced (inverse to their number of rows), numbers in the order of the classes, or "
        "a JSON file with a list or an object of names and numbers. They are scaled to a mean of 1 over the training rows.",
    )
    model_ema_decay: float | None = option(
        None,
        metavar="DECAY",
        shown="no average",
        help="Decay of an exponential moving average of the weights, which is evaluated and saved as well.",
    )
    batch_size: int = option(
        64, metavar="SAMPLES", minimum=1, help="Samples per step, over all processes; of text, sequences."
    )
    grad_accum_steps: int = option(
        1,
        metavar="N",
        minimum=1,
        help="Number of parts a batch is split into if it does not fit into memory; their gradients are accumulated.",
    )
    drop_last: bool = option(
        False,
        help="Leave out the last batch of an epoch if it is smaller than the others; with --memory-budget, that of each window. "
        "The samples left out differ from epoch to epoch, as their order does.",
    )

    def __post_init__(self) -> None:
        """Check ranges, and that the optimizer has the settings that were given."""
        if (to_list := getattr(self.class_weights, "tolist", None)) is not None:  # an array or a tensor
            object.__setattr__(self, "class_weights", to_list())
        super().__post_init__()
        if isinstance(self.opt, str):
            self.check_name("opt", "optimizer", OPTIMIZERS)
        else:
            self.check("opt", callable, "the name of an optimizer, or a callable that makes one")
        self.check("lr", lambda lr: 0 < lr < math.inf, "greater than 0")
        self.check("momentum", lambda momentum: 0 <= momentum < 1, "from 0 to below 1")
        self.check(
            "betas",
            lambda betas: len(betas) == 2 and all(0 <= beta < 1 for beta in betas),
            "two numbers from 0 to below 1",
        )
        self.check("eps", lambda eps: 0 <= eps < math.inf, "0 or more")
        for name in ("weight_decay", "norm_weight_decay"):
            self.check(name, lambda decay: 0 <= decay < math.inf, "0 or more")
        self.check("clip_grad", lambda norm: norm > 0, "greater than 0")
        self.check("label_smoothing", lambda fraction: 0 <= fraction < 1, "a share from 0 to below 1")
        self.check("model_ema_decay", lambda decay: 0 < decay < 1, "between 0 and 1")
        self._refuse_what_the_optimizer_lacks()

    def _refuse_what_the_optimizer_lacks(self) -> None:
        given = [
            name for name in _OPTIMIZERS_OWN if getattr(self, name) is not None and getattr(self, name) is not False
        ]
        if not isinstance(self.opt, str):
            if given:
                raise InputError(
                    f"{self.flag(given[0])} cannot be set for an optimizer of your own: give it to the callable instead"
                )
            return
        if self.nesterov and not (self.opt == "sgd" and self.resolved_momentum):
            raise InputError(
                "--nesterov is a way of SGD with momentum: leave it out, or give --opt sgd and a --momentum"
            )
        for name in given:
            if name not in OPTIMIZERS[self.opt]:
                takes = " and ".join(map(self.flag, OPTIMIZERS[self.opt]))
                raise InputError(f"{self.flag(name)} is no setting of {self.opt}, which has {takes}: leave it out")

    @property
    def resolved_momentum(self) -> float | None:
        """The momentum in use, or None if the optimizer has none."""
        has = isinstance(self.opt, str) and "momentum" in OPTIMIZERS[self.opt]
        return _MOMENTUM if has and self.momentum is None else self.momentum

    @property
    def resolved_weight_decay(self) -> float | None:
        """The weight decay in use, or None if it is up to a callable."""
        return _WEIGHT_DECAY if isinstance(self.opt, str) and self.weight_decay is None else self.weight_decay

    def record(self) -> dict[str, Any]:
        """Return what decides the result, with the momentum and weight decay in use."""
        return super().record() | {"momentum": self.resolved_momentum, "weight_decay": self.resolved_weight_decay}


@dataclass(frozen=True, kw_only=True, repr=False)
class Schedule(Settings):
    """The number of epochs and the learning rate over them."""

    panel = "Optimization"

    epochs: int = option(
        240,
        minimum=1,
        help="Number of passes over the data set. Epoch e trains on view e mod V of a cache with V views.",
    )
    sched: str = option(
        "step",
        metavar="step|cosine|onecycle",
        help="Learning rate schedule: step falls at milestones, cosine falls to 0, and onecycle is torch's OneCycleLR.",
    )
    warmup_epochs: float = option(
        0, minimum=0, help="Number of epochs, or part of one, over which the learning rate grows linearly."
    )
    sequence_length: int | None = option(
        None,
        metavar="TOKENS",
        minimum=2,
        shown="that of the dump, for text",
        panel="Text",
        help="Tokens of the sequences that documents are packed into for the student.",
    )
    decay_milestones: Sequence[int] | None = option(
        None,
        form="integers",
        metavar="E,E,...",
        shown="62.5, 75 and 87.5 % of the epochs",
        help="Epochs after which the step schedule lowers the learning rate.",
    )
    decay_rate: float = option(0.1, help="Factor by which the step schedule lowers the learning rate.")

    def __post_init__(self) -> None:
        """Check names and ranges."""
        super().__post_init__()
        self.check_name("sched", "schedule", SCHEDULES)
        self.check("decay_rate", lambda rate: 0 <= rate < math.inf, "0 or more")
        self.check("warmup_epochs", lambda epochs: epochs <= self.epochs, "from 0 to the number of epochs")
        self.check("decay_milestones", lambda epochs: all(one >= 0 for one in epochs), "0 or more each")
        self.check(
            "warmup_epochs",
            lambda epochs: self.sched != "onecycle" or epochs == 0,
            "left out: onecycle warms up itself",
        )


@dataclass(frozen=True, kw_only=True, repr=False)
class Training(Optimization, Schedule):
    """All that decides how weights are updated."""


@dataclass(frozen=True, kw_only=True, repr=False)
class Execution(Settings):
    """Numerics, devices and memory."""

    panel = "Run"

    amp: bool = option(False, help="Run the student under automatic mixed precision.")
    amp_dtype: str = option(
        "bfloat16", metavar="bfloat16|float16", help="Data type of mixed precision. With float16 the loss is scaled."
    )
    channels_last: bool = option(
        False, help="Use the channels-last memory format, which makes convolutions on GPUs faster."
    )
    gradient_checkpointing: bool = option(
        False,
        help="Recompute the student's activations in the backward pass instead of keeping them: less memory for more time, and the same "
        "gradients. For language models, networks of timm, and others with a method checkpoint_gradients(enabled=True).",
    )
    compiled: bool = option(False, flag="compile", help="Compile the student and the loss with torch.compile.")
    cuda_graph: str = option(
        "auto",
        metavar="auto|on|off",
        help="Capture a whole step as a CUDA graph and replay it, for images in memory on a GPU. It is not yet seen on a GPU, so auto is "
        "off. Where on cannot be done, steps are called one kernel after the other, and one line says why.",
    )
    deterministic: bool = option(
        False,
        help="Train with torch's deterministic algorithms, so that two runs on one GPU have the same bits; slower there.",
    )
    seed: int = option(
        0, minimum=0, help="Seed of the student's initial weights, of dropout and of the order of samples."
    )
    device: str = option("auto", metavar="NAME", help="Device to train on: auto, cpu, cuda, cuda:1, ...")
    workers: int | None = option(
        None,
        metavar="N",
        minimum=0,
        shown="a number that suits the data",
        conduct=True,
        help="Number of processes that decode images.",
    )
    checkpoint_every: int = option(
        1,
        metavar="EPOCHS",
        minimum=1,
        conduct=True,
        help="Epochs between two checkpoints. A run that is killed loses the epochs since the last one; one that is asked to stop loses "
        "nothing.",
    )
    keep_best: bool | None = option(
        None,
        shown="yes, with test data",
        conduct=True,
        help="Keep the weights of the epoch that is best on the test data too, as student-best.safetensors.",
    )
    memory_budget: int | None = option(
        None,
        form="bytes",
        metavar="SIZE",
        shown="whole views",
        help="Memory for decoded teacher logits, such as 8GB; in Python a number of bytes. Views that need more are read and shuffled in "
        "windows.",
    )

    def __post_init__(self) -> None:
        """Check the seed and the data type."""
        super().__post_init__()
        self.check("seed", lambda seed: seed < 2**63, "below 2**63")
        self.check("amp_dtype", lambda dtype: dtype in ("bfloat16", "float16"), "bfloat16 or float16")
        self.check("amp_dtype", lambda dtype: self.amp or dtype == "bfloat16", "left out without --amp")
        self.check("cuda_graph", lambda way: way in CUDA_GRAPHS, "auto, on or off")


@dataclass(frozen=True, kw_only=True, repr=False)
class TrainSettings(NetworkSettings, MethodSettings, DataSettings, Training, Execution):
    """All settings of a training but the cache, the student and the run; reusable for any number of runs.

    The fields are the keyword arguments of `train_student` and the options of `logitcache train`, where each is
    described. Use `dataclasses.replace` to change some of them.

    Raises:
        UnknownNameError: There is no such setting, optimizer or schedule.
        InputError: A value is out of range.
    """


@dataclass(frozen=True, kw_only=True, repr=False)
class TrainRequest(Settings):
    """What a single call adds to the settings: the cache, the student, the run, and who is told of it."""

    panel = "Output"

    cache: "str | Path | Cache | None" = option(
        None,
        form="argument",
        help="Cache with the teacher's logits. None trains on labels alone, with the method ce and a data set.",
    )
    student: "str | nn.Module | None" = option(
        None,
        metavar="NAME",
        panel="Student and teacher",
        help="Student network: a CIFAR network (resnet8, ...), torchvision:NAME, timm:NAME or package.module:factory.",
    )
    settings: "TrainSettings | None" = option(
        None, form="python", conduct=True, help="Settings; keyword arguments replace fields of it."
    )
    log_to: Sequence[str] | None = option(
        None,
        form="repeated",
        metavar="NAME",
        conduct=True,
        help="Where to log metrics besides metrics.jsonl: csv, tensorboard or wandb; repeatable. A resumed run goes on as before.",
    )
    resume: bool = option(
        False,
        conduct=True,
        help="Continue a stopped run, with the settings it was begun with. It ends as if it had not been stopped. With more --epochs, a "
        "finished one is trained on, too.",
    )
    extend: str | None = option(
        None,
        metavar="continue|stretch",
        shown="asked for where it matters",
        conduct=True,
        help="Schedule of a run that is resumed with more epochs than it had: continue keeps the schedule it was begun with, which stays "
        "where it ended; stretch follows, from here on, the schedule of a run with the new number of epochs.",
    )
    out: str | Path | None = option(
        None,
        metavar="RUN",
        shown="a new folder in runs/",
        conduct=True,
        help="Folder for the weights, metrics and settings of the run.",
    )
    callbacks: Callbacks | None = option(
        None,
        form="python",
        conduct=True,
        help="Object whose methods are called after steps and epochs, and asked whether to stop. A run that is asked to stop saves its "
        "state and raises StoppedError.",
    )
    should_stop: Callable[[], bool] | None = option(
        None, form="python", conduct=True, help="Function called as `Callbacks.should_stop`."
    )
    on_progress: OnProgress | None = option(
        None, form="python", conduct=True, help="Function called as `Callbacks.on_step`."
    )
    on_epoch: Callable[[EpochMetrics], None] | None = option(
        None, form="python", conduct=True, help="Function called as `Callbacks.on_epoch`."
    )

    def __post_init__(self) -> None:
        """Check names."""
        super().__post_init__()
        self.check_name("extend", "way to extend a schedule", EXTENSIONS)
