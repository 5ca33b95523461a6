"""silero-vad's detector of speech, on sentences spoken by espeak-ng between pauses, in noise.

The model of the package that takes a whole recording as one sequence: frames of 512 samples at
16 kHz, each after 64 samples of the one before, and the state of an LSTM. Every sample is a clip
of its own, without a batch axis. It is judged against what fp32 says, frame by frame.
"""

import subprocess
import wave
from io import BytesIO
from pathlib import Path

import numpy as np
import onnxruntime as ort
from common import Arrays, Entry
from text_direction import documentation

SEED = 13
RATE = 16_000
FRAME, CONTEXT = 512, 64
FRAMES = 64  # of a clip: two seconds
VOICES = ("en", "en-us", "en-gb-scotland", "en-us+f3", "en+f2", "de", "fr", "es")


def speak(text: str, voice: str, speed: int) -> np.ndarray:
    """Return speech at 16 kHz: float32, -1 to 1."""
    command = ["espeak-ng", "--stdout", "-v", voice, "-s", str(speed), "--", text]
    done = subprocess.run(command, capture_output=True, check=True)
    # the length in the header of a stream is not known: the rest of the file is the sound
    with wave.open(BytesIO(done.stdout)) as file:
        rate = file.getframerate()
        sound = np.frombuffer(done.stdout[44:], np.int16).astype(np.float32) / 32768
    at = np.arange(0, len(sound) - 1, rate / RATE)
    return np.interp(at, np.arange(len(sound)), sound).astype(np.float32)


def noise(n: int, rng: np.random.Generator) -> np.ndarray:
    """Return white, pink or humming noise of unit power: float32 [n]."""
    kind = int(rng.integers(3))
    white = rng.standard_normal(n)
    if kind == 1:
        spectrum = np.fft.rfft(white) / np.sqrt(np.maximum(np.arange(n // 2 + 1), 1))
        white = np.fft.irfft(spectrum, n)
    elif kind == 2:
        t = np.arange(n) / RATE
        white = 0.3 * white + sum(
            np.sin(2 * np.pi * f * t) / k for k, f in enumerate((50, 100, 150), 1)
        )
    return (white / white.std()).astype(np.float32)


def clips(n: int, seed: int) -> Arrays:
    """Return clips of speech between pauses: float32 [n, 64, 576], 16-bit steps."""
    rng = np.random.default_rng([SEED, seed])
    sentences = [
        text.split("\n\n")[0] for _, text in documentation() if 20 < len(text.split("\n\n")[0]) < 90
    ]
    made: list[np.ndarray] = []
    while len(made) < n:
        text = sentences[int(rng.integers(len(sentences)))].replace("\n", " ")
        voice, speed = VOICES[int(rng.integers(len(VOICES)))], int(rng.integers(130, 220))
        spoken = speak(text, voice, speed)
        pauses = [np.zeros(int(rng.uniform(0.3, 1.2) * RATE), np.float32) for _ in range(2)]
        middle = len(spoken) // 2
        sound = np.concatenate([pauses[0], spoken[:middle], pauses[1], spoken[middle:]])
        power = float(np.sqrt((spoken**2).mean()))
        loud = power * 10 ** (-rng.uniform(0, 25) / 20)
        sound = (sound + loud * noise(len(sound), rng)) * rng.uniform(0.3, 1.0)
        sound = np.rint(np.clip(sound, -1, 1) * 32767).astype(np.float32) / 32768
        for at in range(0, len(sound) - FRAMES * FRAME, FRAMES * FRAME):
            frames = sound[at : at + FRAMES * FRAME].reshape(FRAMES, FRAME)
            before = np.concatenate([np.zeros((1, CONTEXT), np.float32), frames[:-1, -CONTEXT:]])
            made.append(np.concatenate([before, frames], axis=1))
    return {"input": np.stack(made[:n])}


def silero_vad() -> Entry:
    """The detector as the package ships it."""
    import silero_vad as package

    name = "silero_vad_16k_sequence.onnx"
    model = (Path(package.__file__).parent / "data" / name).read_bytes()
    evaluation = clips(500, 2)
    session = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
    state = {name: np.zeros((1, 1, 128), np.float32) for name in ("h", "c")}
    found = [session.run(["speech_probs"], {"input": x, **state})[0] for x in evaluation["input"]]
    speech = float((np.stack(found) >= 0.5).mean())
    print(f"fp32 says speech in {speech:.3f} of the frames")
    recipe = f"""\
[inputs.input]
batch = false

[inputs.h]
fill = 0.0
shape = [1, 1, 128]

[inputs.c]
fill = 0.0
shape = [1, 1, 128]

[metric]
name = "iou"
output = "speech_probs"
threshold = 0.5

[gate]
max_drop = 0.02

[lineage]
data = "espeak-ng sentences in noise, seed {SEED}"
"""
    about = {
        "kind": "detector of speech (convolutions and an LSTM, state inputs)",
        "source": f"silero-vad 6.2.3, {name}",
        "licence": "MIT",
        "metric": "iou (to fp32)",
        "fp32": 1.0,
        "positive": speech,
    }
    return Entry(model, clips(100, 1), evaluation, clips(100, 3), recipe, about)
