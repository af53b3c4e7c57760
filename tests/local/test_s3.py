"""The object store, by boto3."""

import hashlib
import http.client
import io
import threading
import urllib.parse
from pathlib import Path
from typing import Any

import pytest
from boto3.s3.transfer import TransferConfig

from tests.local.definitions import Clients, client

BODY = bytes(range(256)) * 4096  # 1 MB


@pytest.fixture
def bucket(clients: Clients, request: pytest.FixtureRequest) -> str:
    name = f"t-{hashlib.sha1(request.node.name.encode()).hexdigest()[:20]}"
    clients.s3.create_bucket(Bucket=name)
    return name


def test_put_get_head_delete(clients: Clients, bucket: str) -> None:
    etag = clients.s3.put_object(
        Bucket=bucket, Key="a/b.bin", Body=BODY, ContentType="image/png", Metadata={"who": "me"}
    )["ETag"]
    assert etag == f'"{hashlib.md5(BODY).hexdigest()}"'
    got = clients.s3.get_object(Bucket=bucket, Key="a/b.bin")
    assert got["Body"].read() == BODY
    head = clients.s3.head_object(Bucket=bucket, Key="a/b.bin")
    assert (head["ContentLength"], head["ContentType"], head["Metadata"]) == (len(BODY), "image/png", {"who": "me"})
    assert head["ETag"] == got["ETag"] == etag
    clients.s3.delete_object(Bucket=bucket, Key="a/b.bin")
    clients.s3.delete_object(Bucket=bucket, Key="a/b.bin")  # no error, as on S3
    with pytest.raises(clients.s3.exceptions.NoSuchKey):
        clients.s3.get_object(Bucket=bucket, Key="a/b.bin")
    with pytest.raises(clients.s3.exceptions.ClientError, match="404"):
        clients.s3.head_object(Bucket=bucket, Key="a/b.bin")


@pytest.mark.parametrize(
    ("wanted", "first", "last"),
    [
        ("bytes=0-0", 0, 0),
        ("bytes=10-19", 10, 19),
        ("bytes=1048570-", 1048570, 1048575),
        ("bytes=-6", 1048570, 1048575),
    ],
)
def test_ranges(clients: Clients, bucket: str, wanted: str, first: int, last: int) -> None:
    clients.s3.put_object(Bucket=bucket, Key="k", Body=BODY)
    answer = clients.s3.get_object(Bucket=bucket, Key="k", Range=wanted)
    assert answer["Body"].read() == BODY[first : last + 1]
    assert answer["ContentRange"] == f"bytes {first}-{last}/{len(BODY)}"
    with pytest.raises(clients.s3.exceptions.ClientError, match="InvalidRange"):
        clients.s3.get_object(Bucket=bucket, Key="k", Range="bytes=1048576-")


def test_empty_objects_and_large_streams(clients: Clients, bucket: str) -> None:
    clients.s3.put_object(Bucket=bucket, Key="empty", Body=b"")
    assert clients.s3.get_object(Bucket=bucket, Key="empty")["Body"].read() == b""
    large = BODY * 9  # beyond what is answered in one piece
    clients.s3.put_object(Bucket=bucket, Key="large", Body=large)
    assert clients.s3.get_object(Bucket=bucket, Key="large")["Body"].read() == large


