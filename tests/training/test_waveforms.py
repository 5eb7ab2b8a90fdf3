import torch

from uniaudio2.training.waveforms import PaddedWaveforms, RandomCrops, WaveformDataset


def test_items_are_cut_out_of_one_file(corpus, dataset):
    assert [len(item["waveform"]) for item in dataset] == [row["num_samples"] for row in dataset.rows]
    assert dataset[1]["text"] == "three"
    assert abs(dataset[1]["waveform"]).max() <= 1


def test_long_recordings_can_be_left_out(corpus):
    dataset = WaveformDataset(corpus, "train", max_samples=9600)
    assert [row["text"] for row in dataset.rows] == ["three", "seven", "zero", "five"]


def test_crops_lie_inside_and_short_recordings_are_padded(dataset):
    items = [dataset[4], dataset[5]]
    crops = RandomCrops(9600)(items)["waveform"]
    assert crops.shape == (2, 9600)
    whole = torch.from_numpy(items[0]["waveform"]).unfold(0, 9600, 1)
    assert (whole == crops[0]).all(dim=1).any()
    torch.testing.assert_close(crops[1, :7200], torch.from_numpy(items[1]["waveform"]))
    assert not crops[1, 7200:].any()


def test_padding_fills_whole_units(dataset):
    batch = PaddedWaveforms(9600)([dataset[0], dataset[1]])
    assert batch["waveform"].shape == (2, 19200)
    assert batch["num_samples"].tolist() == [12000, 9000]
    assert not batch["waveform"][1, 9000:].any()
