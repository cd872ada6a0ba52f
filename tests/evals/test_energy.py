"""Energy, where the machine tells it."""

from dgemma_evals.energy import Meter


def package(root, name, energy, span=1_000_000_000):
    folder = root / name
    folder.mkdir()
    (folder / "energy_uj").write_text(f"{energy}\n")
    (folder / "max_energy_range_uj").write_text(f"{span}\n")
    return folder / "energy_uj"


def test_packages_are_summed_and_their_parts_are_not(tmp_path):
    first = package(tmp_path, "intel-rapl:0", 5_000_000)
    package(tmp_path, "intel-rapl:0:0", 4_000_000)  # its cores
    package(tmp_path, "intel-rapl:1", 2_000_000)
    meter = Meter(tmp_path)
    assert meter.sources[:2] == ["intel-rapl:0", "intel-rapl:1"]
    before = meter.joules()
    first.write_text("8000000\n")
    assert meter.joules() - before == 3.0
    first.write_text("1000000\n")  # a counter that began anew, at a thousand joules
    assert meter.joules() - before == 3.0 + 993.0


def test_where_nothing_tells_nothing_is_said(tmp_path):
    meter = Meter(tmp_path)
    if not meter.sources:  # no card
        assert meter.joules() is None
    (tmp_path / "intel-rapl:0").mkdir()
    assert "intel-rapl:0" not in Meter(tmp_path).sources, "only root may read it"
