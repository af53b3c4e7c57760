"""S3's HTTP, as far as boto3, its transfer manager and `aws s3` use it: path-style, XML, ETag = MD5."""

import asyncio
import base64
import binascii
import datetime
import email.utils
import hashlib
import json
import os
import re
import shutil
import urllib.parse
import uuid
import xml.etree.ElementTree as ET  # our own answers; requests are small and expat refuses entity bombs
import zlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from pipelines.local.errors import ServiceError
from pipelines.local.objects import Info, Objects, link

_NAMESPACE = "http://s3.amazonaws.com/doc/2006-03-01/"
_BLOCK = 1 << 20  # bytes read or written at a time
_SMALL = 4 << 20  # answers up to this many bytes go out in one piece
_LARGEST_XML = 4 << 20
_MOST_KEYS = 1000
_UPLOAD = re.compile(r"[0-9a-f]{32}")
_IGNORED = {"x-id", "encoding-type", "prefix", "delimiter", "marker", "max-keys", "list-type", "continuation-token"}
_IGNORED |= {"start-after", "fetch-owner", "uploadId", "partNumber"}
_IGNORED |= {f"response-{name}" for name in ("content-type", "content-disposition", "cache-control", "expires")}


async def handle(request: Request, objects: Objects) -> Response:
    """Answer one request of S3's.

    Raises:
        ServiceError: with S3's code and status.
    """
    bucket, _, key = request.url.path.lstrip("/").partition("/")
    query = dict(request.query_params)
    extra = [name for name in query if name not in _IGNORED and name not in ("uploads", "delete", "location")]
    if extra:
        raise ServiceError("NotImplemented", f"s3: {request.method} with ?{extra[0]} is not supported here", 501)
    if not bucket:
        if request.method != "GET":
            raise ServiceError("MethodNotAllowed", f"s3: {request.method} / is not supported here", 405)
        return _list_buckets(objects)
    if not key:
        return await _bucket(request, objects, bucket, query)
    return await _object(request, objects, bucket, key, query)


def failure(error: ServiceError, request: Request) -> Response:
    """An error as S3 reports it."""
    if request.method == "HEAD":
        return Response(status_code=error.status)
    fields = f"<Code>{escape(error.code)}</Code><Message>{escape(_printable(error.message))}</Message>"
    resource = f"<Resource>{escape(_printable(request.url.path))}</Resource>"
    body = f'<?xml version="1.0" encoding="UTF-8"?>\n<Error>{fields}{resource}<RequestId>0</RequestId></Error>'
    return Response(body, error.status, media_type="application/xml")


# --- buckets


def _list_buckets(objects: Objects) -> Response:
    root = ET.Element("ListAllMyBucketsResult", xmlns=_NAMESPACE)
    inside = ET.SubElement(root, "Buckets")
    for name, made in objects.buckets():
        _element(inside, "Bucket", Name=name, CreationDate=_iso(made))
    return _xml(root)


async def _bucket(request: Request, objects: Objects, bucket: str, query: dict[str, str]) -> Response:
    match request.method:
        case "PUT":
            await request.body()
            objects.create_bucket(bucket)
            return Response(headers={"Location": f"/{bucket}"})
        case "HEAD":
            if not objects.has_bucket(bucket):
                raise ServiceError("NoSuchBucket", f"The specified bucket does not exist: {bucket}", 404)
            return Response(headers={"x-amz-bucket-region": "us-east-1"})
        case "DELETE":
            objects.delete_bucket(bucket)
            return Response(status_code=204)
        case "POST" if "delete" in query:
            return await _delete_many(request, objects, bucket)
        case "GET" if "location" in query:
            return _xml(ET.Element("LocationConstraint", xmlns=_NAMESPACE))  # empty: us-east-1
        case "GET" if "uploads" not in query:
            return await asyncio.to_thread(_list, objects, bucket, query)
    raise ServiceError("NotImplemented", f"s3: {request.method} {request.url} is not supported here", 501)


