"""The machine's own numbers, out of /proc."""

from __future__ import annotations

from pathlib import Path

from siltstone.serve import machine

PROC = {
    "stat": "cpu  10 0 5 100 0 0 0 0 0 0\ncpu0 700 0 50 9000 1 0 2 0 0 0\nintr 5\n",
    "meminfo": "MemTotal:  1000 kB\nActive(anon):  7 kB\nHugePages_Total:  0\n",
    "loadavg": "0.50 0.25 0.10 1/100 1234\n",
    "diskstats": " 254 0 vda 1 0 16 0 2 0 32 0 0 0 0\n",
    "net/dev": "Inter-|\n face |\n  lo: 11 1 0 0 0 0 0 0 22 1 0 0 0 0 0 0\n",
}


def test_samples_have_the_node_exporters_names(tmp_path: Path) -> None:
    (tmp_path / "net").mkdir()
    for name, text in PROC.items():
        (tmp_path / name).write_text(text)
    samples = machine.machine_samples(tmp_path)
    found = {(sample.name, *sample.labels.values()): sample.value for sample in samples}
    assert found[("node_cpu_seconds_total", "0", "user")] == 700 / machine.TICKS
    assert found[("node_cpu_seconds_total", "0", "softirq")] == 2 / machine.TICKS
    assert found[("node_memory_MemTotal_bytes",)] == 1_024_000
    assert found[("node_memory_Active_anon_bytes",)] == 7168
    assert ("node_memory_HugePages_Total_bytes",) not in found
    assert [found[(f"node_load{n}",)] for n in (1, 5, 15)] == [0.5, 0.25, 0.1]
    assert found[("node_disk_written_bytes_total", "vda")] == 32 * 512
    assert found[("node_network_transmit_bytes_total", "lo")] == 22


def test_what_the_kernel_does_not_tell_is_left_out(tmp_path: Path) -> None:
    assert list(machine.machine_samples(tmp_path)) == []
    (tmp_path / "net").mkdir()
    for name in PROC:
        (tmp_path / name).write_text("x\n\ny z\n")
    assert list(machine.machine_samples(tmp_path)) == []
    assert {sample.name for sample in machine.machine_samples()} > {"node_cpu_seconds_total"}
