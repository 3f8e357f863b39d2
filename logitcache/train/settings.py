"""Settings of a training. torch is not imported here, so that `logitcache train --help` is fast.

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

# Optimizers, and the settings below that apply to each.
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
    """The student's initial weights, and the teacher that it learns from."""

    panel = "Student and teacher"

    teacher: str | None = option(
        None,
        flag="cached-teacher",
        metavar="SLUG",
        shown="the only one",
        help="Teacher to learn from, if the cache has several; `logitcache stats` lists them.",
    )
    student_weights: str | None = option(
        None,
        metavar="FILE",
        help="File with the student's initial weights. Without it, the student is initialized at random.",
    )
    live_teacher: "bool | nn.Module" = option(
        False,
        form="flag",
        help="Run the teacher in every step, as a baseline, instead of reading its logits from the cache.",
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
        help="Distillation method, or package.module:name for your own; `logitcache methods` lists them.",
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
        help="Treatment of the classes that a top-k row leaves out: spread their probability evenly (uniform), or merge them into one "
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
    """The data, and the preprocessing of the student."""

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
        help="For text, the share of the cache's documents to hold out for evaluation after every epoch, against their labels and the "
        "teacher's rows. The last documents are held out. Replaces test data.",
    )
    loss_on: str | None = option(
        None,
        metavar="all|assistant|completion",
        shown="all rows of the cache",
        panel="Text",
        help="For text, the rows that count in the loss: all; completions and the assistant's turns in a chat (assistant); or completions "
        "and the assistant's last turn in a chat (completion).",
    )
    generate: int | None = option(
        None,
        metavar="PROMPTS",
        minimum=1,
        shown="none",
        panel="Text",
        help="For text, number of test prompts that the student completes after every epoch. `rouge_l` compares the results with the "
        "completions in the data; needs the package rouge-score.",
    )
    generate_tokens: int | None = option(
        None, metavar="N", minimum=1, shown="256", panel="Text", help="Maximum length of these completions, in tokens."
    )
    generate_temperature: float | None = option(
        None,
        metavar="T",
        shown="0, the most likely token",
        panel="Text",
        help="Sampling temperature of these completions.",
    )
    exclude: "str | Path | Sequence[int] | None" = option(
        None,
        form="samples",
        metavar="FILE",
        shown="those that the cache leaves out",
        help="Further samples to leave out: a file with one sample per line, given by its path in an image folder or its id; or ids "
        "separated by commas. The run records the ids.",
    )
    exif_orientation: bool = option(
        False,
        help="Rotate images according to their EXIF orientation when training without a cache; a cache has its own setting.",
    )
    augment: str | None = option(
        None, metavar="RECIPE", help="Augmentation for training without a cache; a cache has its own views."
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
        """Check ranges, and that the evaluation data is given only once."""
        super().__post_init__()
        self.check_name("loss_on", "rows to count", LOSSES_ON)
        self.check("holdout", lambda share: 0 < share < 1, "between 0 and 1")
        self.check("generate_temperature", lambda t: 0 <= t < math.inf, "0 or more")
        for name in ("generate_tokens", "generate_temperature"):
            if self.generate is None and getattr(self, name) is not None:
                raise InputError(f"{self.flag(name)} requires --generate PROMPTS; set both, or leave it out")
        if self.holdout is not None and self.test_data is not None:
            raise InputError(
                "--holdout and --test-data both set the evaluation data; use only one of them (test data has no cached rows to compare "
                "with)"
            )


@dataclass(frozen=True, kw_only=True, repr=False)
class Optimization(Settings):
    """The optimizer, its hyperparameters and the size of a step."""

    panel = "Optimization"

    opt: str | Callable[[Any], Any] = option(
        "sgd",
        metavar="NAME",
        help="Optimizer: sgd, adamw, adam, adamax, nadam, radam or rmsprop. In Python, also a callable that takes parameters or parameter "
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
        help="Weight decay of all parameters. A callable optimizer uses its own unless this is given.",
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
        help="Class weights in cross-entropy: balanced (inverse class frequency), numbers in the order of the classes, or a JSON file with "
        "a list of numbers or an object of names and numbers. They are scaled to a mean of 1 over the training rows.",
    )
    model_ema_decay: float | None = option(
        None,
        metavar="DECAY",
        shown="no average",
        help="Decay of an exponential moving average of the weights, which is evaluated and saved too.",
    )
    batch_size: int = option(
        64, metavar="SAMPLES", minimum=1, help="Number of samples per step (for text, sequences), over all processes."
    )
    grad_accum_steps: int = option(
        1,
        metavar="N",
        minimum=1,
        help="Number of micro-batches per batch, to save memory; their gradients are accumulated.",
    )
    drop_last: bool = option(
        False,
        help="Leave out the last batch of an epoch if it is smaller; with --memory-budget, that of each window. The samples left out "
        "differ between epochs, like the sampling order.",
    )

    def __post_init__(self) -> None:
        """Check ranges, and that the optimizer has the settings that were given."""
        if (to_list := getattr(self.class_weights, "tolist", None)) is not None:  # an array or a tensor
            object.__setattr__(self, "class_weights", to_list())
        super().__post_init__()
        if isinstance(self.opt, str):
            self.check_name("opt", "optimizer", OPTIMIZERS)
        else:
            self.check("opt", callable, "the name of an optimizer, or a callable that returns one")
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
        self.check("label_smoothing", lambda fraction: 0 <= fraction < 1, "from 0 to below 1")
        self.check("model_ema_decay", lambda decay: 0 < decay < 1, "between 0 and 1")
        self._refuse_what_the_optimizer_lacks()

    def _refuse_what_the_optimizer_lacks(self) -> None:
        given = [
            name for name in _OPTIMIZERS_OWN if getattr(self, name) is not None and getattr(self, name) is not False
        ]
        if not isinstance(self.opt, str):
            if given:
                raise InputError(
                    f"{self.flag(given[0])} cannot be set for your own optimizer; set it in the callable instead"
                )
            return
        if self.nesterov and not (self.opt == "sgd" and self.resolved_momentum):
            raise InputError("--nesterov requires SGD with momentum; leave it out, or pass --opt sgd and --momentum")
        for name in given:
            if name not in OPTIMIZERS[self.opt]:
                takes = " and ".join(map(self.flag, OPTIMIZERS[self.opt]))
                raise InputError(f"{self.flag(name)} does not apply to {self.opt}, which has {takes}; leave it out")

    @property
    def resolved_momentum(self) -> float | None:
        """Momentum in use, or None if the optimizer has none."""
        has = isinstance(self.opt, str) and "momentum" in OPTIMIZERS[self.opt]
        return _MOMENTUM if has and self.momentum is None else self.momentum

    @property
    def resolved_weight_decay(self) -> float | None:
        """Weight decay in use, or None if a callable sets it."""
        return _WEIGHT_DECAY if isinstance(self.opt, str) and self.weight_decay is None else self.weight_decay

    def record(self) -> dict[str, Any]:
        """Return the settings that affect the result, with the momentum and weight decay in use."""
        return super().record() | {"momentum": self.resolved_momentum, "weight_decay": self.resolved_weight_decay}


@dataclass(frozen=True, kw_only=True, repr=False)
class Schedule(Settings):
    """The number of epochs and the learning-rate schedule."""

    panel = "Optimization"

    epochs: int = option(
        240,
        minimum=1,
        help="Number of passes over the data set. Epoch e trains on view e mod V of a cache with V views.",
    )
    sched: str = option(
        "step",
        metavar="step|cosine|onecycle",
        help="Learning rate schedule: step decays at milestones, cosine decays to 0, and onecycle is torch's OneCycleLR.",
    )
    warmup_epochs: float = option(
        0, minimum=0, help="Number of epochs, possibly fractional, over which the learning rate grows linearly."
    )
    sequence_length: int | None = option(
        None,
        metavar="TOKENS",
        minimum=2,
        shown="that of the dump, for text",
        panel="Text",
        help="Length of the packed sequences for the student, in tokens.",
    )
    decay_milestones: Sequence[int] | None = option(
        None,
        form="integers",
        metavar="E,E,...",
        shown="62.5, 75 and 87.5 % of the epochs",
        help="Epochs after which the step schedule decays the learning rate.",
    )
    decay_rate: float = option(0.1, help="Factor by which the step schedule multiplies the learning rate.")

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
            "left out: onecycle has its own warm-up",
        )


