"""Published files: what is at hand is checked, what is not is fetched whole or named."""

import gzip
import hashlib
import http.server
import socketserver
import subprocess
import sys
import threading

import pytest

from research.data.download import PublishedFile, cache_folder, find, packaged, save_atomically
from research.errors import UserError

CONTENT = b"what was published\n" * 1000
NOWHERE = "http://127.0.0.1:9/file.bin"  # the discard port: refused at once


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@pytest.fixture(autouse=True)
def folders(tmp_path, monkeypatch):
    monkeypatch.setenv("RESEARCH_DATA", str(tmp_path / "given"))
    monkeypatch.setenv("RESEARCH_CACHE", str(tmp_path / "cache"))
    (tmp_path / "given" / "set").mkdir(parents=True)
    return tmp_path


@pytest.fixture
def publisher():
    """A site that serves CONTENT at every address, and counts."""

    class Handler(http.server.BaseHTTPRequestHandler):
        asked = 0

        def do_GET(self):
            Handler.asked += 1
            self.send_response(200)
            self.send_header("Content-Length", str(len(CONTENT)))
            self.end_headers()
            self.wfile.write(CONTENT)

        def log_message(self, *_):
            pass

    with socketserver.TCPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}/file.bin", Handler
        server.shutdown()
        thread.join()


def test_a_given_file_is_used_without_a_download(folders):
    (folders / "given/set/file.bin").write_bytes(CONTENT)
    assert find("set", [PublishedFile("file.bin", digest(CONTENT), NOWHERE)]) == [CONTENT]


def test_a_given_file_that_is_corrupt_is_named_with_both_digests(folders):
    path = folders / "given/set/file.bin"
    path.write_bytes(CONTENT[:-1])
    with pytest.raises(UserError) as raised:
        find("set", [PublishedFile("file.bin", digest(CONTENT), NOWHERE)])
    for part in (str(path), digest(CONTENT), digest(CONTENT[:-1])):
        assert part in str(raised.value)


def test_a_packed_file_passes_by_its_content_however_it_was_packed(folders):
    file = PublishedFile("file.gz", "0" * 64, NOWHERE, unpacked_sha256=digest(CONTENT))
    path = folders / "given/set/file.gz"
    for level in (1, 9):
        path.write_bytes(gzip.compress(CONTENT, level))
        assert find("set", [file]) == [CONTENT]
    path.write_bytes(gzip.compress(CONTENT)[:-20])
    with pytest.raises(UserError, match=r"file\.gz is not a whole gz file"):
        find("set", [file])


def test_a_download_is_checked_and_kept(folders, publisher):
    url, handler = publisher
    file = PublishedFile("file.bin", digest(CONTENT), url)
    assert find("set", [file]) == [CONTENT]
    assert find("set", [file]) == [CONTENT]
    assert handler.asked == 1
    assert (folders / "cache/data/set/file.bin").read_bytes() == CONTENT


def test_a_download_of_something_else_is_refused_and_not_kept(folders, publisher):
    url, _ = publisher
    with pytest.raises(UserError, match="could not be downloaded"):
        find("set", [PublishedFile("file.bin", digest(b"other"), url)])
    assert not list((folders / "cache/data/set").iterdir())


def test_without_a_network_one_sentence_says_both_ways():
    with pytest.raises(UserError) as raised:
        find("set", [PublishedFile("file.bin", digest(CONTENT), NOWHERE)])
    message = str(raised.value)
    assert "set RESEARCH_DATA to a folder that holds set/file.bin" in message
    assert NOWHERE in message and "\n" not in message


def test_a_file_that_nobody_publishes_must_be_given():
    with pytest.raises(UserError, match="set RESEARCH_DATA to a folder that holds set/file.npz"):
        find("set", [PublishedFile("file.npz", digest(CONTENT))])


def test_research_data_must_be_a_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("RESEARCH_DATA", str(tmp_path / "absent"))
    with pytest.raises(UserError, match=r"RESEARCH_DATA=.*absent is not a folder"):
        find("set", [PublishedFile("file.bin", digest(CONTENT), NOWHERE)])


def test_a_cache_that_cannot_be_written_is_named(folders):
    (folders / "cache").write_text("a file where the folder should be")
    with pytest.raises(UserError, match="set RESEARCH_CACHE"):
        save_atomically(cache_folder() / "data" / "x", b"content")


def test_the_cache_is_under_the_home_folder_unless_it_is_set(monkeypatch, tmp_path):
    assert cache_folder() == tmp_path / "cache"
    monkeypatch.delenv("RESEARCH_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "reigen"


def test_data_of_a_package_that_is_not_there_is_named():
    with pytest.raises(UserError, match="no installed sklearn holds absent.csv"):
        packaged("sklearn", "absent.csv", "")


def test_importing_the_room_imports_none_of_the_heavy_packages():
    heavy = "{'jax', 'grain', 'sklearn', 'scipy', 'tokenizers', 'pooch'}"
    program = f"import sys, research.data; sys.exit(str({heavy} & set(sys.modules) or ''))"
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert ran.stderr.strip() == "", ran.stderr
