"""What a run wrote is read back by step."""

from etils import epath

from llama_jax.train.samples import read_samples, write_samples


def test_texts_come_back_by_step_and_in_order(tmp_path):
    run = epath.Path(tmp_path)
    assert read_samples(run) == {}
    kept = {20: ["one\n\ntwo\n", "three"], 100: ["four"]}
    for step in (100, 20):
        write_samples(run, step, kept[step])
    (tmp_path / "samples" / "notes.txt").write_text("mine")
    assert list(read_samples(run).items()) == list(kept.items())
