"""Rewards are the contract's grades, and nothing else."""

from trainer.contract.dimensions import AnswerSource, Dimension, Polarity, Split
from trainer.contract.records import ImageFile, Record
from trainer.contract.scores import RewardWeights, ScoreVariant, grade
from trainer.rewards import grade_completions

IMAGE = ImageFile(path="images/aa/a.png", sha256="a", width=8, height=8)
RECORD = Record(
    id="s:physical_shadow", sample_id="s", split=Split.TRAIN, dimension=Dimension.PHYSICAL_SHADOW,
    polarity=Polarity.ACCEPTABLE, original=IMAGE, candidates=(IMAGE,) * 4, answer=frozenset("AC"),
    answer_source=AnswerSource.AGREEMENT, rationale="", approach=None, annotators=2, agreement=1.0,
    prompt_version="ask-1",
)  # fmt: skip


def test_a_reward_is_the_grade_of_the_contract() -> None:
    texts = ["<think>x</think><answer>A,C</answer>", "<answer>A</answer>", "<answer>none</answer>", "nothing"]
    for weights in (RewardWeights(), RewardWeights(variant=ScoreVariant.STRICT, dpa=1.0, parsable=0.0, exact=0.5)):
        found = grade_completions(RECORD, texts, weights)
        assert found == [grade(text, RECORD.answer, 4, weights) for text in texts]
    assert [round(g.reward, 3) for g in grade_completions(RECORD, texts, RewardWeights())] == [1.0, 0.775, 0.55, 0.0]
