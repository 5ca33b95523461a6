"""Bare onnxruntime: runs a model so often as a line on standard input says, and tells the CPU time.

A line is `<model> <runs>`; the answer is the microseconds of this thread for one run.
"""

import sys
import time

import numpy as np
from common import MODELS, open_model, wanted

sessions = {name: open_model(name) for name in wanted()}
rows = {
    name: np.linspace(0, 1, int(np.prod(MODELS[name]["shape"])), dtype=np.float32).reshape(
        MODELS[name]["shape"]
    )
    for name in sessions
}
for name, session in sessions.items():
    session.run([MODELS[name]["output"]], {MODELS[name]["input"]: rows[name]})
print("ready", flush=True)
for line in sys.stdin:
    name, runs = line.split()
    session, names = sessions[name], [MODELS[name]["output"]]
    feed = {MODELS[name]["input"]: rows[name]}
    began = time.thread_time_ns()
    for _ in range(int(runs)):
        session.run(names, feed)
    print((time.thread_time_ns() - began) / 1000 / int(runs), flush=True)
