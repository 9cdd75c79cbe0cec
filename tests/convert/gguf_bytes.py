"""GGUF written by hand from its specification (ggml's docs/gguf.md), for the tests of reading."""

import struct

import ml_dtypes
import numpy as np

from llama_jax.convert.gguf_quants import QUANTS
from llama_jax.convert.source import tensors

U8, U16, I32, U32, F32, BOOL, STRING, ARRAY, U64, F64 = 0, 2, 5, 4, 6, 7, 8, 9, 10, 12
FORMS = {U8: "<B", U16: "<H", I32: "<i", U32: "<I", F32: "<f", BOOL: "<?", U64: "<Q", F64: "<d"}
TENSOR_TYPES = {
    "F32": 0, "F16": 1, "Q4_0": 2, "Q4_1": 3, "Q5_0": 6, "Q5_1": 7, "Q8_0": 8, "Q2_K": 10,
    "Q3_K": 11, "Q4_K": 12, "Q5_K": 13, "Q6_K": 14, "IQ4_NL": 20, "IQ4_XS": 23, "BF16": 30,
}  # fmt: skip
KINDS = {"normal": 1, "unknown": 2, "control": 3, "user_defined": 4, "unused": 5, "byte": 6}
NAMES = {
    "embed": "token_embd", "norm": "output_norm", "head": "output", "attn_norm": "attn_norm",
    "q": "attn_q", "k": "attn_k", "v": "attn_v", "o": "attn_output", "mlp_norm": "ffn_norm",
    "gate": "ffn_gate", "up": "ffn_up", "down": "ffn_down",
}  # fmt: skip


def string(text):
    raw = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(raw)) + raw


def value(kind, content):
    """The bytes of a value; an array is (type of its elements, list)."""
    if kind == STRING:
        return string(content)
    if kind == ARRAY:
        inner, elements = content
        head = struct.pack("<IQ", inner, len(elements))
        return head + b"".join(value(inner, element) for element in elements)
    return struct.pack(FORMS[kind], content)


def file_bytes(values, infos, *, version=3, alignment=32, counts=(None, None), magic=b"GGUF"):
    """A file of values {key: (type, content)} and tensors [(name, shape, type, bytes)]; an info may
    have its own offset and its own number of a type."""
    num_tensors = len(infos) if counts[0] is None else counts[0]
    num_keys = len(values) if counts[1] is None else counts[1]
    head = magic + struct.pack("<IQQ", version, num_tensors, num_keys)
    for key, (kind, content) in values.items():
        head += string(key) + struct.pack("<I", kind) + value(kind, content)
    data = b""
    for name, shape, kind, raw, *offset in infos:
        kind = TENSOR_TYPES.get(kind, kind)
        head += string(name) + struct.pack("<I", len(shape))
        head += struct.pack(f"<{len(shape)}Q", *reversed(shape))
        head += struct.pack("<IQ", kind, offset[0] if offset else len(data))
        data += raw + bytes(-len(raw) % alignment)
    return head + bytes(-len(head) % alignment) + data


def rows_of(name, array):
    """Our tensor as llama.cpp's rows: row 2j of a head is its row j, row 2j + 1 its row j + H/2."""
    if array.ndim == 1 or name == "embed":
        return array
    if name == "o":
        return array.reshape(-1, array.shape[-1]).T
    rows = array.reshape(len(array), -1).T
    if name in ("q", "k"):
        H = array.shape[2]
        halves = [(n, j, half) for n in range(array.shape[1]) for j in range(H // 2)
                  for half in (0, 1)]  # fmt: skip
        order = [n * H + half * (H // 2) + j for n, j, half in halves]
        rows = rows[order]
    return rows


def q8_0(rows):
    """(bytes, the float32 values that they mean): int8 in blocks of 32 behind a float16 scale."""
    raw, meant = b"", []
    for block in rows.astype(np.float32).reshape(-1, 32):
        exact = np.abs(block).max() / np.float32(127)
        scale = np.float16(exact)
        whole = np.rint(block / exact).astype(np.int8)
        raw += scale.tobytes() + whole.tobytes()
        meant.append(whole.astype(np.float32) * np.float32(scale))
    return raw, np.stack(meant).reshape(rows.shape)


def packed(rows, kind):
    if kind == "Q8_0":
        return q8_0(rows)[0]
    dtype = {"F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16}[kind]
    return np.ascontiguousarray(rows, dtype).tobytes()


def settings_of(c, **more):
    """Keys of a configuration, with more or other ones (None leaves one out)."""
    values = {
        "general.architecture": (STRING, "llama"),
        "llama.context_length": (U32, c.max_seq_len),
        "llama.embedding_length": (U32, c.d_model),
        "llama.block_count": (U32, c.num_layers),
        "llama.feed_forward_length": (U32, c.d_ff),
        "llama.attention.head_count": (U32, c.num_heads),
        "llama.attention.head_count_kv": (U32, c.num_kv_heads),
        "llama.attention.layer_norm_rms_epsilon": (F32, c.norm_eps),
        "llama.rope.dimension_count": (U32, c.head_dim),
        "llama.rope.freq_base": (F32, c.rope_theta),
        **{key.replace("__", "."): content for key, content in more.items()},
    }
    return {key: content for key, content in values.items() if content is not None}


def vocabulary_of(v, **more):
    """Keys of a vocabulary."""
    values = {
        "model": (STRING, "llama"),
        "tokens": (ARRAY, (STRING, [p.text for p in v.pieces])),
        "scores": (ARRAY, (F32, [p.score for p in v.pieces])),
        "token_type": (ARRAY, (I32, [KINDS[p.kind] for p in v.pieces])),
        "bos_token_id": (U32, v.bos_id),
        "eos_token_id": (U32, v.eos_id),
        "unknown_token_id": (U32, v.unk_id),
        "add_space_prefix": (BOOL, v.add_dummy_prefix),
        **more,
    }
    return {f"tokenizer.ggml.{key}": content for key, content in values.items()
            if content is not None}  # fmt: skip


def infos_of(source, kind="F32"):
    """The tensors of a source, matrices in one type, norms in F32."""
    infos = []
    for name, layer, _ in tensors(source.config):
        rows = rows_of(name, source.read(name, layer))
        stored = kind if rows.ndim == 2 else "F32"
        title = f"{'' if layer is None else f'blk.{layer}.'}{NAMES[name]}.weight"
        infos.append((title, rows.shape, stored, packed(rows, stored)))
    return infos


def any_blocks(name, rows, blocks, seed=0):
    """Any bytes, with scales that are finite: [rows, blocks], and the same as plain bytes."""
    quant, rng = QUANTS[name], np.random.default_rng(seed)
    raw = rng.integers(0, 256, (rows, blocks * quant.block.itemsize), dtype=np.uint8)
    structured = raw.view(quant.block)
    for field in quant.block.names:
        if structured[field].dtype == np.float16:
            shape = structured[field].shape
            structured[field] = rng.standard_normal(shape).astype(np.float16)
    return structured, raw
