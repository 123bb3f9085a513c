import torch

from MedSAM3Core.inference.features import FeatureKey, FeatureStore


def key(index: int, kind: str = "trunk") -> FeatureKey:
    return FeatureKey("w", index, kind)


def kilobyte(value: float = 0.0) -> tuple[torch.Tensor, ...]:
    return (torch.full((128,), value, dtype=torch.float32), torch.full((64,), value, dtype=torch.float64))


def test_the_bound_holds_and_the_least_recently_used_goes_first() -> None:
    store = FeatureStore("cpu", device_bytes=3 * 1024)
    for n in range(3):
        store.put(key(n), kilobyte(n))
    store.get(key(0))
    store.put(key(3), kilobyte(3))
    assert [n for n in range(4) if key(n) in store] == [0, 2, 3]
    report = store.report()
    assert (report.device_entries, report.device_bytes, report.dropped, report.host_entries) == (
        3,
        3072,
        1,
        0,
    )


def test_pyramids_go_before_trunks() -> None:
    store = FeatureStore("cpu", device_bytes=2 * 1024)
    store.put(key(0), kilobyte())
    store.put(key(0, "detector"), kilobyte())
    store.put(key(1), kilobyte())
    assert key(0) in store
    assert key(0, "detector") not in store


def test_what_is_put_twice_counts_once() -> None:
    store = FeatureStore("cpu", device_bytes=4096)
    store.put(key(0), kilobyte(1))
    store.put(key(0), kilobyte(2))
    assert store.report().device_bytes == 1024
    assert store.get(key(0))[0][0] == 2


def test_what_is_larger_than_the_bound_is_not_kept() -> None:
    store = FeatureStore("cpu", device_bytes=1000)
    store.put(key(0), kilobyte())
    assert key(0) not in store
    assert store.get(key(0)) is None
    assert store.report().misses == 1


def test_spilling_to_host_memory_and_back() -> None:
    # The device is doubled by the CPU: host memory is given by hand, which the constructor would not do there.
    store = FeatureStore("cpu", device_bytes=2 * 1024)
    store.host_bytes = 1024
    for n in range(4):
        store.put(key(n), kilobyte(n))
    report = store.report()
    assert (report.device_entries, report.host_entries, report.spilled, report.dropped) == (2, 1, 2, 1)
    assert report.host_bytes == 1024
    assert store.get(key(1))[0][0] == 1
    assert store.report().host_entries == 1
    store.clear()
    assert store.report().device_bytes == store.report().host_bytes == 0
