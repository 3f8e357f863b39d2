"""Object storage: the same bytes as on a disk, through a server that speaks S3 on loopback."""

import itertools
import json
import os
import select
import socket
import socketserver
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
import tiny
import warm
import zarr
from obstore.store import MemoryStore
from test_store import COLUMNS, LABELS, LOGITS, PROBE, VIEWS, manifest, write
from tiny import HERE, bytes_of
from zarr.storage import ObjectStore

import logitcache
from logitcache.errors import (
    CacheIncompleteError,
    CacheMismatchError,
    CacheNotFoundError,
    CorruptCacheError,
    InputError,
)
from logitcache.store import CacheWriter, bucket, check_files, drop_damaged, open_cache, open_place
from logitcache.store import lease as lease_module

WHOLE = 1 << 40  # bytes: a connection that is not cut
SECRET = "do-not-write-this-anywhere"


@pytest.fixture
def url(amazon, tmp_path):
    name = f"caches-{abs(hash(tmp_path)):x}"
    amazon.create_bucket(Bucket=name)
    return f"s3://{name}/some/c.zarr"


@pytest.fixture
def memory(monkeypatch):
    """An address whose objects obstore keeps in memory: for what does not depend on how they are sent."""
    stores = defaultdict(MemoryStore)
    monkeypatch.setattr(bucket, "from_url", lambda url, **_: stores[url])
    monkeypatch.setattr(bucket, "_amazon", dict)
    return "s3://memory/some/c.zarr"


def objects(url: str) -> dict[str, bytes]:
    place = open_place(url)
    outside = {".logitcache/history.jsonl", ".logitcache/lock"}
    return {name: place.read(name) for name in place.sizes() if name not in outside}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    path = tmp_path_factory.mktemp("whole") / "c.zarr"
    write(path, manifest())
    return bytes_of(path)


def test_a_bucket_holds_the_bytes_of_a_folder_and_no_secret(url, whole, amazon):
    write(url, manifest())
    assert objects(url) == whole
    every = open_place(url)
    assert not any(SECRET.encode() in every.read(name) for name in every.sizes())
    assert ".logitcache/lock" not in every.sizes()
    assert not amazon.list_multipart_uploads(Bucket=url.split("/")[2]).get("Uploads")


def test_what_is_in_a_bucket_reads_as_on_a_disk(url):
    write(url, manifest())
    opened = open_cache(url)
    assert str(opened.place) == url
    assert (opened.view(1, "t")["logits"] == LOGITS[1]).all()
    assert (opened.labels() == LABELS).all()
    assert (opened.rows(0, "t", PROBE)["logits"] == LOGITS[0, PROBE]).all()
    assert not check_files(opened)


def test_zarrs_own_store_reads_it_without_us(url):
    write(url, manifest())
    import obstore.store

    plain = obstore.store.from_url(url, client_options={"allow_http": True})
    group = zarr.open_group(ObjectStore(plain, read_only=True), mode="r")
    assert (group["teachers/t/logits"][...] == LOGITS[:VIEWS]).all()


def test_views_are_added_in_a_bucket_and_given_up_ones_go(url, whole):
    write(url, manifest(views=1))
    write(url, manifest(views=3), only={(2, 0)}, finish=False)
    write(url, manifest())
    assert objects(url) == whole


def test_a_stopped_dump_is_refused_and_goes_on(memory, whole):
    write(memory, manifest(), only={(0, 0), (1, 2)}, finish=False)
    with pytest.raises(
        CacheIncompleteError, match=r"2 of 6 blocks are committed. Complete it with:\n  logitcache dump"
    ):
        open_cache(memory)
    with CacheWriter(memory, manifest(), COLUMNS, LABELS, command="") as writer:
        assert len(writer.missing()) == 4
    write(memory, manifest())
    assert objects(memory) == whole


@pytest.mark.parametrize("name", ["teachers/t/logits/c/1/1/0", "labels/c/0", ".logitcache/ledger/1.json"])
@pytest.mark.parametrize("kind", ["missing", "short", "flipped"])
def test_damage_in_a_bucket_is_found_and_repaired(memory, whole, name, kind):
    write(memory, manifest())
    place = open_place(memory)
    content = place.read(name)
    if kind == "missing":
        place.remove(name)
    else:
        place.write(
            {name: [content[:-7] if kind == "short" else content[:40] + bytes([content[40] ^ 1]) + content[41:]]}
        )
    opened = open_cache(memory)
    problems = check_files(opened)
    assert problems and name in {problem.file for problem in problems}
    with pytest.raises(CorruptCacheError):
        opened.view(1, "t"), opened.labels()
    drop_damaged(opened, problems)
    write(memory, manifest())
    assert objects(memory) == whole