def _list(objects: Objects, bucket: str, query: dict[str, str]) -> Response:
    """ListObjects and ListObjectsV2."""
    second = query.get("list-type") == "2"
    prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
    most = min(_integer(query.get("max-keys", str(_MOST_KEYS))), _MOST_KEYS)
    after = query.get("start-after", "") if second else query.get("marker", "")
    if token := query.get("continuation-token"):
        try:
            after = base64.urlsafe_b64decode(token).decode()
        except (binascii.Error, ValueError):
            raise ServiceError("InvalidArgument", "The continuation token provided is incorrect") from None
    entries: list[tuple[str, bool]] = []  # (key or common prefix, whether it is a prefix)
    truncated = False
    for key in objects.keys(bucket, prefix):
        common = None
        if delimiter and (at := key.find(delimiter, len(prefix))) >= 0:
            common = key[: at + len(delimiter)]
        name = common or key
        if (after and name.encode() <= after.encode()) or (entries and entries[-1][0] == name):
            continue
        if len(entries) >= most:
            truncated = True
            break
        entries.append((name, common is not None))
    encode = urllib.parse.quote if query.get("encoding-type") == "url" else str
    root = ET.Element("ListBucketResult", xmlns=_NAMESPACE)
    fields = {"Name": bucket, "Prefix": encode(prefix), "MaxKeys": str(most), "IsTruncated": str(truncated).lower()}
    if delimiter:
        fields["Delimiter"] = encode(delimiter)
    if "encoding-type" in query:
        fields["EncodingType"] = query["encoding-type"]
    if second:
        fields["KeyCount"] = str(len(entries))
        if truncated:
            fields["NextContinuationToken"] = base64.urlsafe_b64encode(entries[-1][0].encode()).decode()
        for name in ("continuation-token", "start-after"):
            if name in query:
                fields["ContinuationToken" if name[0] == "c" else "StartAfter"] = encode(query[name])
    else:
        fields["Marker"] = encode(query.get("marker", ""))
        if truncated and delimiter:
            fields["NextMarker"] = encode(entries[-1][0])
    for name, value in fields.items():
        ET.SubElement(root, name).text = value
    for name, is_prefix in entries:
        if is_prefix:
            _element(root, "CommonPrefixes", Prefix=encode(name))
            continue
        try:
            info = objects.head(bucket, name)
        except ServiceError:
            continue  # deleted meanwhile
        stamp = {"LastModified": _iso(info.modified), "ETag": f'"{info.etag}"', "Size": str(info.size)}
        _element(root, "Contents", Key=encode(name), **stamp, StorageClass="STANDARD")
    return _xml(root)


async def _delete_many(request: Request, objects: Objects, bucket: str) -> Response:
    document = await _read_xml(request)
    quiet = document.findtext("{*}Quiet", "false") == "true"
    root = ET.Element("DeleteResult", xmlns=_NAMESPACE)
    for item in document.iterfind("{*}Object"):
        key = item.findtext("{*}Key", "")
        try:
            objects.delete(bucket, key)
        except ServiceError as error:
            _element(root, "Error", Key=key, Code=error.code, Message=error.message)
        else:
            if not quiet:
                _element(root, "Deleted", Key=key)
    return _xml(root)


# --- objects


async def _object(request: Request, objects: Objects, bucket: str, key: str, query: dict[str, str]) -> Response:
    upload = query.get("uploadId")
    match request.method:
        case "GET" if upload:
            return _list_parts(objects, bucket, key, upload)
        case "GET" | "HEAD":
            return await _get(request, objects, bucket, key, query)
        case "PUT" if upload:
            return await _put_part(request, objects, bucket, key, upload, _integer(query.get("partNumber", "")))
        case "PUT" if "x-amz-copy-source" in request.headers:
            return await asyncio.to_thread(_copy, request, objects, bucket, key)
        case "PUT":
            return await _put(request, objects, bucket, key)
        case "DELETE" if upload:
            shutil.rmtree(_upload(objects, bucket, key, upload))
            return Response(status_code=204)
        case "DELETE":
            objects.delete(bucket, key.rstrip("/") if key.endswith("/") else key)
            return Response(status_code=204)
        case "POST" if "uploads" in query:
            return _create_upload(request, objects, bucket, key)
        case "POST" if upload:
            return await _complete(request, objects, bucket, key, upload)
    raise ServiceError("NotImplemented", f"s3: {request.method} {request.url} is not supported here", 501)


