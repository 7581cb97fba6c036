"""Clients are divided by expected time, longest first; one that keeps state stays where it is."""

from fedq.runtime.shares import Clock, Shares

SIZES = {"a": 100, "b": 60, "c": 50, "d": 10}


def test_before_any_client_was_timed_examples_count():
    shares = Shares(SIZES, processes=2, stay=False)
    assert shares.divide("abcd", ready=[0, 1]) == [["a", "d"], ["b", "c"]]


def test_seconds_of_earlier_rounds_count_more_than_examples():
    shares = Shares(SIZES, processes=2, stay=False)
    shares.learn({"a": 1.0, "b": 1.0, "c": 1.0, "d": 5.0})
    assert shares.divide("abcd", ready=[0, 1])[0] == ["d"]
    shares.learn({"d": 0.1, "a": 9.0})  # a later, longer time may have waited for other work
    assert shares.divide("ad", ready=[0, 1]) == [["a"], ["d"]]


def test_a_client_that_was_not_timed_is_expected_to_take_as_long_an_example_as_the_others():
    shares = Shares(SIZES, processes=2, stay=False)
    shares.learn({"a": 1.0, "b": 0.6})
    assert shares.divide("abcd", ready=[0, 1]) == [["a", "d"], ["b", "c"]]


def test_a_process_that_is_not_ready_gets_none_that_may_move():
    shares = Shares(SIZES, processes=3, stay=False)
    assert shares.divide("abcd", ready=[0, 2])[1] == []


def test_a_client_that_keeps_state_stays_with_its_first_process():
    shares = Shares(SIZES, processes=2, stay=True)
    first = shares.divide("abcd", ready=[0])
    assert all(first)  # processes that start are waited for
    shares.learn({"a": 100.0, "b": 0.1, "c": 0.1, "d": 0.1})
    again = shares.divide("abcd", ready=[0, 1])
    assert [sorted(share) for share in again] == [sorted(share) for share in first]


def test_where_others_will_come_later_no_process_is_waited_for():
    shares = Shares(SIZES, processes=2, stay=True)
    assert shares.divide("ab", ready=[0]) == [["a", "b"], []]
    assert shares.divide("acd", ready=[0, 1]) == [["a"], ["c", "d"]]


def test_every_client_is_in_one_share():
    names = {str(i): i for i in range(100)}
    found = Shares(names, processes=7, stay=False).divide(names, ready=range(7))
    assert sorted(name for share in found for name in share) == sorted(names)


def test_a_clock_gives_each_client_the_time_since_the_reply_before(monkeypatch):
    now = iter([10.0, 11.0, 14.0])
    monkeypatch.setattr("fedq.runtime.shares.time.perf_counter", lambda: next(now))
    clock = Clock()
    clock(1, 2)
    clock(2, 2)
    assert clock.seconds(["a", "b"]) == {"a": 1.0, "b": 3.0}
