"""What llama2.c's `run` and `runq` do, told again in NumPy from the C sources: the tests' oracle.

Independent of the package: the file is walked as `memory_map_weights` walks it, planes turn in
interleaved order, `encode` merges as in C. tests/convert/test_llama2c.py holds it against the
output of the real programs, where that is at hand.
"""

import struct

import numpy as np

MAGIC = 0x616B3432


class Run:
    """A model file and a tokenizer file, opened as the programs open them."""

    def __init__(self, model, tokenizer):
        data = model.read_bytes()
        self.version = group = 0
        at, shared = 28, None
        if struct.unpack_from("<I", data)[0] == MAGIC:
            self.version = struct.unpack_from("<i", data, 4)[0]
            counts = struct.unpack_from("<7i", data, 8)
            shared = data[36]
            group = struct.unpack_from("<i", data, 37)[0] if self.version == 2 else 0
            at = 256
        else:
            counts = struct.unpack_from("<7i", data)
        D, F, L, N, K, V, T = counts
        if shared is None:
            shared = V > 0
        V = abs(V)
        H = D // N
        self.D, self.L, self.N, self.K, self.V, self.T, self.H = D, L, N, K, V, T, H
        self.group = group
        self._data, self._at = data, at
        if self.version == 0:
            self.embed = self._matrices(1, V, D)[0]
            self.attn_norm = self._floats(L, D)
            self.q, self.k = self._matrices(L, D, D), self._matrices(L, K * H, D)
            self.v, self.o = self._matrices(L, K * H, D), self._matrices(L, D, D)
            self.mlp_norm = self._floats(L, D)
            self.w1 = self._matrices(L, F, D)
            self.w2 = self._matrices(L, D, F)
            self.w3 = self._matrices(L, F, D)
            self.norm = self._floats(1, D)[0]
            self._floats(T, H)  # frequency tables, which run skips
        else:
            self.attn_norm, self.mlp_norm = self._floats(L, D), self._floats(L, D)
            self.norm = self._floats(1, D)[0]
            self.embed = self._matrices(1, V, D)[0]
            self.q, self.k = self._matrices(L, D, D), self._matrices(L, K * H, D)
            self.v, self.o = self._matrices(L, K * H, D), self._matrices(L, D, D)
            self.w1 = self._matrices(L, F, D)
            self.w2 = self._matrices(L, D, F)
            self.w3 = self._matrices(L, F, D)
        self.head = self.embed if shared else self._matrices(1, V, D)[0]
        assert self._at == len(data)
        self.read_tokenizer(tokenizer.read_bytes())

    def _floats(self, rows, columns):
        array = np.frombuffer(self._data, "<f4", rows * columns, self._at)
        self._at += 4 * array.size
        return array.reshape(rows, columns)

    def _matrices(self, count, rows, columns):
        return [self._matrix(rows, columns) for _ in range(count)]

    def _matrix(self, rows, columns):
        if not self.group:
            return self._floats(rows, columns)
        q = np.frombuffer(self._data, np.int8, rows * columns, self._at).reshape(rows, columns)
        self._at += q.size
        s = self._floats(rows * columns // self.group, 1)
        return q, s.reshape(rows, columns // self.group)

    def row(self, token):
        """The embedding of a token, float32 [D]."""
        if not self.group:
            return self.embed[token].copy()
        q, s = self.embed
        return q[token] * np.repeat(s[token], self.group)

    def _matmul(self, x, w):
        if not self.group:
            return w @ x
        q, s = w
        groups = x.reshape(-1, self.group)
        scale = np.abs(groups).max(axis=1) / np.float32(127)
        ratio = groups / scale[:, None]
        xq = (np.trunc(np.abs(ratio).astype(np.float64) + 0.5) * np.sign(ratio)).astype(np.int32)
        total = np.zeros(len(q), np.float32)
        for j in range(len(scale)):
            products = q[:, j * self.group : (j + 1) * self.group].astype(np.int32) @ xq[j]
            total += products.astype(np.float32) * s[:, j] * scale[j]
        return total

    def logits(self, tokens):
        """float32 [T,V] for a row of tokens, position by position."""
        cache = self._cache()
        return np.stack([self._forward(cache, token, i) for i, token in enumerate(tokens)])

    def _cache(self):
        """Zeros for keys and values."""
        return np.zeros((2, self.L, self.T, self.K, self.H), np.float32)

    def _forward(self, cache, token, position):
        """The logits [V] that follow a token; writes its keys and values."""
        keys, values = cache
        x = self.row(token)
        for layer in range(self.L):
            h = _rms_norm(x, self.attn_norm[layer])
            q = self._matmul(h, self.q[layer]).reshape(self.N, self.H)
            k = self._matmul(h, self.k[layer]).reshape(self.K, self.H)
            keys[layer, position] = _turn(k, position)
            values[layer, position] = self._matmul(h, self.v[layer]).reshape(self.K, self.H)
            out = np.empty((self.N, self.H), np.float32)
            for n, query in enumerate(_turn(q, position)):
                kv = n // (self.N // self.K)
                score = keys[layer, : position + 1, kv] @ query / np.sqrt(np.float32(self.H))
                weight = np.exp(score - score.max())
                out[n] = (weight / weight.sum()) @ values[layer, : position + 1, kv]
            x += self._matmul(out.reshape(-1), self.o[layer])
            h = _rms_norm(x, self.mlp_norm[layer])
            gate, up = self._matmul(h, self.w1[layer]), self._matmul(h, self.w3[layer])
            x += self._matmul(gate / (1 + np.exp(-gate)) * up, self.w2[layer])
        return self._matmul(_rms_norm(x, self.norm), self.head)

    def read_tokenizer(self, data):
        """Records of tokenizer.bin, as many as the model has rows."""
        self.longest = struct.unpack_from("<I", data)[0]
        self.vocab, self.scores, at = [], [], 4
        for _ in range(self.V):
            score, length = struct.unpack_from("<fI", data, at)
            self.vocab.append(data[at + 8 : at + 8 + length])
            self.scores.append(score)
            at += 8 + length
        assert at == len(data)
        self.lookup = {piece: token for token, piece in enumerate(self.vocab)}

    def encode(self, text):
        """Ids of a text without zero bytes, BOS before them."""
        ids = [1]
        if text:
            ids.append(self.lookup[b" "])
        for character in text:
            raw = character.encode()
            ids += [self.lookup[raw]] if raw in self.lookup else [byte + 3 for byte in raw]
        while True:
            best, best_score, best_token = None, -1e10, None
            for i in range(len(ids) - 1):
                token = self.lookup.get(self.vocab[ids[i]] + self.vocab[ids[i + 1]])
                if token is not None and self.scores[token] > best_score:
                    best, best_score, best_token = i, self.scores[token], token
            if best is None:
                return ids
            ids[best : best + 2] = [best_token]

    def print(self, prompt, steps):
        """What `run MODEL -t 0 -n STEPS -i PROMPT` prints; it stops at BOS and not at EOS."""
        ids, printed, cache = self.encode(prompt), b"", self._cache()
        token = ids[0]
        for position in range(min(steps, self.T)):
            logits = self._forward(cache, token, position)
            more = position < len(ids) - 1
            following = ids[position + 1] if more else int(logits.argmax())
            if following == 1:
                break
            printed += self._print_piece(token, following)
            token = following
        return printed + b"\n"

    def _print_piece(self, previous, token):
        piece = self.vocab[token]
        if previous == 1 and piece[:1] == b" ":
            piece = piece[1:]
        if len(piece) == 6 and piece[:3] == b"<0x":
            piece = bytes([int(piece[3:5], 16)])
        printable = len(piece) != 1 or 32 <= piece[0] < 127 or piece in b"\t\n\v\f\r"
        return piece if printable else b""


def _rms_norm(x, weight):
    return weight * (x / np.sqrt(np.mean(x * x) + np.float32(1e-5)))


def _turn(heads, position):
    """Neighbouring dimensions as complex numbers, turned by position / 10000^(2j/H)."""
    H = heads.shape[-1]
    angle = position / 10000.0 ** (np.arange(0, H, 2) / H)
    turned = (heads[..., 0::2] + 1j * heads[..., 1::2]) * np.exp(1j * angle)
    return np.stack([turned.real, turned.imag], axis=-1).reshape(heads.shape).astype(np.float32)