def test_another_cache_in_the_same_place_is_not_touched(memory):
    write(memory, manifest())
    before = objects(memory)
    with pytest.raises(CacheMismatchError, match="batch_size: there 64, requested 32"):
        write(memory, manifest(batch_size=32))
    assert objects(memory) == before


@pytest.mark.parametrize(
    ("address", "error", "message"),
    [
        ("s3://nobody-made-this/c.zarr", InputError, "there is no such bucket"),
        ("s3://bucket", InputError, "expected an address like s3://bucket/c.zarr"),
        ("file:///tmp/c.zarr", InputError, "expected an address like"),
        ("s3://bucket//c.zarr", InputError, "must not contain two slashes in a row"),
        ("s4://bucket/c.zarr", InputError, r"expected an address like .* \(s3, gs or az\)"),
        (
            f"s3://key:{SECRET}@bucket/c.zarr",
            InputError,
            "^s3://bucket/c.zarr: an address must not contain credentials",
        ),
        ("s3://bucket/c.zarr?key=1", InputError, "an address must not contain credentials or options"),
        (Path("s3://bucket/c.zarr"), InputError, "pass an address as a string"),
    ],
)
def test_addresses_that_cannot_be_used_are_refused(environment, address, error, message):
    with pytest.raises(error, match=message) as found:
        write(address, manifest())
    assert SECRET not in str(found.value)


def test_an_address_with_nothing_there_is_no_cache(url, amazon):
    with pytest.raises(CacheNotFoundError, match="there is no cache at s3://"):
        open_cache(url)
    amazon.put_object(Bucket=url.split("/")[2], Key="some/c.zarr/else.txt", Body=b"1")
    with pytest.raises(InputError, match="is not a logit cache"):
        write(url, manifest())


def test_missing_credentials_are_said(monkeypatch, tmp_path):
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    with pytest.raises(InputError, match="no credentials for s3:// were found in the environment, ~/.aws"):
        open_cache("s3://bucket/c.zarr")


def test_a_profile_in_the_home_directory_is_used(url, environment, monkeypatch, tmp_path):
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    (tmp_path / "credentials").write_text(f"[team]\naws_access_key_id = key\naws_secret_access_key = {SECRET}\n")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_PROFILE", "team")
    open_place(url).write({"labels/c/0": [b"rows"]})
    assert open_place(url).read("labels/c/0") == b"rows"