@dataclass(frozen=True, kw_only=True, repr=False)
class Training(Optimization, Schedule):
    """All settings that affect how weights are updated."""


@dataclass(frozen=True, kw_only=True, repr=False)
class Execution(Settings):
    """Numerics, devices and memory."""

    panel = "Run"

    amp: bool = option(False, help="Run the student with automatic mixed precision.")
    amp_dtype: str = option(
        "bfloat16", metavar="bfloat16|float16", help="Data type of mixed precision; float16 uses loss scaling."
    )
    channels_last: bool = option(False, help="Use the channels-last memory format (faster convolutions on GPUs).")
    gradient_checkpointing: bool = option(
        False,
        help="Recompute the student's activations in the backward pass instead of storing them, which saves memory, takes more time and "
        "gives the same gradients. For language models, timm networks, and others with a method checkpoint_gradients(enabled=True).",
    )
    compiled: bool = option(False, flag="compile", help="Compile the student and the loss with torch.compile.")
    cuda_graph: str = option(
        "auto",
        metavar="auto|on|off",
        help="Capture whole steps as a CUDA graph and replay them, for images on a GPU. Not tried on a GPU yet, so auto means off. If on "
        "is not possible, steps run eagerly and the reason is logged.",
    )
    deterministic: bool = option(
        False,
        help="Use torch's deterministic algorithms, so that two runs on the same GPU are bit-identical; slower on GPUs.",
    )
    seed: int = option(0, minimum=0, help="Seed for the student's initial weights, dropout and the sampling order.")
    device: str = option("auto", metavar="NAME", help="Device to train on: auto, cpu, cuda, cuda:1, ...")
    workers: int | None = option(
        None,
        metavar="N",
        minimum=0,
        shown="a number that suits the data",
        conduct=True,
        help="Number of worker processes that decode images.",
    )
    checkpoint_every: int = option(
        1,
        metavar="EPOCHS",
        minimum=1,
        conduct=True,
        help="Number of epochs between checkpoints. A run that is killed loses the epochs since the last checkpoint; a run that is stopped "
        "on request loses nothing.",
    )
    keep_best: bool | None = option(
        None,
        shown="yes, with test data",
        conduct=True,
        help="Also save the weights of the epoch that is best on the test data, as student-best.safetensors.",
    )
    memory_budget: int | None = option(
        None,
        form="bytes",
        metavar="SIZE",
        shown="whole views",
        help="Memory for the teacher's rows, such as 8GB; in Python, a number of bytes. Views that need more are read and shuffled in "
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
    """All settings of a training except the cache, the student and the run. They can be used for any number of runs.

    The fields are the keyword arguments of `train_student` and the options of `logitcache train`, which describe them.
    Use `dataclasses.replace` to change some of them.

    Raises:
        UnknownNameError: If there is no such setting, optimizer or schedule.
        InputError: If a value is out of range.
    """


@dataclass(frozen=True, kw_only=True, repr=False)
class TrainRequest(Settings):
    """The arguments of a single call besides the settings: cache, student, run and callbacks."""

    panel = "Output"

    cache: "str | Path | Cache | None" = option(
        None,
        form="argument",
        help="Cache with the teacher's logits. Without one, the student is trained on labels alone, with the method ce and a data set.",
    )
    student: "str | nn.Module | None" = option(
        None,
        metavar="NAME",
        panel="Student and teacher",
        help="Student network: a CIFAR network (resnet8, ...), torchvision:NAME, timm:NAME or package.module:factory.",
    )
    settings: "TrainSettings | None" = option(
        None, form="python", conduct=True, help="Settings; keyword arguments override its fields."
    )
    log_to: Sequence[str] | None = option(
        None,
        form="repeated",
        metavar="NAME",
        conduct=True,
        help="Logger of metrics besides metrics.jsonl: csv, tensorboard or wandb; repeatable. A resumed run keeps its loggers.",
    )
    resume: bool = option(
        False,
        conduct=True,
        help="Resume a stopped run with its own settings. The result is the same as without the stop. With more --epochs, a finished run "
        "is extended.",
    )
    extend: str | None = option(
        None,
        metavar="continue|stretch",
        shown="required if the choice matters",
        conduct=True,
        help="Schedule of a run that is resumed with more epochs: continue keeps its schedule, which stays where it ended; stretch follows "
        "the schedule of a run with the new number of epochs from here on.",
    )
    out: str | Path | None = option(
        None,
        metavar="RUN",
        shown="a new folder in runs/",
        conduct=True,
        help="Folder of the run, for its weights, metrics and settings.",
    )
    callbacks: Callbacks | None = option(
        None,
        form="python",
        conduct=True,
        help="Object whose methods are called after steps and epochs. If its `should_stop` returns True, the run saves its state and "
        "raises StoppedError.",
    )
    should_stop: Callable[[], bool] | None = option(
        None, form="python", conduct=True, help="Function to use as `Callbacks.should_stop`."
    )
    on_progress: OnProgress | None = option(
        None, form="python", conduct=True, help="Function to use as `Callbacks.on_step`."
    )
    on_epoch: Callable[[EpochMetrics], None] | None = option(
        None, form="python", conduct=True, help="Function to use as `Callbacks.on_epoch`."
    )

    def __post_init__(self) -> None:
        """Check names."""
        super().__post_init__()
        self.check_name("extend", "way to extend a schedule", EXTENSIONS)