async def _put(request: Request, objects: Objects, bucket: str, key: str) -> Response:
    if request.headers.get("if-none-match") == "*" and _exists(objects, bucket, key):
        raise ServiceError("PreconditionFailed", f"{key} exists already", 412)
    temporary = objects.temporary()
    try:
        if key.endswith("/"):  # a folder made by the console: nothing to keep, folders come with their objects
            objects.path(bucket, key.rstrip("/"))
            etag, size = await _receive(request, temporary)
            if size:
                raise ServiceError("InvalidArgument", f"A key that ends in '/' can hold nothing here: {key!r}")
        else:
            objects.path(bucket, key)  # refuse a bad key before reading its body
            etag, _ = await _receive(request, temporary)
            kind = request.headers.get("content-type", "binary/octet-stream")
            objects.put(bucket, key, temporary, etag, kind, _metadata(request))
    finally:
        temporary.unlink(missing_ok=True)
    return Response(headers={"ETag": f'"{etag}"'})


def _exists(objects: Objects, bucket: str, key: str) -> bool:
    try:
        objects.head(bucket, key)
    except ServiceError:
        return False
    return True


async def _get(request: Request, objects: Objects, bucket: str, key: str, query: dict[str, str]) -> Response:
    handle, info = await asyncio.to_thread(objects.open, bucket, key)
    try:
        first, last, status = _range(request.headers.get("range"), info.size)
        headers = _headers(info, query)
        headers["Content-Length"] = str(last - first + 1)
        if status == 206:
            headers["Content-Range"] = f"bytes {first}-{last}/{info.size}"
        if _is_known(request, info):
            return Response(status_code=304, headers={"ETag": headers["ETag"]})
        if request.method == "HEAD":
            return Response(status_code=status, headers=headers)
        if last - first < _SMALL:
            return Response(os.pread(handle, last - first + 1, first), status, headers)
        body = _blocks(os.dup(handle), first, last)
        return StreamingResponse(body, status, headers)
    finally:
        os.close(handle)


def _is_known(request: Request, info: Info) -> bool:
    """Whether If-None-Match names this very version; an If-Match that does not is an error."""
    wanted = request.headers.get("if-match")
    if wanted and wanted.strip('"') not in (info.etag, "*"):
        raise ServiceError("PreconditionFailed", "At least one of the pre-conditions you specified did not hold", 412)
    return request.headers.get("if-none-match", "").strip('"') == info.etag


async def _blocks(handle: int, first: int, last: int) -> AsyncIterator[bytes]:
    try:
        while first <= last:
            block = await asyncio.to_thread(os.pread, handle, min(_BLOCK, last - first + 1), first)
            if not block:
                return
            first += len(block)
            yield block
    finally:
        os.close(handle)


def _range(header: str | None, size: int) -> tuple[int, int, int]:
    """First and last byte and the status, for a Range header; more than one range is answered whole, as by S3."""
    match = re.fullmatch(r"bytes=(\d*)-(\d*)", header or "")
    if not match or not (match[1] or match[2]):
        return 0, size - 1, 200
    if match[1]:
        first, last = int(match[1]), min(int(match[2]) if match[2] else size - 1, size - 1)
    else:
        first, last = max(0, size - int(match[2])), size - 1
    if first >= size or first > last:
        raise ServiceError("InvalidRange", "The requested range is not satisfiable", 416)
    return first, last, 206


def _headers(info: Info, query: dict[str, str]) -> dict[str, str]:
    return {
        "ETag": f'"{info.etag}"',
        "Last-Modified": email.utils.formatdate(info.modified, usegmt=True),
        "Accept-Ranges": "bytes",
        "Content-Type": query.get("response-content-type", info.content_type),
        **{f"x-amz-meta-{name}": value for name, value in info.metadata.items()},
    }


def _metadata(request: Request) -> dict[str, str]:
    prefix = "x-amz-meta-"
    return {name[len(prefix) :]: value for name, value in request.headers.items() if name.startswith(prefix)}


