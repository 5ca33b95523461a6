"""A first recipe, written from the model itself: what the compiler sees, and what it must be told."""

from pathlib import Path
from typing import Final

from compiler.passes import Graph, load_graph
from skerry.manifest import TensorSpec

__all__ = ["starter_recipe"]

STATE_NAMES: Final = ("h", "c", "h0", "c0", "hn", "cn", "state", "hidden", "cell", "sr")

TEMPLATE: Final = """\
# A recipe for skerry build. Lines that begin with # are what may be said besides.
# Every key: docs/howto/write-a-recipe.md

[model]
name = "{name}"
version = "1.0.0"
file = "{file}"
description = ""

# Arrays by name, one entry per sample: an .npz, a directory of .npy, a .csv, a .parquet, or
# module:function. {arrays}
[data]
calibration = "{calibration}"  # like training data; ranges are taken from it
evaluation = "{evaluation}"    # held out: the gate judges on it, some 500 samples or more
baseline = "{baseline}"        # like ordinary service: drift is measured against it
{label}
{inputs}
[metric]
output = "{output}"  # {output_shape}{others}
name = "{metric}"  # accuracy, top_k, f1, auc, mae, rmse, iou, cosine, agreement, or module:function
{postprocess}
[gate]
max_drop = 0.01            # of the metric, worse than fp32, shown by the samples
# {least} = {least_value}         # of the metric, for every variant
# max_latency_ratio = 0.95 # to fp32's CPU time
# max_size_ratio = 0.5     # ask for bytes instead of speed
# [gate.slices.site]       # every group must hold its own
# array = "site"

[precisions]
try = "auto"  # or a list of: int8, int8-dynamic, int8-u8u8, int8-weights, fp16, int4

# [search]
# max_evaluations = 40
# max_seconds = 300

[features]  # named summaries of an input, in which drift is explained to people
{features}
{classes}
[lineage]
# data = "dvc:data@v3"
# run = ""
# git_commit = ""

[card]
text = \"\"\"
What this model is for, what it was trained on, and what it is not for.
\"\"\"
"""


def starter_recipe(model: Path, data: str = "", samples: int = 0, label: str = "label") -> str:
    """Return a commented recipe for a model.

    Args:
        model: its file.
        data: one data set to divide: a fifth to calibrate with, the rest to evaluate on.
        samples: how many it has.
        label: the array of right answers; empty where there is none.

    Raises:
        FormatError: not an ONNX model.
        RefusedError: an ONNX model that Skerry does not ship.
    """
    graph = load_graph(model)
    output = _best_output(graph)
    metric = _metric(output, labelled=bool(label))
    fed = [spec for spec in graph.inputs if not _is_state(spec)]
    names = ", ".join(f'"{spec.name}"' for spec in fed)
    fifth = min(512, max(1, samples // 5))
    classes = (
        f"[classes]\n# names = [{', '.join(repr(str(i)).replace(chr(39), chr(34)) for i in range(output.shape[-1]))}]\n"
        if metric in ("accuracy", "agreement") and 1 < output.shape[-1] <= 20
        else ""
    )
    falls = metric in ("mae", "rmse")
    return TEMPLATE.format(
        name=_name(model),
        file=model.name,
        arrays=f"This model takes: {names}.",
        calibration=f"{data}[0:{fifth}]" if data else "calibration.npz",
        evaluation=f"{data}[{fifth}:]" if data else "evaluation.npz",
        baseline=f"{data}[{fifth}:]" if data else "baseline.npz",
        label=""
        if metric in ("agreement", "cosine")
        else f'label = "{label}"  # the array of right answers\n',
        inputs=_inputs(graph),
        output=output.name,
        output_shape=_shape(output),
        others="".join(
            f"; or {spec.name} {_shape(spec)}" for spec in graph.outputs if spec is not output
        ),
        metric=metric,
        postprocess='# postprocess = "argmax"  # threshold, none: how a prediction is read\n',
        least="max_value" if falls else "min_value",
        least_value="0.5" if falls else "0.9",
        features=_features(fed),
        classes=classes,
    )


def _name(model: Path) -> str:
    plain = "".join(c if c.isalnum() and c.isascii() else "-" for c in model.stem.lower())
    name = "-".join(filter(None, plain.split("-")))[:40].strip("-")
    return name if len(name) > 2 and name[0].isalpha() else f"model-{name or 1}"


def _best_output(graph: Graph) -> TensorSpec:
    """Return the output that a prediction is most likely read from: floats, a few per sample."""
    floats = [spec for spec in graph.outputs if spec.datatype in ("FP32", "FP16", "FP64")]
    flat = [spec for spec in floats if len(spec.shape) == 2 and spec.shape[1] != 1]
    return (flat or floats or list(graph.outputs))[0]


def _metric(output: TensorSpec, *, labelled: bool) -> str:
    if output.datatype not in ("FP32", "FP16", "FP64"):
        return "agreement"
    width = output.shape[-1] if len(output.shape) == 2 else 0
    if 1 < width <= 1000:
        return "accuracy" if labelled else "agreement"
    if width == 1 or len(output.shape) == 1:
        return "mae" if labelled else "cosine"
    return "cosine"


def _is_state(spec: TensorSpec) -> bool:
    return spec.name.lower() in STATE_NAMES or (not spec.shape)


def _inputs(graph: Graph) -> str:
    lines = []
    for spec in graph.inputs:
        if _is_state(spec):
            shape = ", ".join(str(max(1, size)) for size in spec.shape)
            lines += [
                f'[inputs."{spec.name}"]  # {spec.datatype} {_shape(spec)}: state, which no data set has',
                "fill = 0.0",
                f"shape = [{shape}]",
                "",
            ]
        else:
            lines += [
                f'# [inputs."{spec.name}"]  # {spec.datatype} {_shape(spec)}',
                '# array = ""      # another array of the data, or',
                "# columns = []    # several, side by side",
                "# batch = false   # each sample goes in by itself, without a batch axis",
                "",
            ]
    return "\n".join(lines)


def _features(fed: list[TensorSpec]) -> str:
    lines = []
    for spec in fed[:1]:
        if len(spec.shape) == 4 and spec.datatype == "FP32":
            lines += [
                f'{name} = "image.{name}"' for name in ("brightness", "contrast", "sharpness")
            ]
        elif spec.datatype not in ("BYTES", "BOOL"):
            lines += ['level = "mean"', 'spread = "std"']
    return "\n".join(lines) + "\n"


def _shape(spec: TensorSpec) -> str:
    return "[" + ", ".join("n" if size < 0 else str(size) for size in spec.shape) + "]"
