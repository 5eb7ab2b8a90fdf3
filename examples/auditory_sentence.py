"""Draws an auditory sentence that is built from recordings, as in docs/auditory-sentences.md.

python examples/auditory_sentence.py --output auditory-sentence.png [--seed 6]
"""

import argparse
import json
from pathlib import Path

import matplotlib
import numpy as np

matplotlib.use("Agg")
from matplotlib import pyplot as plt

from uniaudio2 import TINY, UniAudio2Processor
from uniaudio2.training.auditory_sentences import stream_sentences, value_size
from uniaudio2.training.mixture import segment_rows

RECORDINGS = Path(__file__).parents[1] / "benchmarks" / "recordings"
VOICE, UTTERANCES = "slt", slice(1, 4)
# Of the ids of each kind, and of the words for it.
COLOURS = {
    "text": ("Greens", "darkgreen"),
    "reasoning": ("Blues", "navy"),
    "reconstruction": ("Oranges", "saddlebrown"),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("auditory-sentence.png"), help="the picture")
    parser.add_argument("--seed", type=int, default=6, help="of what the builder chooses")
    args = parser.parse_args()

    processor = UniAudio2Processor.from_pretrained(TINY)
    manifest = [json.loads(line) for line in (RECORDINGS / "manifest.jsonl").read_text().splitlines()]
    manifest = [row for row in manifest if row["voice"] == VOICE][UTTERANCES]
    codes = processor.encode_audio([str(RECORDINGS / row["file"]) for row in manifest])
    # Utterances of one voice stand for those of one long recording.
    records = [
        {"audio": audio, "text": row["text"], "recording": VOICE, "start": place}
        for place, (row, audio) in enumerate(zip(manifest, codes, strict=True))
    ]

    def count_tokens(text):
        return len(processor.tokenizer.tokenize(text))

    turn = next(stream_sentences(records, "interleaved_speech_and_text", count_tokens, max_rows=2048, seed=args.seed))
    (rows,) = processor.example_rows([[turn]])
    lengths = [
        segment_rows(segment, value_size(turn.values[segment.field], count_tokens)) for segment in turn.task.segments
    ]
    assert sum(lengths) == len(rows)
    draw(turn, lengths, rows.input_ids.numpy().T.astype(float), args.output)
    print(f"{len(rows)} rows in {len(lengths)} parts, written to {args.output}")


def draw(turn, lengths, ids, path):
    """
    Args:
        turn (`Turn`), lengths (`list[int]`): The sentence, and the rows of each of its parts.
        ids (`np.ndarray` of shape `(num_streams, sequence_length)`): The text is the last stream.
        path (`Path`): The picture.
    """
    num_streams, num_rows = ids.shape
    figure, axis = plt.subplots(figsize=(12, 3.4), constrained_layout=True)
    start = 0
    for segment, length in zip(turn.task.segments, lengths, strict=True):
        colour_map, colour = COLOURS[segment.kind]
        is_text = segment.kind == "text"
        top, bottom = (num_streams - 1, num_streams) if is_text else (0, num_streams - 1)
        # What marks the beginning and the end: bos and eos rows, for a text also the tokens around it.
        marks = 1 + (segment.wrapper is not None)
        axis.fill_between([start, start + length], top, bottom, color=colour, linewidth=0, zorder=-1)
        part = ids[top:bottom, start + marks : start + length - marks]
        spread = np.ptp(part) or 1.0
        extent = (start + marks, start + length - marks, bottom, top)
        axis.imshow(
            part, cmap=colour_map, vmin=part.min() - 0.5 * spread, vmax=part.max() + 0.3 * spread, extent=extent,
            aspect="auto", interpolation="nearest",
        )  # fmt: skip
        words = str(turn.values[segment.field]).split() if is_text else [segment.kind]
        label = "\n".join(" ".join(words[i : i + 2]) for i in range(0, len(words), 2))
        axis.text(start + length / 2, -0.25, label, ha="center", va="bottom", fontsize=10, color=colour)
        if start:
            axis.axvline(start, color="0.6", linewidth=0.8, linestyle=":")
        start += length
    axis.set(xlim=(0, num_rows), ylim=(num_streams, 0), xlabel="row of the sequence")
    axis.set_yticks(np.arange(num_streams) + 0.5, [*(f"codebook {k}" for k in range(1, num_streams)), "text"])
    axis.tick_params(left=False)
    axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120)
    plt.close(figure)


if __name__ == "__main__":
    main()