def _source(request: Request, objects: Objects) -> tuple[Path, Info]:
    source = request.headers["x-amz-copy-source"]
    if "?versionId=" in source:
        raise ServiceError("NotImplemented", "s3: versions are not supported here", 501)
    bucket, _, key = urllib.parse.unquote(source).lstrip("/").partition("/")
    return objects.path(bucket, key), objects.head(bucket, key)


def _copy(request: Request, objects: Objects, bucket: str, key: str) -> Response:
    path, info = _source(request, objects)
    temporary = objects.temporary()
    replace = request.headers.get("x-amz-metadata-directive") == "REPLACE"
    kind = request.headers.get("content-type", info.content_type) if replace else info.content_type
    link(path, temporary)
    try:
        objects.put(bucket, key, temporary, info.etag, kind, _metadata(request) if replace else info.metadata)
    finally:
        temporary.unlink(missing_ok=True)
    root = ET.Element("CopyObjectResult", xmlns=_NAMESPACE)
    ET.SubElement(root, "LastModified").text = _iso(objects.head(bucket, key).modified)
    ET.SubElement(root, "ETag").text = f'"{info.etag}"'
    return _xml(root)


# --- multipart uploads: a folder of parts in `scratch` until they are put together


def _upload(objects: Objects, bucket: str, key: str, upload: str) -> Path:
    folder = objects.scratch / f"upload-{upload}"
    if not _UPLOAD.fullmatch(upload) or not folder.is_dir():
        raise ServiceError("NoSuchUpload", f"The specified upload does not exist: {upload}", 404)
    about = json.loads((folder / "about.json").read_text())
    if (about["bucket"], about["key"]) != (bucket, key):
        raise ServiceError("NoSuchUpload", f"The specified upload is not for {key}", 404)
    return folder


def _create_upload(request: Request, objects: Objects, bucket: str, key: str) -> Response:
    objects.path(bucket, key)
    upload = uuid.uuid4().hex
    folder = objects.scratch / f"upload-{upload}"
    folder.mkdir()
    kind = request.headers.get("content-type", "binary/octet-stream")
    about = {"bucket": bucket, "key": key, "content_type": kind, "metadata": _metadata(request)}
    (folder / "about.json").write_text(json.dumps(about))
    root = ET.Element("InitiateMultipartUploadResult", xmlns=_NAMESPACE)
    for name, value in (("Bucket", bucket), ("Key", key), ("UploadId", upload)):
        ET.SubElement(root, name).text = value
    return _xml(root)


async def _put_part(request: Request, objects: Objects, bucket: str, key: str, upload: str, number: int) -> Response:
    folder = _upload(objects, bucket, key, upload)
    if not 1 <= number <= 10_000:
        raise ServiceError("InvalidArgument", f"Part number must be between 1 and 10000, not {number}")
    temporary = objects.temporary()
    try:
        if "x-amz-copy-source" in request.headers:
            etag = await asyncio.to_thread(_copy_range, request, objects, temporary)
        else:
            etag, _ = await _receive(request, temporary)
        temporary.replace(folder / f"{number:05d}")
        (folder / f"{number:05d}.etag").write_text(etag)
    finally:
        temporary.unlink(missing_ok=True)
    if "x-amz-copy-source" in request.headers:
        root = ET.Element("CopyPartResult", xmlns=_NAMESPACE)
        ET.SubElement(root, "ETag").text = f'"{etag}"'
        return _xml(root)
    return Response(headers={"ETag": f'"{etag}"'})


def _copy_range(request: Request, objects: Objects, destination: Path) -> str:
    path, info = _source(request, objects)
    first, last, _ = _range(request.headers.get("x-amz-copy-source-range"), info.size)
    digest = hashlib.md5(usedforsecurity=False)
    with path.open("rb") as source, destination.open("wb") as file:
        source.seek(first)
        left = last - first + 1
        while left and (block := source.read(min(_BLOCK, left))):
            left -= len(block)
            digest.update(block)
            file.write(block)
    return digest.hexdigest()


