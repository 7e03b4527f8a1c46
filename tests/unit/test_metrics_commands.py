"""Time series on the command line: asked in PromQL, drawn, checked, looked into."""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import parse_qs

import numpy as np
import pytest
from rich.console import Console

import siltstone
from siltstone import chart, errors, metrics_commands
from siltstone.cli import run
from siltstone.metrics.result import Result

NOW = 1_700_000_000


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    path = tmp_path / "series"
    with siltstone.Metrics(path) as metrics:
        times = np.arange(NOW, NOW + 600, 10)
        metrics.extend("up", {"host": "a"}, times, np.ones(60), backfill=True)
        metrics.extend("up", {"host": "b"}, times, np.arange(60.0), backfill=True)
    return path


def said(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    code = run(["query", *map(str, arguments)])
    out, err = capsys.readouterr()
    return code, out, err


# Of a directory -----------------------------------------------------------------------------


def test_a_moment_is_a_table(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = said(capsys, "up", "--path", directory, "--end", NOW + 590)
    assert code == 0
    rows = [line.split("│") for line in out.splitlines() if "host" in line]
    assert [[cell.strip() for cell in row] for row in rows] == [
        ['up{host="a"}', "1"], ['up{host="b"}', "59"],
    ]  # fmt: skip


def test_a_range_is_a_chart(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = said(
        capsys, "up", "--path", directory, "--start", NOW, "--end", NOW + 590, "--step", "10s"
    )
    assert code == 0
    assert 'up{host="b"}' in out.split("Legend:")[1]
    assert "(seconds)" in out


def test_json_is_prometheus_answer(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = said(
        capsys, "sum(up)", "--path", directory,
        "--start", NOW, "--end", NOW + 20, "--step", "10s", "--json",
    )  # fmt: skip
    assert code == 0
    assert json.loads(out) == {
        "resultType": "matrix",
        "result": [
            {"metric": {}, "values": [[NOW, "1"], [NOW + 10, "2"], [NOW + 20, "3"]]},
        ],
    }


def test_a_servers_data_directory_will_do(
    directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = directory.parent / "data"
    data.mkdir()
    directory.rename(data / "metrics")
    code, out, _ = said(capsys, "count(up)", "--path", data, "--end", NOW)
    assert (code, out.split()[-1]) == (0, "2")


@pytest.mark.parametrize(
    ("promql", "text"),
    [("no_such_series", "no series"), ('"words"', "words"), ("1 + 1", "2")],
)
def test_other_answers(
    directory: Path, capsys: pytest.CaptureFixture[str], promql: str, text: str
) -> None:
    code, out, _ = said(capsys, promql, "--path", directory, "--end", NOW)
    assert code == 0
    assert text in out


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("up", "--path", "/no/such"), 1, "no such directory"),
        (("up", "--path", ".", "--server", "x"), 2, "exclude"),
        (("up", "--last", "5m", "--start", "1"), 2, "exclude"),
        (("up", "--step", "5s"), 2, "needs a range"),
        (("up", "--last", "soon"), 2, "soon"),
        (("up", "--last", "5m", "--step", "0"), 2, "more than 0"),
        (("up", "--start", "9", "--end", "5"), 2, "before it starts"),
    ],
)
def test_bad_usage_is_one_line(
    capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], code: int, message: str
) -> None:
    ended, out, err = said(capsys, *arguments)
    assert (ended, out) == (code, "")
    assert message in err
    assert err.count("\n") == 1


def test_a_query_that_is_none(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = said(capsys, "sum(", "--path", directory)
    assert code == 1
    assert err.count("\n") == 1


def test_the_last_minutes_end_now() -> None:
    span = metrics_commands.span_of("2m", None, None, None)
    assert (round(span.end - span.start, 3), span.step) == (120.0, 1.0)


# Of a server --------------------------------------------------------------------------------


class Answers(http.server.BaseHTTPRequestHandler):
    """Gives its server's `answer`, and keeps what was asked."""

    def do_POST(self) -> None:
        asked = self.rfile.read(int(self.headers["content-length"])).decode()
        self.server.asked.append((self.path, parse_qs(asked)))  # type: ignore[attr-defined]
        status, body = self.server.answer  # type: ignore[attr-defined]
        self.send_response(status)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Nothing to the terminal."""


@pytest.fixture
def server() -> Iterator[http.server.HTTPServer]:
    with http.server.HTTPServer(("127.0.0.1", 0), Answers) as server:
        server.asked = []  # type: ignore[attr-defined]
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def success(data: object) -> tuple[int, bytes]:
    return 200, json.dumps({"status": "success", "data": data}).encode()


DATA = [
    {"resultType": "vector", "result": [{"metric": {"a": "b"}, "value": [1.5, "+Inf"]}]},
    {"resultType": "scalar", "result": [1, "3"]},
    {"resultType": "string", "result": [1, "x"]},
    {"resultType": "vector", "result": []},
    {
        "resultType": "matrix",
        "result": [
            {"metric": {"x": "1"}, "values": [[1, "1"], [2.5, "NaN"]]},
            {"metric": {"x": "2"}, "values": [[2.5, "-0.5"]]},
        ],
    },
]


@pytest.mark.parametrize("data", DATA, ids=lambda data: data["resultType"])
def test_an_answer_comes_back_as_it_was(server: http.server.HTTPServer, data: object) -> None:
    server.answer = success(data)  # type: ignore[attr-defined]
    address = f"127.0.0.1:{server.server_port}"
    result = metrics_commands.ask_server(address, "up", metrics_commands.Span(7.5, 7.5, 0.0))
    assert json.loads(result.to_json()) == data
    assert server.asked == [("/api/v1/query", {"query": ["up"], "time": ["7.5"]})]  # type: ignore[attr-defined]


def test_a_range_is_asked_for(
    server: http.server.HTTPServer, capsys: pytest.CaptureFixture[str]
) -> None:
    server.answer = success(DATA[-1])  # type: ignore[attr-defined]
    url = f"http://127.0.0.1:{server.server_port}/"
    code, out, _ = said(capsys, "up", "--server", url, "--start", 1, "--end", 3, "--step", "500ms")
    assert code == 0
    assert '{x="2"}' in out
    asked = {"query": ["up"], "start": ["1.0"], "end": ["3.0"], "step": ["0.5"]}
    assert server.asked == [("/api/v1/query_range", asked)]  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ((400, b'{"status":"error","error":"parse error: no"}'), "parse error: no"),
        ((404, b"<html>"), "did not answer as Prometheus does"),
        ((200, b"[]"), "did not answer as Prometheus does"),
        (success({"resultType": "vector", "result": [{}]}), "did not answer as Prometheus does"),
    ],
)
def test_what_a_server_refuses_is_said(
    server: http.server.HTTPServer,
    capsys: pytest.CaptureFixture[str],
    answer: tuple[int, bytes],
    message: str,
) -> None:
    server.answer = answer  # type: ignore[attr-defined]
    code, _, err = said(capsys, "up", "--server", f"127.0.0.1:{server.server_port}")
    assert code == 1
    assert message in err


def test_no_server(free_port, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = said(capsys, "up", "--server", f"127.0.0.1:{free_port()}")
    assert code == 1
    assert "no server at" in err
    with pytest.raises(errors.EnvironmentFailure, match="no server"):
        metrics_commands.ask_server("http://[bad", "up", metrics_commands.Span(1, 1, 0))


# Looking inside -----------------------------------------------------------------------------


def test_verify_and_inspect(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["verify", str(directory), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"ok": True, "problems": []}
    assert run(["inspect", str(directory)]) == 0
    assert "journal" in capsys.readouterr().out
    assert run(["inspect", str(directory), "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert {"journal", "fresh"} >= {row["stream"] for row in rows if row["filled_bytes"]} > set()


def test_verify_says_what_is_damaged(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with siltstone.Metrics(directory) as metrics:
        metrics.compact()  # out of the journal, whose damaged tail would be cut
    file = directory / "metrics"
    data = bytearray(file.read_bytes())
    for offset in range(1 << 16, len(data), 512):
        data[offset] ^= 1
    file.write_bytes(data)
    assert run(["verify", str(directory)]) == 1
    out, err = capsys.readouterr()
    assert "problem" in out + err


def test_a_servers_directory_is_checked_whole(
    directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = directory.parent / "data"
    with siltstone.Cache(data, ram="8MiB", flash="16MiB") as cache:
        cache["a"] = 1
    directory.rename(data / "metrics")
    assert run(["verify", str(data)]) == 0
    assert "all is well" in capsys.readouterr().out


# The chart ----------------------------------------------------------------------------------


def matrix(values: list[list[float]]) -> Result:
    rows = np.array(values, float)
    times = np.arange(rows.shape[1], dtype=np.int64) * 1000
    pairs = [(("n", str(row)),) for row in range(len(rows))]
    return Result("matrix", pairs, times, rows, np.ones(rows.shape, bool))


def drawn(result: Result) -> str:
    return chart.of(result, Console(width=80, color_system=None)).plain


def test_only_the_largest_are_drawn() -> None:
    text = drawn(matrix([[n, n] for n in range(8)]))
    assert "and 2 more series" in text
    assert '{n="7"}' in text
    assert '{n="1"}' not in text


@pytest.mark.parametrize("values", [[[5.0]], [[0.0, 0.0]], [[-3.0, -3.0]], [[np.nan, 2.0]]])
def test_flat_lines_and_single_points_are_drawn(values: list[list[float]]) -> None:
    assert '{n="0"}' in drawn(matrix(values))


def test_nothing_to_draw() -> None:
    assert drawn(matrix([[np.nan, np.inf]])) == "no samples"


def test_lines_can_be_told_apart_without_colours() -> None:
    text = drawn(matrix([[1.0, 2.0], [5.0, 9.0]]))
    assert "*" in text
    assert "o" in text
