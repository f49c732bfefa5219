"""What the learner says of its stream."""

from prometheus_client import REGISTRY

from services.learner.report import GROUP, NO_BROKER, Figures, count_lag


def test_a_broker_that_does_not_answer_is_said_and_the_last_numbers_stay() -> None:
    figures = Figures()
    for lag, said, answers in (({"t/0": 5}, "", 1.0), ({}, NO_BROKER, 0.0), ({"t/0": 5}, "", 1.0)):
        count_lag(lag, dict.fromkeys(lag, 0), figures)
        assert (figures.lag_records, figures.stalled) == (5, said)
        assert REGISTRY.get_sample_value("headrace_broker_answers", {"group": GROUP}) == answers