def _list_parts(objects: Objects, bucket: str, key: str, upload: str) -> Response:
    folder = _upload(objects, bucket, key, upload)
    root = ET.Element("ListPartsResult", xmlns=_NAMESPACE)
    for name, value in (("Bucket", bucket), ("Key", key), ("UploadId", upload), ("IsTruncated", "false")):
        ET.SubElement(root, name).text = value
    for path in sorted(folder.glob("*.etag")):
        size = str(path.with_suffix("").stat().st_size)
        _element(root, "Part", PartNumber=str(int(path.stem)), ETag=f'"{path.read_text()}"', Size=size)
    return _xml(root)


async def _complete(request: Request, objects: Objects, bucket: str, key: str, upload: str) -> Response:
    folder = _upload(objects, bucket, key, upload)
    document = await _read_xml(request)
    parts = [
        (_integer(part.findtext("{*}PartNumber", "")), part.findtext("{*}ETag", "").strip('"'))
        for part in document.iterfind("{*}Part")
    ]
    numbers = [number for number, _ in parts]
    if not parts or numbers != sorted(set(numbers)):
        raise ServiceError("InvalidPartOrder", "The list of parts was not in ascending order")
    etag = await asyncio.to_thread(_assemble, objects, bucket, key, folder, parts)
    root = ET.Element("CompleteMultipartUploadResult", xmlns=_NAMESPACE)
    fields = {"Location": f"/{bucket}/{urllib.parse.quote(key)}", "Bucket": bucket, "Key": key, "ETag": f'"{etag}"'}
    for name, value in fields.items():
        ET.SubElement(root, name).text = value
    return _xml(root)


def _assemble(objects: Objects, bucket: str, key: str, folder: Path, parts: list[tuple[int, str]]) -> str:
    """The parts as one object; its ETag is S3's for multipart uploads: the MD5 of the parts' MD5s, and their number."""
    about: dict[str, Any] = json.loads((folder / "about.json").read_text())
    temporary = objects.temporary()
    try:
        with temporary.open("wb") as file:
            for number, etag in parts:
                path = folder / f"{number:05d}"
                if not path.is_file() or path.with_suffix(".etag").read_text() != etag:
                    raise ServiceError("InvalidPart", f"Part {number} could not be found, or its ETag is another")
                with path.open("rb") as part:
                    shutil.copyfileobj(part, file, _BLOCK)
        digests = b"".join(bytes.fromhex(etag) for _, etag in parts)
        etag = f"{hashlib.md5(digests, usedforsecurity=False).hexdigest()}-{len(parts)}"
        objects.put(bucket, key, temporary, etag, about["content_type"], about["metadata"])
    finally:
        temporary.unlink(missing_ok=True)
    shutil.rmtree(folder)
    return etag


# --- bodies


class _Sink:
    """Writes a body to a file and works out its digests on the way."""

    def __init__(self, path: Path, checksums: set[str]) -> None:
        self._file = path.open("wb")
        self._md5 = hashlib.md5(usedforsecurity=False)
        self._sha = {name: hashlib.new(name, usedforsecurity=False) for name in ("sha1", "sha256") if name in checksums}
        self._crc32 = 0 if "crc32" in checksums else None
        self.size = 0

    def write(self, data: bytes) -> None:
        self._file.write(data)
        self._md5.update(data)
        self.size += len(data)
        for digest in self._sha.values():
            digest.update(data)
        if self._crc32 is not None:
            self._crc32 = zlib.crc32(data, self._crc32)

    def close(self) -> None:
        self._file.close()

    @property
    def md5(self) -> str:
        return self._md5.hexdigest()

    def check(self, name: str, expected: str) -> None:
        """Compare with a checksum the client sent; CRC32C and CRC64 have no fast code in the standard library."""
        if name == "md5":
            found = self._md5.digest()
        elif name in self._sha:
            found = self._sha[name].digest()
        elif name == "crc32" and self._crc32 is not None:
            found = self._crc32.to_bytes(4, "big")
        else:
            return
        if base64.b64encode(found).decode() != expected:
            raise ServiceError("BadDigest", f"The {name} you specified did not match what was received")