class Network:
    """Between client and server: it passes on so many bytes of a client's connection and then cuts it, or refuses it at once."""

    def __init__(self, server, cuts: Iterable[int]) -> None:
        outer = self
        self._cuts, self.cut = iter(cuts), 0

        class Passing(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                left = next(outer._cuts)
                with socket.create_connection(server) as upstream:
                    other = {self.request: upstream, upstream: self.request}
                    while left > 0:
                        for source in select.select(list(other), [], [])[0]:
                            data = source.recv(65536)
                            if not data:
                                return
                            if source is self.request:
                                data, left = data[:left], left - len(data)
                            other[source].sendall(data)
                outer.cut += 1

        class Server(socketserver.ThreadingTCPServer):
            daemon_threads = True

            def handle_error(self, *_: object) -> None:
                """A line that breaks is what this is for."""

        self._listener = Server(("127.0.0.1", 0), Passing)
        self.url = f"http://127.0.0.1:{self._listener.server_address[1]}"
        threading.Thread(target=self._listener.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._listener.shutdown()
        self._listener.server_close()


def test_uploads_that_break_off_are_sent_again(url, whole, server, monkeypatch):
    network = Network(server, itertools.chain([300, WHOLE, 900, 100, WHOLE, 0] * 5, itertools.repeat(WHOLE)))
    monkeypatch.setenv("AWS_ENDPOINT_URL", network.url)
    write(url, manifest())
    network.close()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{server[0]}:{server[1]}")
    assert network.cut >= 10
    assert objects(url) == whole


def test_a_network_that_stays_away_is_said_and_the_dump_goes_on_later(url, whole, server, monkeypatch):
    network = Network(server, itertools.chain([WHOLE] * 54, itertools.repeat(0)))
    monkeypatch.setenv("AWS_ENDPOINT_URL", network.url)
    monkeypatch.setattr(lease_module, "RENEW", 1000.0)
    monkeypatch.setattr(bucket, "_TRIES", 2)
    monkeypatch.setattr("logitcache.store.writer._AT_ONCE", 2)  # or all could be under way, and none committed
    with pytest.raises(CacheIncompleteError, match="could not be reached .* Committed blocks are safe; run the same"):
        write(url, manifest())
    network.close()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{server[0]}:{server[1]}")
    monkeypatch.setattr(lease_module, "LEASE", 0.3)
    monkeypatch.setattr(lease_module, "POLL", 0.05)
    with pytest.raises(CacheIncompleteError, match="[1-5] of 6 blocks are committed"):
        open_cache(url)
    write(url, manifest())
    assert objects(url) == whole


def test_a_dump_killed_while_it_uploads_is_continued_to_the_same_bytes(url, environment, npz, tmp_path, monkeypatch):
    line = f"dump --teacher tiny:Unhurried --data arrays:{npz} --out {url} --augment pad-crop-flip --views 4 --batch-size 64 --threads 1"
    place = open_place(url)
    dumping = warm.Command("logitcache", line.split(), tmp_path)
    dumping.wait_until(lambda: place.sizes(".logitcache/blocks"), every=0.05)  # the server is in this process
    dumping.kill()
    monkeypatch.setattr(tiny.Unhurried, "pause", 0)
    assert ".logitcache/lock" in place.sizes()
    with pytest.raises(CacheIncompleteError, match="has not finished"):
        open_cache(url)
    begun = time.monotonic()
    for out in (url, str(tmp_path / "whole.zarr")):
        logitcache.dump_logits(
            teacher="tiny:Unhurried",
            data=f"arrays:{npz}",
            out=out,
            augment="pad-crop-flip",
            views=4,
            batch_size=64,
            threads=1,
        )
    assert objects(url) == bytes_of(tmp_path / "whole.zarr")
    assert time.monotonic() - begun < 60  # a dead process of this machine is recognised without waiting for its lease


@pytest.mark.slow
def test_a_dump_of_text_killed_in_a_bucket_goes_on_and_trains_there(url, environment, tmp_path):
    """Tokens, boundaries and targets lie there too: students are the same as from a folder."""
    given = {"teacher": "texts:Unhurried", "data": "texts:make", "encoding": "full", "precision": "f32"}
    given |= {"batch_size": 4, "block_rows": 32, "threads": 1}
    place, job = open_place(url), f"import logitcache; logitcache.dump_logits(out={url!r}, **{given!r})"
    dumping = subprocess.Popen([sys.executable, "-c", job], env=os.environ | {"PYTHONPATH": str(HERE)})
    while not place.sizes(".logitcache/blocks"):
        assert dumping.poll() is None, "the dump has ended"
        time.sleep(0.1)
    dumping.kill()
    dumping.wait()
    with pytest.raises(CacheIncompleteError, match="has not finished"):
        open_cache(url)
    caches = [logitcache.dump_logits(out=out, **given) for out in (url, tmp_path / "whole.zarr")]
    assert objects(url) == bytes_of(tmp_path / "whole.zarr")
    assert {"tokens/c/0", "documents/c/0", "targets/c/0"} <= objects(url).keys()
    runs = [
        logitcache.train_student(
            cache, "texts:Student", method="kd", epochs=2, batch_size=4, holdout=0.2, out=tmp_path / str(number)
        )
        for number, cache in enumerate((url, caches[1]))
    ]
    remote, local = (run.results | {"seconds_per_epoch": 0} for run in runs)
    assert remote == local
    assert all((a == b).all() for a, b in zip(*(run.student.state_dict().values() for run in runs), strict=True))


def lease(machine="elsewhere", pid=1, renewed=1) -> bytes:
    return json.dumps({"pid": pid, "machine": machine, "token": "another", "renewed": renewed}).encode()


def wait_until_lost(writer: CacheWriter) -> None:
    """Until its thread has noticed."""
    deadline = time.monotonic() + 30
    while not writer._hold._lost:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_two_dumps_at_once_are_refused(url, monkeypatch):
    monkeypatch.setattr(lease_module, "RENEW", 0.1)
    monkeypatch.setattr(lease_module, "POLL", 0.05)
    with CacheWriter(url, manifest(), COLUMNS, LABELS, command="") as writer:
        with pytest.raises(InputError, match=rf"is being written by process {os.getpid()} on .*Wait for it to finish"):
            CacheWriter(url, manifest(), COLUMNS, LABELS, command="")
        writer._hold.check()
    with CacheWriter(url, manifest(), COLUMNS, LABELS, command="") as writer:
        assert writer.missing()


def test_a_lease_that_nobody_renews_lapses(memory, whole, monkeypatch):
    monkeypatch.setattr(lease_module, "LEASE", 0.3)
    monkeypatch.setattr(lease_module, "POLL", 0.05)
    open_place(memory).write({".logitcache/lock": [lease()]})
    write(memory, manifest())
    assert objects(memory) == whole


def test_who_loses_the_lease_stops(memory, monkeypatch):
    monkeypatch.setattr(lease_module, "RENEW", 0.02)
    with (
        pytest.raises(InputError, match="was taken over by another process"),
        CacheWriter(memory, manifest(), COLUMNS, LABELS, command="") as writer,
    ):
        writer.begin(PROBE, {"t": LOGITS[0, PROBE]})
        open_place(memory).write({".logitcache/lock": [lease()]})
        wait_until_lost(writer)
        writer.write(0, 0, {"digests": np.zeros(128, np.uint64), "teachers/t/logits": LOGITS[0, :128]})
        writer.drain()
    assert open_place(memory).read(".logitcache/lock") == lease()  # another's is not removed
    assert not open_place(memory).sizes(".logitcache/blocks")


def test_access_withdrawn_in_the_middle_stops_the_dump(memory, monkeypatch):
    monkeypatch.setattr(lease_module, "RENEW", 0.02)

    def refused(*_args, **_more):
        raise bucket.PermissionDeniedError("403")

    with (
        pytest.raises(InputError, match=r"access denied .* This process stops"),
        CacheWriter(memory, manifest(), COLUMNS, LABELS, command="") as writer,
    ):
        monkeypatch.setattr(bucket.obstore, "put", refused)
        wait_until_lost(writer)
        writer._hold.check()


def test_a_machine_that_slept_renews_before_it_writes(memory, monkeypatch):
    """While the lease was not renewed, another may have come and gone."""
    monkeypatch.setattr(lease_module, "RENEW", 1000.0)
    monkeypatch.setattr(lease_module, "LEASE", 0.2)
    with CacheWriter(memory, manifest(), COLUMNS, LABELS, command="") as writer:
        time.sleep(0.3)
        writer._hold.check()
        open_place(memory).write({".logitcache/lock": [lease()]})
        time.sleep(0.3)
        with pytest.raises(InputError, match="was taken over by another process"):
            writer._hold.check()


def test_big_letters_and_a_slash_at_the_end_name_the_same_place(url):
    assert open_place(url.replace("s3://", "S3://") + "/") == open_place(url)


@pytest.mark.parametrize("call", ["write", "verify --repair"])
def test_access_denied_is_no_damage(memory, whole, monkeypatch, call):
    """What cannot be read is not taken for broken, and nothing is dropped."""
    write(memory, manifest())
    real = bucket.obstore.get

    def refused(store, name):
        if name.endswith("ledger/0.json"):
            raise bucket.PermissionDeniedError("403")
        return real(store, name)

    monkeypatch.setattr(bucket.obstore, "get", refused)
    with pytest.raises(InputError, match="access denied"):
        write(memory, manifest()) if call == "write" else logitcache.verify_cache(memory, check_rows=0, repair=True)
    monkeypatch.setattr(bucket.obstore, "get", real)
    assert objects(memory) == whole


def test_a_bucket_that_is_not_there_is_said_when_reading_too(environment):
    with pytest.raises(InputError, match="there is no such bucket"):
        open_cache("s3://nobody-made-this/c.zarr")


def test_odd_names_are_kept(url):
    odd = url.replace("c.zarr", "with space%20and+percent.zarr")
    open_place(odd).write({"labels/c/0": [b"rows"]})
    assert not open_place(odd.replace("%20", " ")).sizes()
    assert open_place(odd).sizes() == {"labels/c/0": 4}
    assert open_place(odd).read("labels/c/0") == b"rows"


def test_only_caches_lie_in_object_storage(dump, images):
    for out in ("s3://bucket/rows.parquet", "s3://bucket/rows.safetensors"):
        with pytest.raises(InputError, match="is an address, but only caches"):
            logitcache.export_cache(dump(), out)
    with pytest.raises(InputError, match="is an address, but only caches"):
        logitcache.train_student(cache=dump(), student="tiny:student", data=images, epochs=1, out="s3://bucket/run")


def test_train_reads_a_bucket_as_a_folder(memory, dump, images, test_images, tmp_path):
    folder, remote = dump(), dump(out=memory)
    assert remote.fingerprint == folder.fingerprint
    assert logitcache.verify_cache(memory, data=images).ok
    assert logitcache.cache_stats(memory).views == logitcache.cache_stats(folder).views
    runs = [
        logitcache.train_student(
            cache=cache,
            method="rld",
            student=tiny.net(5),
            epochs=2,
            data=images,
            test_data=test_images,
            out=tmp_path / name,
            batch_size=64,
        )
        for name, cache in (("a", memory), ("b", folder))
    ]
    remote_results, results = (run.results | {"seconds_per_epoch": 0} for run in runs)
    assert remote_results == results
    assert all((a == b).all() for a, b in zip(*(run.student.state_dict().values() for run in runs), strict=True))
