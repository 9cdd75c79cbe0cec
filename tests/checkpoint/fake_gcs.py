"""Google Cloud Storage in one process: the parts of its JSON API that gcsfs and tensorstore use.

Objects live in a dict, `server.objects[bucket/name] = (generation, bytes)`. Every write is whole
and gives a new generation; the conditions `ifGenerationMatch` and `ifGenerationNotMatch` hold.
"""

import base64
import json
import struct
import sys
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

import google_crc32c  # pyrefly: ignore[missing-import]


@contextmanager
def serve():
    """The server, at http://127.0.0.1:PORT (`server.url`)."""
    server = _Server(("127.0.0.1", 0), _Handler)
    server.objects, server.uploads, server.lock = {}, {}, threading.Lock()  # type: ignore
    server.url = f"http://127.0.0.1:{server.server_port}"  # type: ignore
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request, client_address):
        """Clients that are killed hang up in the middle; anything else is a fault of this file."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    generations = iter(range(1, 1 << 62))

    def log_message(self, *_):
        pass

    def do_GET(self):
        bucket, name, query = self.where()
        if name is None:
            return (
                self.listing(bucket, query)
                if self.path.split("?")[0].endswith("/o")
                else (self.answer(200, {"name": bucket, "kind": "storage#bucket"}))
            )
        found = self.server.objects.get(f"{bucket}/{name}")
        if found is None:
            return self.answer(404, {"error": {"code": 404, "message": "not found"}})
        generation, data = found
        if query.get("ifGenerationNotMatch") == str(generation):
            return self.answer(304, None)
        if query.get("ifGenerationMatch", str(generation)) != str(generation):
            return self.answer(412, {"error": {"code": 412, "message": "generation"}})
        if query.get("alt") != "media":
            return self.answer(200, _metadata(bucket, name, generation, data))
        status, headers = 200, {"x-goog-generation": str(generation)}
        if limits := self.headers.get("Range"):
            first, _, last = limits.removeprefix("bytes=").partition("-")
            start = int(first) if first else len(data) - int(last)
            stop = min(int(last) + 1, len(data)) if first and last else len(data)
            if start >= len(data):
                return self.answer(416, {"error": {"code": 416, "message": "range"}})
            headers["Content-Range"] = f"bytes {start}-{stop - 1}/{len(data)}"
            status, data = 206, data[start:stop]
        return self.answer(status, data, headers)

    def do_POST(self):
        bucket, name, query = self.where()
        if "upload_id" in query:
            return self.do_PUT()
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if (name and "/rewriteTo/" in name) or (name and "/copyTo/" in name):
            verb = "rewriteTo" if "/rewriteTo/" in name else "copyTo"
            source, target = name.split(f"/{verb}/b/")
            to_bucket, to_name = target.split("/o/", 1)
            data = self.server.objects[f"{bucket}/{source}"][1]
            resource = self.store(to_bucket, to_name, data)
            done = {"done": True, "resource": resource, "objectSize": str(len(data))}
            return self.answer(200, done if verb == "rewriteTo" else resource)
        kind = query.get("uploadType")
        if kind == "resumable":
            upload = str(next(self.generations))
            self.server.uploads[upload] = [query.get("name") or json.loads(body)["name"], b""]
            location = f"{self.server.url}/upload/storage/v1/b/{bucket}/o?upload_id={upload}"
            return self.answer(200, {}, {"Location": location})
        if kind == "multipart":
            boundary = self.headers["Content-Type"].partition("boundary=")[2].strip("'\"").encode()
            parts = body.split(b"--" + boundary)[1:3]
            meta, data = (part.partition(b"\r\n\r\n")[2].removesuffix(b"\r\n") for part in parts)
            name = json.loads(meta)["name"]
        else:
            name, data = query["name"], body
        return self.put(bucket, name, data, query)

    def do_PUT(self):
        bucket, _, query = self.where()
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        upload = self.server.uploads[query["upload_id"]]
        upload[1] += body
        if self.headers.get("Content-Range", "bytes */0").endswith("/*"):
            return self.answer(308, None, {"Range": f"bytes=0-{len(upload[1]) - 1}"})
        return self.put(bucket, *upload, query)

    def do_DELETE(self):
        bucket, name, _ = self.where()
        gone = self.server.objects.pop(f"{bucket}/{name}", None)
        return self.answer(204 if gone else 404, None)

    def put(self, bucket, name, data, query):
        with self.server.lock:
            now = self.server.objects.get(f"{bucket}/{name}", (0, b""))[0]
            if query.get("ifGenerationMatch", str(now)) != str(now):
                return self.answer(412, {"error": {"code": 412, "message": "generation"}})
            return self.answer(200, self.store(bucket, name, data))

    def store(self, bucket, name, data):
        generation = next(self.generations)
        self.server.objects[f"{bucket}/{name}"] = (generation, bytes(data))
        return _metadata(bucket, name, generation, data)

    def listing(self, bucket, query):
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter")
        items, prefixes = [], set()
        for key, (generation, data) in sorted(self.server.objects.items()):
            name = key.removeprefix(f"{bucket}/")
            inside = query.get("startOffset", "") <= name < query.get("endOffset", "\U0010ffff")
            if not name.startswith(prefix) or not inside:
                continue
            rest = name.removeprefix(prefix)
            if delimiter and delimiter in rest:
                prefixes.add(prefix + rest.partition(delimiter)[0] + delimiter)
            else:
                items.append(_metadata(bucket, name, generation, data))
        limit = int(query.get("maxResults") or len(items))
        found = {"kind": "storage#objects", "items": items[:limit], "prefixes": sorted(prefixes)}
        return self.answer(200, {key: value for key, value in found.items() if value})

    def where(self):
        """(bucket, object or None, query)."""
        parts = urlsplit(self.path)
        bucket, _, rest = parts.path.partition("/b/")[2].partition("/")
        name = unquote(rest.removeprefix("o/")) if rest.startswith("o/") else None
        return unquote(bucket), name, {k: v[0] for k, v in parse_qs(parts.query).items()}

    def answer(self, status, content, headers=None):
        data = content if isinstance(content, bytes) else b""
        if isinstance(content, dict):
            data = json.dumps(content).encode()
        self.send_response(status)
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if status not in (204, 304):
            self.wfile.write(data)


def _metadata(bucket, name, generation, data):
    crc = struct.pack(">I", google_crc32c.value(bytes(data)))
    now = "2026-01-01T00:00:00.000Z"
    return {
        "kind": "storage#object", "bucket": bucket, "name": name, "size": str(len(data)),
        "generation": str(generation), "metageneration": "1", "updated": now, "timeCreated": now,
        "crc32c": base64.b64encode(crc).decode(), "contentType": "application/octet-stream",
        "id": f"{bucket}/{name}/{generation}",
    }  # fmt: skip


if __name__ == "__main__":
    with serve() as server:
        print(server.url, flush=True)
        threading.Event().wait()
