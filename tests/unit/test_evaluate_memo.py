from tocsin.evaluate.memo import ENTRY_BYTES, Memo


def test_an_outcome_is_remembered_by_type_and_piece() -> None:
    memo = Memo()
    memo.put((1, b"a"), (3, 4))
    assert memo.get((1, b"a")) == (3, 4)
    assert memo.get((2, b"a")) is None
    assert memo.get((1, b"b")) is None


def test_it_never_holds_more_than_its_bound() -> None:
    memo = Memo(max_bytes=10 * (ENTRY_BYTES + 1))
    for number in range(1000):
        memo.put((1, bytes([number % 256])), ())
        assert len(memo) <= 10


def test_what_is_larger_than_the_bound_is_not_kept() -> None:
    memo = Memo(max_bytes=ENTRY_BYTES)
    memo.put((1, b"long"), (1,))
    assert len(memo) == 0
