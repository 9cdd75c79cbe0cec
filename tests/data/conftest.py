import pytest

from llama_jax.config import DataConfig
from llama_jax.data.corpora import tales
from llama_jax.data.prepare import Mixture, prepare
from llama_jax.data.tokenizer import Tokenizer, train_tokenizer

VOCAB_SIZE, SEQ_LEN = 400, 64


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return train_tokenizer((tales.story(i) for i in range(300)), VOCAB_SIZE)


@pytest.fixture(scope="session")
def cache(tmp_path_factory) -> str:
    return str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def prepared(tokenizer, cache) -> dict[str, Mixture]:
    config = DataConfig(dataset="tales:400", cache_dir=cache, workers=1)
    return prepare(config, tokenizer, seq_len=SEQ_LEN)
