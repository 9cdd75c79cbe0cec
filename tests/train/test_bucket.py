"""A run in a bucket has the bytes of one on a disk: a server of this test stands for the cloud."""

import os
import subprocess
import sys
import time

import pytest

from llama_jax import cli
from llama_jax.config import InputError
from llama_jax.convert.api import convert
from tests.checkpoint import fake_gcs
from tests.train.tiny import digests, facts


@pytest.fixture
def bucket(monkeypatch):
    with fake_gcs.serve() as server:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", server.url)
        monkeypatch.setenv("TENSORSTORE_GCS_HTTP_URL", server.url)
        monkeypatch.setenv("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
        yield server


@pytest.mark.slow
def test_a_run_in_a_bucket_killed_and_resumed_is_that_on_a_disk(tiny, bucket, tmp_path):
    text = (tiny.folder / "stories.jsonl").read_bytes()
    half = text.index(b"\n", len(text) // 2) + 1
    bucket.objects["pods/corpus/a.jsonl"] = (1, text[:half])
    bucket.objects["pods/corpus/more/b.jsonl"] = (2, text[half:])
    for name, part in (("a.jsonl", text[:half]), ("more/b.jsonl", text[half:])):
        file = tmp_path / "corpus" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(part)

    there = ("--workdir", "gs://pods/run", "--data.dataset", "gs://pods/corpus")
    there += ("--data.cache-dir", str(tmp_path / "cache"), "--profile-steps", "2", "3")
    process = tiny.start(*there, "--sample-prompts", "One day")
    try:
        while "pods/run/checkpoints/4/manifest.json" not in bucket.objects:
            assert process.poll() is None, process.communicate()[1]
            time.sleep(0.005)
    finally:
        process.kill()
        process.communicate()
    status, out, err = tiny.run(*there, "--sample-prompts", "One day")
    assert (status, "resumed gs://pods/run at step" in err) == (0, True), err
    assert "run folder       gs://pods/run: checkpoints" in out

    here = ("--workdir", str(tmp_path / "run"), "--data.dataset", str(tmp_path / "corpus"))
    status, _, err = tiny.run(*here, "--sample-prompts", "One day")
    assert status == 0, err
    for key, (_, data) in bucket.objects.items():
        if key.startswith("pods/run/"):
            copy = tmp_path / "copy" / key.removeprefix("pods/run/")
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(data)
    assert facts(tmp_path / "copy") == facts(tmp_path / "run")
    assert digests(tmp_path / "copy", 12) == digests(tmp_path / "run", 12)
    for name in ("tokenizer.model", "loss.svg", "samples/step-00000012.txt"):
        assert (tmp_path / "copy" / name).read_bytes() == (tmp_path / "run" / name).read_bytes()
    kept = {name for name in os.listdir(tmp_path / "copy" / "checkpoints") if name.isdecimal()}
    assert {"8", "12"} <= kept  # and the one that was restored
    assert list((tmp_path / "copy" / "tensorboard").glob("events.*"))
    assert list((tmp_path / "copy" / "profile").rglob("*.xplane.pb"))


@pytest.mark.slow
def test_a_run_starts_from_a_converted_folder_in_a_bucket_as_from_one_on_a_disk(
    tiny, bucket, tmp_path
):
    """The way of a published model into a bucket: Hugging Face's folder, converted, copied."""
    status, _, err = tiny.run("--workdir", str(tmp_path / "base"), "--steps", "2")
    assert status == 0, err
    convert(tmp_path / "base", tmp_path / "hf", to="hf")
    convert(tmp_path / "hf", tmp_path / "model")
    for path in (tmp_path / "model").rglob("*"):
        if path.is_file():
            name = path.relative_to(tmp_path / "model").as_posix()
            bucket.objects[f"pods/models/model/{name}"] = (1, path.read_bytes())
    made = {}
    for name, source in (("there", "gs://pods/models/model"), ("here", str(tmp_path / "model"))):
        run = tmp_path / name
        argv = ("--workdir", str(run), "--init-from", source, "--steps", "2", "--eval-every", "0")
        status, _, err = tiny.run(*argv)
        assert status == 0, err
        made[name] = (facts(run), digests(run, 2))
    assert made["there"] == made["here"]
    assert made["here"][1] != digests(tmp_path / "base", 2)


FOREIGN = {
    "hf": ("config.json", b'{"model_type": "llama", "architectures": ["LlamaForCausalLM"]}'),
    "meta": ("params.json", b"{}"),
    "peft": ("adapter_config.json", b"{}"),
}


def test_a_model_of_another_format_in_a_bucket_is_refused_with_the_way_out(bucket):
    """In a process of its own, as the clients of buckets keep what they have seen."""
    for folder, (name, content) in FOREIGN.items():
        bucket.objects[f"pods/models/{folder}/{name}"] = (1, content)
    bucket.objects["pods/models/x.gguf"] = (1, b"GGUF")
    models = [f"gs://pods/models/{name}" for name in (*FOREIGN, "x.gguf", "none")]
    program = """
import sys
from llama_jax.config import InputError
from llama_jax.convert.api import convert
from llama_jax.models import open_model
for path in sys.argv[1:]:
    try:
        open_model(path)
    except InputError as error:
        print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", program, *models], capture_output=True, text=True, timeout=300
    )
    *said, nothing = done.stdout.splitlines()
    assert len(said) == len(FOREIGN) + 1, done.stderr
    for line, path in zip(said, models, strict=False):
        assert line.startswith(f"{path} is in another format than ours")
        assert line.endswith(
            "llama-jax convert SRC DST, then gcloud storage cp --recursive DST gs://pods/models/"
        )
    assert nothing.endswith(
        "none is neither a model folder nor a run folder: it has no config.json"
    )


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (("generate", "gs://b/m", "--prompt", "x"), "gs:// needs gcsfs: pip install gcsfs"),
        (("convert", ".", "gs://b/m"), "gs://b/m: other formats are read and written on this mach"),
        (("eval", "gs://b/m", "--data", "gs://b/text"), "gs:// needs gcsfs"),
    ],
)
def test_what_a_bucket_cannot_be_used_for_is_one_line(monkeypatch, capsys, argv, message):
    monkeypatch.setitem(sys.modules, "gcsfs", None)  # as if it were not installed
    assert cli.main(argv) == 2
    assert message in capsys.readouterr().err


def test_records_are_not_prepared_in_a_bucket(tiny):
    with pytest.raises(InputError, match=r"data\.cache_dir=gs://b/c: records are read in place"):
        tiny.config("--data.cache-dir", "gs://b/c")
