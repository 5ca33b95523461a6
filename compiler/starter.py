"""A first recipe, written from the model itself: what the compiler sees, and what it must be told."""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec

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
file = {file}
description = ""

# Arrays by name, one entry per sample: an .npz, a directory of .npy, a .csv, a .parquet, or
# module:function. {arrays}
[data]
calibration = {calibration}  # like training data; ranges are taken from it
evaluation = {evaluation}    # held out: the gate judges on it, some 500 samples or more
baseline = {baseline}        # like ordinary service: drift is measured against it
# baseline_slices = ["site"] # arrays of the baseline data: a device is held against its own group
{label}
{inputs}
[metric]
output = {output}  # {output_shape}{others}
name = "{metric}"  # accuracy, top_k, f1, auc, mae, rmse, iou, cosine, agreement, or module:function
{postprocess}
[gate]
max_drop = 0.01            # of the metric, worse than fp32, shown by the samples{unit}
# {least} = {least_value}         # of the metric, for every variant
# max_latency_ratio = 0.95 # to fp32's CPU time
# max_size_ratio = 0.5     # ask for bytes instead of speed
# [gate.slices.site]       # every group must hold its own
# array = "site"

[precisions]
try = "auto"  # or a list of: int8, int8-tensor, int8-heavy, int8-dynamic, int8-u8u8, int8-weights, fp16, int4

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


def starter_recipe(
    model: Path,
    data: str = "",
    samples: int = 0,
    label: str = "label",
    classes: Sequence[str] = (),
) -> str:
    """Return a commented recipe for a model.

    Args:
        model: its file.
        data: one data set to divide: a fifth to calibrate with, the rest to evaluate on.
        samples: how many it has.
        label: the array of right answers; empty where there is none.
        classes: what these say, where they are text, in the order that most libraries give them.

    Raises:
        FormatError: not an ONNX model.
        RefusedError: an ONNX model that Skerry does not ship.
    """
    graph = load_graph(model)
    output = _best_output(graph, labelled=bool(label))
    metric = _metric(output, labelled=bool(label))
    fed = [spec for spec in graph.inputs if not _is_state(spec)]
    names = ", ".join(_text(spec.name) for spec in fed)
    fifth = min(512, max(1, samples // 5))
    width = output.shape[-1] if len(output.shape) == 2 else 0
    named = ""
    if metric in ("accuracy", "agreement") and 1 < width <= 20:
        given = list(classes) if len(classes) == width else [str(i) for i in range(width)]
        mark = "" if len(classes) == width else "# "  # labels of text need them
        named = f"[classes]\n{mark}names = [{', '.join(map(_text, given))}]\n"
    falls = metric in ("mae", "rmse")
    return TEMPLATE.format(
        name=_name(model),
        file=_text(model.name),
        unit=", in the output's own unit" if falls else "",
        arrays=f"This model takes: {names}.",
        calibration=_text(f"{data}[0:{fifth}]" if data else "calibration.npz"),
        evaluation=_text(f"{data}[{fifth}:]" if data else "evaluation.npz"),
        baseline=_text(f"{data}[{fifth}:]" if data else "baseline.npz"),
        label=""
        if not label or metric in ("agreement", "cosine")
        else f"label = {_text(label)}  # the array of right answers\n",
        inputs=_inputs(graph),
        output=_text(output.name),
        output_shape=_shape(output),
        others="".join(
            f"; or {_text(spec.name)} {_shape(spec)}"
            for spec in graph.outputs
            if spec is not output
        ),
        metric=metric,
        postprocess='# postprocess = "argmax"  # threshold, none: how a prediction is read\n',
        least="max_value" if falls else "min_value",
        least_value="0.5" if falls else "0.9",
        features=_features(fed),
        classes=named,
    )


def _name(model: Path) -> str:
    plain = "".join(c if c.isalnum() and c.isascii() else "-" for c in model.stem.lower())
    name = "-".join(filter(None, plain.split("-")))[:40].strip("-")
    return name if len(name) > 2 and name[0].isalpha() else f"model-{name or 1}"


def _text(value: str) -> str:
    """Return a TOML string: a name of a model may hold quotes and line ends."""
    return msgspec.json.encode(value).decode().replace("\x7f", "\\u007f")


def _best_output(graph: Graph, *, labelled: bool) -> TensorSpec:
    """Return the output that a prediction is most likely read from.

    Floats, several per sample, are best; then classes where there are labels for them.
    """
    floats = [spec for spec in graph.outputs if spec.datatype in ("FP32", "FP16", "FP64")]
    flat = [spec for spec in floats if len(spec.shape) == 2 and spec.shape[1] != 1]
    classes = [spec for spec in graph.outputs if labelled and _is_class(spec)]
    return (flat or classes or floats or list(graph.outputs))[0]


def _is_class(spec: TensorSpec) -> bool:
    return spec.datatype in ("INT64", "INT32") and spec.shape[1:] in ([], [1])


def _metric(output: TensorSpec, *, labelled: bool) -> str:
    if output.datatype not in ("FP32", "FP16", "FP64"):
        return "accuracy" if labelled and _is_class(output) else "agreement"
    width = output.shape[-1] if len(output.shape) == 2 else 0
    if 1 < width <= 1000:
        return "accuracy" if labelled else "agreement"
    if width == 1 or len(output.shape) == 1:
        return "mae"  # against fp32 where there are no labels
    return "cosine"


def _is_state(spec: TensorSpec) -> bool:
    return spec.name.lower() in STATE_NAMES or (not spec.shape)


def _inputs(graph: Graph) -> str:
    lines = []
    if any(spec.name == "input_ids" for spec in graph.inputs):
        lines += [
            "# [preprocess.text]        # texts go in, and a tokenizer in the model makes input_ids",
            '# kind = "tokenizer"',
            '# file = "tokenizer.json"  # or vocab.txt, a SentencePiece *.model, a directory',
            "# max_length = 128",
            '# reference = "training:tokenize"  # the function of training, held against the graph',
        ]
    for spec in graph.inputs:
        if _is_state(spec):
            shape = ", ".join(str(max(1, size)) for size in spec.shape)
            lines += [
                f"[inputs.{_text(spec.name)}]  # {spec.datatype} {_shape(spec)}: state, which no data set has",
                "fill = 0.0",
                f"shape = [{shape}]",
                "",
            ]
        else:
            lines += [
                f"# [inputs.{_text(spec.name)}]  # {spec.datatype} {_shape(spec)}",
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
        elif len(spec.shape) == 2 and 1 < spec.shape[1] <= 64 and spec.datatype[:2] == "FP":
            lines += ['column = "columns"  # one for each: column_0, column_1, ...']
        elif spec.datatype not in ("BYTES", "BOOL"):
            lines += ['level = "mean"', 'spread = "std"']
    return "\n".join(lines) + "\n"


def _shape(spec: TensorSpec) -> str:
    return "[" + ", ".join("n" if size < 0 else str(size) for size in spec.shape) + "]"
