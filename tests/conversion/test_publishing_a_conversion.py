"""What the converter writes can be published as it is."""

import json

from uniaudio2.conversion import convert_release
from uniaudio2.hub_cards.stage import stage


def test_a_conversion_is_staged_with_where_it_comes_from(random_weights, source, tokenizer_folder, tmp_path):
    folder = convert_release(
        source, tmp_path / "UniAudio2 3B", tokenizer=tokenizer_folder, settings=random_weights.options
    )
    record = stage(folder, tmp_path / "staged")
    assert record["name"] == "Llama-uniaudio2-3b"
    repository = tmp_path / "staged" / "language-model"
    card = (repository / "README.md").read_text()
    # The numbers of the paper are about other weights than these small ones.
    assert "license: llama3.2" in card and "model-index" not in card
    made_of = json.loads((folder / "conversion.json").read_text())["files"]
    for name, entry in made_of.items():
        assert f"| `{name}` | {entry['bytes']:,} | `{entry['sha256']}` |" in card
    # Names of folders of this machine stay here, as that of the tokenizer.
    assert str(tokenizer_folder) in (folder / "conversion.json").read_text()
    for path in (tmp_path / "staged").rglob("*.json"):
        assert str(tokenizer_folder.parent) not in path.read_text(), path
