"""Two tabular models by scikit-learn, with their preparation in the graph (ai.onnx.ml).

The RAND Health Insurance Experiment as statsmodels ships it: 20,190 person-years, nine numbers
each; the question is whether somebody sees a doctor more than twice in the year.
"""

import numpy as np
import statsmodels.api as sm
from common import Arrays, Entry
from skl2onnx import to_onnx
from sklearn.ensemble import GradientBoostingClassifier
from sklearn.metrics import roc_auc_score
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

SEED = 19
TRAINED, EVALUATED = 12_000, 2_000


def people() -> tuple[np.ndarray, np.ndarray]:
    """Return numbers, float32 [n, 9], and answers, int64 [n], in a fixed random order."""
    table = sm.datasets.randhie.load_pandas().data
    order = np.random.default_rng(SEED).permutation(len(table))
    answers = (table["mdvis"].to_numpy() > 2).astype(np.int64)[order]
    numbers = table.drop(columns="mdvis").to_numpy(np.float32)[order]
    return numbers, answers


def entry(fitted: object, kind: str) -> Entry:
    """Convert a fitted model and hand it over."""
    numbers, answers = people()
    model = to_onnx(
        fitted, numbers[:1], target_opset={"": 18, "ai.onnx.ml": 3}, options={"zipmap": False}
    )
    data = numbers[TRAINED : TRAINED + EVALUATED], answers[TRAINED : TRAINED + EVALUATED]
    share = fitted.predict_proba(data[0])
    value = float(roc_auc_score(data[1], share[:, 1]))
    print(f"scikit-learn's auc {value:.4f}")

    def part(first: int, last: int) -> Arrays:
        return {"X": numbers[first:last], "label": answers[first:last]}

    recipe = f"""\
[metric]
name = "auc"
output = "probabilities"
postprocess = "argmax"

[gate]
max_drop = 0.01

[classes]
names = ["seldom", "often"]

[lineage]
data = "statsmodels randhie, split seed {SEED}"
"""
    about = {
        "kind": kind,
        "source": "trained here (scikit-learn, skl2onnx) on statsmodels' randhie",
        "licence": "own; data public domain",
        "metric": "auc",
        "fp32": value,
    }
    return Entry(
        model.SerializeToString(), part(0, 512), part(TRAINED, TRAINED + EVALUATED),
        part(512, 3512), recipe, about,
    )  # fmt: skip


def tab_mlp() -> Entry:
    """Two hidden layers, after a scaler."""
    numbers, answers = people()
    net = MLPClassifier((64, 32), max_iter=30, early_stopping=True, random_state=SEED)
    fitted = make_pipeline(StandardScaler(), net).fit(numbers[:TRAINED], answers[:TRAINED])
    return entry(fitted, "tabular MLP")


def tab_gbt() -> Entry:
    """Boosted trees."""
    numbers, answers = people()
    trees = GradientBoostingClassifier(n_estimators=100, max_depth=4, random_state=SEED)
    return entry(trees.fit(numbers[:TRAINED], answers[:TRAINED]), "gradient boosted trees")
