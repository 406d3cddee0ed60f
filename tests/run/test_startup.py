"""What can fail at the end of a run is tried at its start; inputs are compared by content, not by path.

pytest tests/run/test_startup.py
"""

import json
import shutil

import pytest
import torch
import transformers
from conftest import CPU
from safetensors import safe_open

from instructgpt.errors import RunError
from instructgpt.models.policy import load_policy
from instructgpt.run.lineage import content_hash, is_unchanged
from instructgpt.train.startup import save_and_verify_policy


def test_sampling_settings_of_older_chat_models_are_saved(kit, command, tmp_path):
    """Newer versions of transformers refuse to save temperature and top_p without do_sample."""
    base = shutil.copytree(kit.base, tmp_path / "base")
    settings = {"eos_token_id": json.loads((base / "config.json").read_text())["eos_token_id"]}
    (base / "generation_config.json").write_text(json.dumps(settings | {"temperature": 0.9, "top_p": 0.6}))
    out = tmp_path / "sft"
    assert command(*kit.sft(out, "--base", base)).code == 0
    saved = transformers.GenerationConfig.from_pretrained(out)
    assert (saved.temperature, saved.top_p, saved.do_sample) == (0.9, 0.6, True)


def test_a_model_that_cannot_be_saved_ends_before_training(kit, command, monkeypatch, tmp_path):
    def refuse(*_args, **_kwargs):
        raise ValueError("shared tensors")

    monkeypatch.setattr(transformers.PreTrainedModel, "save_pretrained", refuse)
    error = command(*kit.sft(tmp_path / "sft")).error_line(1)
    assert "the model cannot be saved, so training would be lost: shared tensors" in error
    assert not (tmp_path / "sft" / "metrics.jsonl").exists()


def test_a_saved_model_with_missing_weights_is_not_finished(save, monkeypatch, tmp_path):
    model, tokenizer = load_policy(save("llama"), CPU)
    original = transformers.PreTrainedModel.save_pretrained

    def lose_weights(self, folder, **kwargs):
        state = {name: tensor for name, tensor in self.state_dict().items() if "layers.0.mlp" not in name}
        original(self, folder, **kwargs | {"state_dict": state})

    monkeypatch.setattr(transformers.PreTrainedModel, "save_pretrained", lose_weights)
    with pytest.raises(RunError, match=r"the saved model does not load: .*weights are missing"):
        save_and_verify_policy(model, tokenizer, tmp_path)


def test_a_run_goes_on_from_the_same_model_and_data_elsewhere(kit, command, tmp_path):
    base = shutil.copytree(kit.base, tmp_path / "base")
    out = tmp_path / "sft"
    assert command(*kit.sft(out, "--base", base)).code == 0
    base.rename(tmp_path / "moved")
    assert command(*kit.sft(out, "--base", tmp_path / "moved")).code == 0
    template = tmp_path / "moved" / "chat_template.jinja"
    template.write_text(template.read_text() + "{# changed #}")
    error = command(*kit.sft(out, "--base", tmp_path / "moved")).error_line(2)
    assert "--base was" in error


def test_the_hash_of_a_model_covers_template_and_tokenizer(save, tmp_path):
    model = shutil.copytree(save("llama"), tmp_path / "model")
    before = content_hash(model)
    older = content_hash(model, (".safetensors", ".json"))
    for name in ("chat_template.jinja", "merges.txt", "tokenizer.model"):
        (model / name).write_text("x" + name)
        assert content_hash(model) != before
        before = content_hash(model)
    assert is_unchanged({"path": str(model), "sha256": before}, older), (
        "runs of earlier versions did not read these files"
    )
    (model / "metrics.jsonl").write_text("{}")
    assert content_hash(model) == before


@pytest.mark.parametrize("lora", [0, 2])
def test_a_reward_model_of_a_bf16_base_scores_as_measured(kit, command, lora, tmp_path):
    """Offset and accuracy are measured with the weights as they are saved; the stage compares the two."""
    base = tmp_path / "base"
    shutil.copytree(kit.base, base)
    transformers.AutoModelForCausalLM.from_pretrained(kit.base, dtype=torch.bfloat16).save_pretrained(base)
    out = tmp_path / "reward"
    argv = kit.train_reward(out, "--base", base, *(("--lora", lora) if lora else ()))
    assert command(*argv).code == 0
    with safe_open(out / "model.safetensors", "pt") as weights:
        assert {weights.get_tensor(name).dtype for name in weights.keys()} == {torch.bfloat16}  # noqa: SIM118
