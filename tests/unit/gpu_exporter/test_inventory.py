"""Expected, present, missing."""

from daemons.gpu_exporter.families import render
from daemons.gpu_exporter.inventory import Inventory
from daemons.gpu_exporter.snapshot import GpuStatus

ONE = GpuStatus(index=0, uuid="GPU-a", pci="00000000:3b:00.0", name="x")
TWO = GpuStatus(index=1, uuid="GPU-b", pci="00000000:4b:00.0", name="x")


def page(inventory: Inventory) -> str:
    return render([*inventory.expected(), *inventory.samples()])


def test_nothing_expected_nothing_there() -> None:
    text = page(Inventory(None))
    assert "gpu_present 0" in text
    assert "gpu_expected" not in text
    assert Inventory(None).complete


def test_fewer_than_expected() -> None:
    inventory = Inventory(2)
    inventory.update([ONE])
    assert "gpu_expected 2" in page(inventory)
    assert "gpu_present 1" in page(inventory)
    assert not inventory.complete
    inventory.update([ONE, TWO])
    assert inventory.complete


def test_expected_by_uuid_or_address() -> None:
    inventory = Inventory(("gpu-A", "0000:4B:00.0"))
    assert 'gpu_fault{gpu="",uuid="0000:4B:00.0",reason="missing"} 1' in page(inventory)
    inventory.update([ONE, TWO])
    assert inventory.complete
    assert "gpu_fault" not in page(inventory)


def test_a_gpu_that_does_not_tell_its_name_is_the_one_of_its_index() -> None:
    inventory = Inventory(None)
    inventory.update([ONE, TWO])
    inventory.update([ONE, GpuStatus(index=1, fault="no_handle")])
    assert 'gpu_up{gpu="1",uuid="GPU-b"} 0' in page(inventory)
    assert page(inventory).count("gpu_up{") == 2


def test_one_that_vanished_stays() -> None:
    inventory = Inventory(None)
    inventory.update([ONE, TWO])
    inventory.update([TWO])
    assert 'gpu_fault{gpu="0",uuid="GPU-a",reason="missing"} 1' in page(inventory)
    assert not inventory.complete
