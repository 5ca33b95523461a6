"""What a tokenizer in the model costs a device: memory, CPU time at the start, and per text.

    python benchmarks/text_cost.py RECIPE.toml ... [--rounds 9]

Each round is a fresh process that has onnxruntime and has opened another, tiny session: it registers the library of
onnxruntime-extensions by its file (as the agent does) or by importing the package, opens the
recipe's tokenizer alone, without a model behind it, and splits texts of the recipe's evaluation data,
one in a call. Then the recipe's whole model in fp32, with its tokenizer and, on the same numbers,
without. CPU time of the process, and its resident memory; medians of the rounds.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.outcome import write  # noqa: E402 - after the path is set

CHILD = "--child"
TEXTS = 200


def memory_kb() -> int:
    """Return the resident memory of this process."""
    status = Path("/proc/self/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmRSS")).split()[1])


def child(way: str, file: str, texts: str) -> None:
    """Do it once and print what it took."""
    import numpy as np
    import onnxruntime as ort

    from skerry.io.extensions import add_extensions

    ort.InferenceSession(Path(file).with_name("tiny.onnx"), providers=["CPUExecutionProvider"])
    asked = [np.array([text], dtype=object) for text in json.loads(Path(texts).read_text())]
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    times, sizes = [time.process_time()], [memory_kb()]
    if way == "by_import":
        import onnxruntime_extensions

        options.register_custom_ops_library(onnxruntime_extensions.get_library_path())
    else:
        add_extensions(options)
    times, sizes = [*times, time.process_time()], [*sizes, memory_kb()]
    session = ort.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    session.run(None, {name: asked[0]})
    times, sizes = [*times, time.process_time()], [*sizes, memory_kb()]
    each = []
    for text in asked:
        began = time.perf_counter()
        session.run(None, {name: text})
        each.append((time.perf_counter() - began) * 1e6)
    print(
        json.dumps({
            "library_ms": (times[1] - times[0]) * 1e3,
            "library_mb": (sizes[1] - sizes[0]) / 1024,
            "tokenizer_ms": (times[2] - times[1]) * 1e3,
            "tokenizer_mb": (sizes[2] - sizes[1]) / 1024,
            "text_us": statistics.median(each),
        })
    )  # fmt: skip


def whole(way: str, file: str, calls: str) -> None:
    """Load a whole model, answer one call after the other, and print what it took."""
    import numpy as np
    import onnxruntime as ort

    from skerry.io.extensions import add_extensions

    with np.load(calls, allow_pickle=False) as found:
        asked = [
            {name: values[i : i + 1] for name, values in found.items()}
            for i in range(len(next(iter(found.values()))))
        ]
    if way == "texts":
        asked = [{name: text.astype(object) for name, text in call.items()} for call in asked]
    ort.InferenceSession(Path(file).with_name("tiny.onnx"), providers=["CPUExecutionProvider"])
    began, before = time.process_time(), memory_kb()
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    if way == "texts":
        add_extensions(options)
    session = ort.InferenceSession(Path(file), options, providers=["CPUExecutionProvider"])
    session.run(None, asked[0])
    load_ms, load_mb = (time.process_time() - began) * 1e3, (memory_kb() - before) / 1024
    each = []
    for call in asked:
        began = time.perf_counter()
        session.run(None, call)
        each.append((time.perf_counter() - began) * 1e6)
    print(json.dumps({"load_ms": load_ms, "load_mb": load_mb, "call_us": statistics.median(each)}))


def measure(recipe: Path, rounds: int) -> dict[str, Any]:
    """Return the medians for one recipe, by way."""
    import numpy as np

    from compiler.core import with_texts
    from compiler.data import read_data
    from compiler.passes import load_graph, parse
    from compiler.recipe import read_recipe
    from compiler.runtime import open_session
    from compiler.text_parity import tokenizer_alone
    from compiler.texts import read_tokenizer, tokenizers_of
    from tests.fakes.serving import linear_model

    source = read_recipe(recipe)
    name, steps = next(iter(tokenizers_of(source.recipe.preprocess).items()))
    core = load_graph(source.model)
    inputs = parse(core.data).graph.input
    model = tokenizer_alone(name, steps, source.folder, inputs)
    found = read_data(source.recipe.data.evaluation, source.folder, "data.evaluation")
    texts = [str(text) for text in found.arrays[name][:TEXTS]]
    taken: dict[str, list[dict[str, float]]] = {
        way: [] for way in ("by_file", "by_import", "numbers", "texts")
    }
    alone = open_session(model)
    names = [port.name for port in alone.get_outputs()]
    numbers = [alone.run(names, {name: np.array([text], dtype=object)}) for text in texts]
    widest = max(call[0].shape[1] for call in numbers)
    kept = [call for call in numbers if call[0].shape[1] == widest]
    same = [t for t, call in zip(texts, numbers, strict=True) if call[0].shape[1] == widest]
    with tempfile.TemporaryDirectory() as folder:
        file, asked = Path(folder, "tokenizer.onnx"), Path(folder, "texts.json")
        file.write_bytes(model)
        Path(folder, "tiny.onnx").write_bytes(linear_model())
        asked.write_text(json.dumps(texts))
        Path(folder, "numbers.onnx").write_bytes(core.data)
        together = with_texts(core, source.recipe, source.folder)
        Path(folder, "texts.onnx").write_bytes(together.data)
        np.savez(Path(folder, "texts.npz"), **{name: np.array(same)})
        rows = {n: np.concatenate([call[i] for call in kept]) for i, n in enumerate(names)}
        np.savez(Path(folder, "numbers.npz"), **rows)
        for _ in range(rounds):
            for way, results in taken.items():
                what = (file, asked)
                if way in ("numbers", "texts"):
                    what = (Path(folder, f"{way}.onnx"), Path(folder, f"{way}.npz"))
                done = subprocess.run(
                    [sys.executable, __file__, CHILD, way, *what],
                    capture_output=True, text=True, check=True,
                )  # fmt: skip
                results.append(json.loads(done.stdout))
    medians = {
        way: {key: round(statistics.median(r[key] for r in results), 2) for key in results[0]}
        for way, results in taken.items()
    }
    words = len(read_tokenizer(name, steps, source.folder).vocabulary)
    letters = round(statistics.mean(map(len, texts)), 1)
    about = {"file": steps.file, "words": words, "letters": letters, "bytes": len(model)}
    return about | medians


def main() -> None:
    """Measure the recipes and keep the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recipes", type=Path, nargs="+")
    parser.add_argument("--rounds", type=int, default=9)
    args = parser.parse_args()
    results = [measure(recipe, args.rounds) for recipe in args.recipes]
    for result in results:
        print(json.dumps(result))
    write("text_cost", {"rounds": args.rounds, "tokenizers": results})


if __name__ == "__main__":
    if sys.argv[1:2] == [CHILD]:
        (whole if sys.argv[2] in ("numbers", "texts") else child)(*sys.argv[2:])
    else:
        main()
