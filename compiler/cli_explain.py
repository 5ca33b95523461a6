"""The command explain: why a bundle's model answered one input as it did."""

from pathlib import Path
from typing import Any

import click
import msgspec
import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from compiler.command import PATH, Command, json_option, load_bundle, write_file
from compiler.data import read_data
from compiler.heatmap import heat_page
from compiler.ports import Ports
from compiler.runtime import open_session, run_samples
from skerry.bundle import Bundle
from skerry.errors import UsageError
from skerry.explain import Attribution, Predict, occlusion, shapley
from skerry.explain_text import explain_text, parts_of
from skerry.manifest import Manifest
from skerry.reading import NO_CLASS, read_predictions

__all__ = ["explain"]

MAX_BACKGROUND = 50
ORDERS = 64
MAX_CALLS = 4_000_000  # rows that the model answers at most
PATCHES = 8  # along an axis, where no size is given


@click.command(cls=Command)
@click.argument("bundle", type=PATH)
@click.argument("given", metavar="INPUT")
@click.option("--sample", type=int, default=0, show_default=True, help="Which of INPUT's samples.")
@click.option(
    "--input", "explained", help="Explain this input of the model, at the others' values."
)
@click.option("--class", "wanted", help="Explain this class; default: the predicted one.")
@click.option(
    "--background",
    help="Data that stands for not knowing; default: the other samples of INPUT.",
)
@click.option(
    "--patch",
    type=click.IntRange(min=1),
    help="Size of a hidden patch; default: an eighth of the axis.",
)
@click.option("--out", type=PATH, help="Write an HTML page with a heat map.")
@json_option
def explain(
    bundle: Path,
    given: str,
    sample: int,
    explained: str | None,
    wanted: str | None,
    background: str | None,
    patch: int | None,
    out: Path | None,
    as_json: bool,
) -> None:
    """Explain BUNDLE's answer to INPUT, by its answers alone.

    INPUT is data as a recipe names it, such as rows.npz. Rows of features, and the words of a
    text, get a share of the answer each (sampled Shapley values); images, sounds and sequences a
    map of what the answer loses where a patch is hidden.
    """
    content = load_bundle(bundle)
    arrays = dict(read_data(given, Path(), "INPUT").arrays)
    ports, name, fitted = _samples(content, arrays, explained)
    samples = fitted[name]
    if not 0 <= sample < len(samples):
        raise UsageError(f"expected a sample of 0 to {len(samples) - 1}, got {sample}")
    given_one = samples[sample : sample + 1].reshape(samples.shape[1:])  # a text as an array too
    others = {n: a[sample : sample + 1] for n, a in fitted.items() if n != name}
    predict, told, answer_of = _explained(content, ports, name, given_one, others, wanted)
    words: list[str] = []
    if samples.dtype.kind == "O":
        if samples.ndim > 1:
            raise UsageError(f"explain takes one text a sample, {name!r} has {samples.shape[1:]}")
        words = parts_of(given_one.item())
        found = explain_text(predict, given_one.item(), rng=np.random.default_rng(0))
    elif samples.ndim == 2:
        usual = samples if background is None else _other(background, ports, name)
        usual = usual[:MAX_BACKGROUND]
        # a wide row takes more calls for each order: it gets fewer, and says so
        orders = min(ORDERS, max(1, MAX_CALLS // (2 * samples.shape[1] * len(usual))))
        if orders < ORDERS:
            click.echo(
                f"skerry explain: {samples.shape[1]} features: averaged over {2 * orders} orders "
                f"in place of {2 * ORDERS}, so the shares are rougher",
                err=True,
            )
        found = shapley(
            predict, samples[sample], usual, rng=np.random.default_rng(0), orders=orders
        )
    else:
        sizes = samples.shape[-2:] if samples.ndim > 3 else samples.shape[-1:]
        steps = tuple(patch or max(1, size // PATCHES) for size in sizes)
        fill = float(samples.mean()) if samples.dtype.kind == "f" else 0.0
        found = occlusion(predict, samples[sample], patch=steps, fill=fill)
    if out is not None:
        write_file(out, heat_page(told, found, given_one, words).encode())
    if as_json:
        facts = {
            "explains": told, "class": answer_of, "answer": found.answer, "usual": found.usual,
            "shape": list(found.values.shape), "values": found.values.ravel().tolist(),
        }  # fmt: skip
        click.echo(msgspec.json.encode(facts | ({"words": words} if words else {})))
        return
    _show(told, found, words)
    if out is not None:
        click.echo(out)


def _samples(
    content: Bundle, arrays: dict[str, NDArray[Any]], explained: str | None
) -> tuple[Ports, str, dict[str, NDArray[Any]]]:
    """Return the inputs, the name of the one that is explained, and the samples of all."""
    ports = Ports.of(content.manifest.inputs)
    names = [port.name for port in ports.fed]
    if explained is None and len(names) > 1:
        raise UsageError(
            f"the model has the inputs {', '.join(names)}; say which to explain with --input, the "
            "others keep the sample's values"
        )
    name = names[0] if explained is None else explained
    if name not in names:
        raise UsageError(f"expected an input of {', '.join(names)}, got {name[:80]!r}")
    if name not in arrays and len(arrays) == len(names) == 1:
        arrays = {name: next(iter(arrays.values()))}
    return ports, name, ports.fit(arrays, "INPUT")


def _other(given: str, ports: Ports, name: str) -> NDArray[Any]:
    arrays = read_data(given, Path(), "--background").arrays
    port = next(port for port in ports.fed if port.name == name)
    return port.fit(port.pick(arrays, "--background"))


def _explained(
    content: Bundle,
    ports: Ports,
    name: str,
    sample: NDArray[Any],
    others: dict[str, NDArray[Any]],
    wanted: str | None,
) -> tuple[Predict, str, int]:
    """Return the function that is explained, what it is in words, and the class's position."""
    manifest: Manifest = content.manifest
    reading = manifest.prediction
    session = open_session(content.blobs[manifest.variants[0].file.digest])
    spec = next(s for s in manifest.outputs if s.name == reading.output)

    def answers(rows: NDArray[Any]) -> NDArray[Any]:
        fitted = np.ascontiguousarray(rows, dtype=sample.dtype)
        rest = {n: np.repeat(value, len(rows), axis=0) for n, value in others.items()}
        out = run_samples(session, ports, rest | {name: fitted}, reading.output)[reading.output]
        return out.reshape(len(rows), -1).astype(np.float64)

    if reading.kind != "argmax":
        told = f"{reading.output} of {manifest.model} {manifest.model_version}"
        if reading.kind == "mean":
            return lambda rows: answers(rows).mean(axis=1), f"mean of {told}", NO_CLASS
        return lambda rows: answers(rows)[:, 0], told, NO_CLASS
    names = spec.class_names
    if wanted is None:
        position = int(read_predictions(answers(sample[None]), "argmax")[0][0])
    elif wanted in names:
        position = names.index(wanted)
    else:
        raise UsageError(f"expected a class of {', '.join(names)}, got {wanted!r}")
    label = names[position] if position < len(names) else str(position)
    told = f"{reading.output} of class {label}, {manifest.model} {manifest.model_version}"
    return lambda rows: answers(rows)[:, position], told, position


def _show(told: str, found: Attribution, words: list[str]) -> None:
    console = Console(stderr=True, highlight=False)
    console.print(escape(f"{told}: {found.answer:.4f}, usually {found.usual:.4f}"))
    if found.values.ndim == 1:
        table = Table("word" if words else "place", "adds")
        order = np.argsort(-np.abs(found.values), kind="stable")[:20]
        for place in order.tolist():
            name = escape(words[place][:60]) if words else str(place)
            table.add_row(name, f"{found.values[place]:+.4f}")
        console.print(table)
        return
    largest = float(np.abs(found.values).max()) or 1.0
    for row in found.values.reshape(-1, found.values.shape[-1]):
        console.print("".join(_mark(value / largest) for value in row.tolist()))


def _mark(share: float) -> str:
    """Return two characters for a share of -1 to 1: darker speaks for the answer."""
    return "--" if share < -0.25 else (" .:*#"[min(4, max(0, int(share * 5)))] * 2)