def test_transfer_manager(clients: Clients, bucket: str, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(BODY * 12)
    config = TransferConfig(multipart_threshold=5 << 20, multipart_chunksize=5 << 20, max_concurrency=4)
    clients.s3.upload_file(str(source), bucket, "multi", Config=config, ExtraArgs={"Metadata": {"a": "b"}})
    head = clients.s3.head_object(Bucket=bucket, Key="multi")
    parts = [(BODY * 12)[at : at + (5 << 20)] for at in range(0, 12 << 20, 5 << 20)]
    digest = hashlib.md5(b"".join(hashlib.md5(part).digest() for part in parts)).hexdigest()
    assert (head["ETag"], head["Metadata"]) == (f'"{digest}-3"', {"a": "b"})
    clients.s3.download_file(bucket, "multi", str(tmp_path / "back"), Config=config)
    assert (tmp_path / "back").read_bytes() == BODY * 12
    clients.s3.copy({"Bucket": bucket, "Key": "multi"}, bucket, "copied", Config=config)
    assert clients.s3.get_object(Bucket=bucket, Key="copied")["Body"].read() == BODY * 12


def test_an_upload_given_up_leaves_nothing(clients: Clients, bucket: str, state: Path) -> None:
    upload = clients.s3.create_multipart_upload(Bucket=bucket, Key="k")["UploadId"]
    clients.s3.upload_part(Bucket=bucket, Key="k", UploadId=upload, PartNumber=1, Body=b"x")
    assert [part["Size"] for part in clients.s3.list_parts(Bucket=bucket, Key="k", UploadId=upload)["Parts"]] == [1]
    clients.s3.abort_multipart_upload(Bucket=bucket, Key="k", UploadId=upload)
    with pytest.raises(clients.s3.exceptions.ClientError, match="NoSuchUpload"):
        clients.s3.upload_part(Bucket=bucket, Key="k", UploadId=upload, PartNumber=2, Body=b"x")
    assert not list((state / "tmp").glob(f"*{upload}*"))


def test_listing(clients: Clients, bucket: str) -> None:
    keys = ["a.txt", "a/1", "a/2", "a/b/3", "b", "ä/ö ü+&<>.txt", "日本/写真"]
    for key in keys:
        clients.s3.put_object(Bucket=bucket, Key=key, Body=key.encode())
    for operation in ("list_objects", "list_objects_v2"):
        call = getattr(clients.s3, operation)
        assert [item["Key"] for item in call(Bucket=bucket)["Contents"]] == sorted(keys, key=str.encode)
        answer = call(Bucket=bucket, Prefix="a", Delimiter="/")
        assert [item["Key"] for item in answer["Contents"]] == ["a.txt"]
        assert [item["Prefix"] for item in answer["CommonPrefixes"]] == ["a/"]
        assert call(Bucket=bucket, Prefix="zzz").get("Contents") is None
        seen, prefixes = [], []
        for page in clients.s3.get_paginator(operation).paginate(
            Bucket=bucket, Delimiter="/", PaginationConfig={"PageSize": 1}
        ):
            seen += [item["Key"] for item in page.get("Contents", [])]
            prefixes += [item["Prefix"] for item in page.get("CommonPrefixes", [])]
        assert (seen, prefixes) == (["a.txt", "b"], ["a/", "ä/", "日本/"])
    item = clients.s3.list_objects_v2(Bucket=bucket, Prefix="日")["Contents"][0]
    assert item["ETag"] == f'"{hashlib.md5("日本/写真".encode()).hexdigest()}"'
    assert clients.s3.get_object(Bucket=bucket, Key="ä/ö ü+&<>.txt")["Body"].read() == "ä/ö ü+&<>.txt".encode()


def test_delete_many_and_buckets(clients: Clients, bucket: str) -> None:
    for key in ("a/1", "a/2"):
        clients.s3.put_object(Bucket=bucket, Key=key, Body=b"")
    with pytest.raises(clients.s3.exceptions.ClientError, match="BucketNotEmpty"):
        clients.s3.delete_bucket(Bucket=bucket)
    objects = [{"Key": key} for key in ("a/1", "a/2", "never")]
    assert len(clients.s3.delete_objects(Bucket=bucket, Delete={"Objects": objects})["Deleted"]) == 3
    assert bucket in [one["Name"] for one in clients.s3.list_buckets()["Buckets"]]
    clients.s3.delete_bucket(Bucket=bucket)
    with pytest.raises(clients.s3.exceptions.ClientError, match="404"):
        clients.s3.head_bucket(Bucket=bucket)
    with pytest.raises(clients.s3.exceptions.NoSuchBucket):
        clients.s3.put_object(Bucket=bucket, Key="k", Body=b"")


def test_copy_keeps_or_replaces_metadata(clients: Clients, bucket: str) -> None:
    clients.s3.put_object(Bucket=bucket, Key="ü 1", Body=b"x", Metadata={"a": "1"})
    source = {"Bucket": bucket, "Key": "ü 1"}
    clients.s3.copy_object(Bucket=bucket, Key="2", CopySource=source)
    clients.s3.copy_object(Bucket=bucket, Key="3", CopySource=source, MetadataDirective="REPLACE", Metadata={"b": "2"})
    assert clients.s3.head_object(Bucket=bucket, Key="2")["Metadata"] == {"a": "1"}
    assert clients.s3.head_object(Bucket=bucket, Key="3")["Metadata"] == {"b": "2"}
    clients.s3.put_object(Bucket=bucket, Key="ü 1", Body=b"y")
    assert clients.s3.get_object(Bucket=bucket, Key="2")["Body"].read() == b"x"


def test_conditions_on_put_and_get(clients: Clients, bucket: str) -> None:
    etag = clients.s3.put_object(Bucket=bucket, Key="k", Body=b"1", IfNoneMatch="*")["ETag"]
    with pytest.raises(clients.s3.exceptions.ClientError, match="PreconditionFailed"):
        clients.s3.put_object(Bucket=bucket, Key="k", Body=b"2", IfNoneMatch="*")
    with pytest.raises(clients.s3.exceptions.ClientError, match="304"):
        clients.s3.get_object(Bucket=bucket, Key="k", IfNoneMatch=etag)


@pytest.mark.parametrize("algorithm", ["CRC32", "SHA1", "SHA256"])
def test_checksums(clients: Clients, bucket: str, algorithm: str) -> None:
    clients.s3.put_object(Bucket=bucket, Key="k", Body=BODY, ChecksumAlgorithm=algorithm)
    assert clients.s3.get_object(Bucket=bucket, Key="k")["Body"].read() == BODY
    wrong: dict[str, Any] = {f"Checksum{algorithm}": "AAAAAA=="}
    with pytest.raises(clients.s3.exceptions.ClientError, match="BadDigest"):
        clients.s3.put_object(Bucket=bucket, Key="bad", Body=b"x", **wrong)
    assert "bad" not in str(clients.s3.list_objects_v2(Bucket=bucket)["Contents"])


def test_aws_chunked_bodies(clients: Clients, bucket: str) -> None:
    chunks = [b"hello ", b"w", b"orld"]
    body = b"".join(b"%x;chunk-signature=abc\r\n%s\r\n" % (len(chunk), chunk) for chunk in chunks)
    body += b"0\r\nx-amz-checksum-crc32:DUoRhQ==\r\n\r\n"
    headers = {
        "Content-Encoding": "aws-chunked",
        "X-Amz-Trailer": "x-amz-checksum-crc32",
        "X-Amz-Decoded-Content-Length": "11",
    }
    assert raw(clients, "PUT", f"/{bucket}/k", body, headers)[0] == 200
    assert clients.s3.get_object(Bucket=bucket, Key="k")["Body"].read() == b"hello world"
    wrong = body.replace(b"DUoRhQ==", b"AAAAAA==")
    assert raw(clients, "PUT", f"/{bucket}/k2", wrong, headers)[0] == 400
    assert raw(clients, "PUT", f"/{bucket}/k2", body[:-30], headers)[0] == 400
    assert raw(clients, "PUT", f"/{bucket}/k2", b"zz\r\n", headers)[0] == 400
    assert raw(clients, "GET", f"/{bucket}/k2")[0] == 404


def raw(
    clients: Clients, method: str, path: str, body: bytes = b"", headers: dict[str, str] | None = None
) -> tuple[int, bytes]:
    """A request as it stands, without a client that tidies it up."""
    connection = http.client.HTTPConnection(urllib.parse.urlsplit(clients.url).netloc, timeout=30)
    try:
        connection.request(method, path, body, headers or {})
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


@pytest.mark.parametrize(
    "path",
    [
        "/{bucket}/../../state.db",
        "/{bucket}/a/../../../state.db",
        "/{bucket}/%2e%2e/%2e%2e/state.db",
        "/{bucket}/..%2f..%2fstate.db",
        "/{bucket}//etc/passwd",
        "/{bucket}/a%00b",
        "/{bucket}/./a",
        "/../state.db",
        "/..%2f..%2fstate.db",
        "/%2e%2e/state.db",
    ],
)
@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE"])
def test_no_path_leads_out(clients: Clients, bucket: str, state: Path, method: str, path: str) -> None:
    before = sorted(item.name for item in state.iterdir())
    status, body = raw(clients, method, path.format(bucket=bucket), b"x" if method == "PUT" else b"")
    assert status in (400, 403, 404), body
    assert b"SQLite" not in body
    assert sorted(item.name for item in state.iterdir()) == before


def test_a_link_in_the_store_is_not_followed(clients: Clients, bucket: str, state: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    (state / "s3" / bucket / "file").symlink_to(tmp_path / "secret")
    (state / "s3" / bucket / "folder").symlink_to(tmp_path)
    for key in ("file", "folder/secret"):
        assert raw(clients, "GET", f"/{bucket}/{key}")[0] == 403


def test_keys_the_file_system_can_not_hold(clients: Clients, bucket: str) -> None:
    clients.s3.put_object(Bucket=bucket, Key="a", Body=b"1")
    for key in ("a/b", "x" * 300):
        with pytest.raises(clients.s3.exceptions.ClientError):
            clients.s3.put_object(Bucket=bucket, Key=key, Body=b"2")
    clients.s3.put_object(Bucket=bucket, Key="d/e", Body=b"1")
    with pytest.raises(clients.s3.exceptions.ClientError, match=r"prefix of other objects|under or above"):
        clients.s3.put_object(Bucket=bucket, Key="d", Body=b"2")
    clients.s3.put_object(Bucket=bucket, Key="folder/", Body=b"")  # as the console makes them


@pytest.mark.parametrize("name", ["..", "A_B", "endpoints", "ab/c"])
def test_bucket_names(clients: Clients, name: str) -> None:
    assert raw(clients, "PUT", f"/{urllib.parse.quote(name, safe='')}")[0] in (400, 404)


def test_what_is_not_supported_says_so(clients: Clients, bucket: str) -> None:
    with pytest.raises(clients.s3.exceptions.ClientError, match="tagging is not supported"):
        clients.s3.get_object_tagging(Bucket=bucket, Key="k")
    with pytest.raises(clients.s3.exceptions.ClientError, match="versioning is not supported"):
        clients.s3.get_bucket_versioning(Bucket=bucket)


def test_readers_see_a_whole_object_while_it_is_replaced(clients: Clients, bucket: str) -> None:
    bodies = {bytes([n]) * 200_000 for n in range(4)}
    clients.s3.put_object(Bucket=bucket, Key="k", Body=bytes([0]) * 200_000)
    stop = threading.Event()

    def write() -> None:
        own = client("s3", clients.url)
        while not stop.is_set():
            for body in bodies:
                own.put_object(Bucket=bucket, Key="k", Body=io.BytesIO(body))

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for _ in range(60):
            answer = clients.s3.get_object(Bucket=bucket, Key="k")
            body = answer["Body"].read()
            assert body in bodies
            assert answer["ETag"] == f'"{hashlib.md5(body).hexdigest()}"'
    finally:
        stop.set()
        writer.join()
