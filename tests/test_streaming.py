from dlsr.streaming import in_groups, map_ahead


def test_groups_have_all_items_in_order():
    assert list(in_groups(range(5), 2)) == [[0, 1], [2, 3], [4]]
    assert list(in_groups([], 2)) == []


def test_map_ahead_keeps_the_order_and_works_at_most_so_far_ahead():
    started = []

    def work(i):
        started.append(i)
        return -i

    results = map_ahead(work, range(100), workers=2, ahead=8)
    assert next(results) == 0
    assert len(started) <= 10
    assert list(results) == [-i for i in range(1, 100)]