async def _receive(request: Request, path: Path) -> tuple[str, int]:
    """Write the request's body to a file, checking what checksums came with it; its MD5 and size."""
    announced = request.headers.get("x-amz-trailer", "").strip().lower()
    prefix = "x-amz-checksum-"
    sent = {name[len(prefix) :]: value for name, value in request.headers.items() if name.startswith(prefix)}
    sink = _Sink(path, {*sent, announced.removeprefix(prefix)})
    try:
        if "aws-chunked" in request.headers.get("content-encoding", "") or request.headers.get(
            "x-amz-content-sha256", ""
        ).startswith("STREAMING-"):
            trailers = await _receive_chunked(request, sink)
            if announced and announced not in trailers:
                raise ServiceError("IncompleteBody", f"The trailer {announced} was announced and did not come")
            sent |= {name[len(prefix) :]: value for name, value in trailers.items() if name.startswith(prefix)}
            wanted = request.headers.get("x-amz-decoded-content-length")
        else:
            async for data in request.stream():
                sink.write(data)
            wanted = request.headers.get("content-length")
    finally:
        sink.close()
    if wanted is not None and int(wanted) != sink.size:
        raise ServiceError("IncompleteBody", f"{wanted} bytes were announced, {sink.size} received")
    if "content-md5" in request.headers:
        sink.check("md5", request.headers["content-md5"])
    for name, value in sent.items():
        sink.check(name, value)
    return sink.md5, sink.size


async def _receive_chunked(request: Request, sink: _Sink) -> dict[str, str]:
    """Decode `aws-chunked`: `SIZE[;signature]` CRLF data CRLF … `0` CRLF trailers CRLF. Returns the trailers."""
    buffer = bytearray()
    left = 0  # bytes of the current chunk still to come
    in_data = in_trailers = False
    trailers: dict[str, str] = {}
    async for data in request.stream():
        buffer += data
        while buffer:
            if in_data:
                take = min(left, len(buffer))
                sink.write(bytes(buffer[:take]))
                del buffer[:take]
                left -= take
                if left or len(buffer) < 2:
                    break
                del buffer[:2]  # the CRLF after the data
                in_data = False
            end = buffer.find(b"\r\n")
            if end < 0:
                break
            line = bytes(buffer[:end])
            del buffer[: end + 2]
            if in_trailers:
                name, _, value = line.decode("latin-1").partition(":")
                if name:
                    trailers[name.strip().lower()] = value.strip()
            else:
                left = _hexadecimal(line.split(b";")[0])
                in_data, in_trailers = left > 0, left == 0
    if not in_trailers:
        raise ServiceError("IncompleteBody", "The body ended before its last chunk")
    return trailers


def _hexadecimal(text: bytes) -> int:
    if not re.fullmatch(rb"[0-9a-fA-F]{1,16}", text.strip()):
        raise ServiceError("InvalidRequest", f"{text[:40]!r} is not the size of a chunk")
    return int(text, 16)


# --- XML


async def _read_xml(request: Request) -> ET.Element:
    body = bytearray()
    async for data in request.stream():
        body += data
        if len(body) > _LARGEST_XML:
            raise ServiceError("EntityTooLarge", "The XML you provided is too large")
    try:
        return ET.fromstring(bytes(body))  # noqa: S314 - from a client on this machine, at most 4 MB
    except ET.ParseError as error:
        raise ServiceError("MalformedXML", f"The XML you provided was not well-formed: {error}") from None


def _xml(root: ET.Element) -> Response:
    return Response(ET.tostring(root, encoding="utf-8", xml_declaration=True), media_type="application/xml")


def _element(parent: ET.Element, tag: str, **fields: str) -> None:
    element = ET.SubElement(parent, tag)
    for name, value in fields.items():
        ET.SubElement(element, name).text = _printable(value)


def _printable(text: str) -> str:
    """Text without the control characters XML can not hold."""
    return re.sub(r"[\x00-\x08\x0b\x0c\x0e-\x1f\ufffe\uffff]", "\N{REPLACEMENT CHARACTER}", text)


def _iso(seconds: float) -> str:
    moment = datetime.datetime.fromtimestamp(seconds, datetime.UTC)
    return moment.strftime("%Y-%m-%dT%H:%M:%S.") + f"{moment.microsecond // 1000:03d}Z"


def _integer(text: str) -> int:
    if not text.isdigit() or len(text) > 9:
        raise ServiceError("InvalidArgument", f"{text!r} is not a whole number")
    return int(text)
