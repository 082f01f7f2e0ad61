"""The bounded cache: what it keeps, what goes first, what it counts; and equal to a plain model on every input."""

from hypothesis import given, settings
from hypothesis import strategies as st

from tocsin.enrich.cache import BoundedCache, CacheCounters


def test_the_least_recently_used_entry_goes_first() -> None:
    cache: BoundedCache[str, int] = BoundedCache(2, 100)
    cache.put("a", 1, 1)
    cache.put("b", 2, 1)
    assert cache.get("a") == 1
    cache.put("c", 3, 1)
    assert (cache.get("a"), cache.get("b"), cache.get("c")) == (1, None, 3)


def test_bytes_are_bounded_too() -> None:
    cache: BoundedCache[str, int] = BoundedCache(100, 10)
    cache.put("a", 1, 4)
    cache.put("b", 2, 4)
    cache.put("c", 3, 4)
    assert cache.counters() == CacheCounters(hits=0, misses=0, evictions=1, entries=2, size_bytes=8)
    assert cache.get("a") is None


def test_what_is_bigger_than_the_cache_is_not_held() -> None:
    cache: BoundedCache[str, int] = BoundedCache(100, 10)
    cache.put("a", 1, 11)
    assert cache.counters() == CacheCounters(hits=0, misses=0, evictions=1, entries=0, size_bytes=0)


def test_a_new_value_takes_the_place_of_the_old() -> None:
    cache: BoundedCache[str, int] = BoundedCache(100, 10)
    cache.put("a", 1, 8)
    cache.put("a", 2, 3)
    assert cache.get("a") == 2
    assert cache.counters() == CacheCounters(hits=1, misses=0, evictions=0, entries=1, size_bytes=3)


def test_hits_and_misses_are_counted() -> None:
    cache: BoundedCache[str, int] = BoundedCache(100, 10)
    cache.put("a", 1, 1)
    cache.get("a")
    cache.get("b")
    cache.forget("a")
    cache.get("a")
    assert cache.counters() == CacheCounters(hits=1, misses=2, evictions=0, entries=0, size_bytes=0)


@settings(deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.integers(0, 5), st.integers(0, 9))))
def test_equals_a_plain_list_in_the_order_of_use(acts: list[tuple[bool, int, int]]) -> None:
    cache: BoundedCache[int, int] = BoundedCache(3, 12)
    model: list[tuple[int, int, int]] = []
    for number, (is_put, key, size) in enumerate(acts):
        held = next((entry for entry in model if entry[0] == key), None)
        if is_put:
            cache.put(key, number, size)
            model = [entry for entry in model if entry[0] != key] + [(key, number, size)]
            while len(model) > 3 or sum(entry[2] for entry in model) > 12:
                model.pop(0)
        else:
            assert cache.get(key) == (held[1] if held else None)
            model = [entry for entry in model if entry is not held] + ([held] if held else [])
        assert (len(cache), cache.counters().size_bytes) == (len(model), sum(entry[2] for entry in model))
