"""A scorer that is learned from two sets of texts: it tells held-out ones apart, or warns that it cannot."""

import numpy as np
import pytest

import lineas
from lineas.evaluation import contrast

pytest.importorskip("sklearn")
FORMAL, CASUAL = lineas.samples.formal_and_casual(64)


def test_texts_that_it_has_not_seen_are_told_apart():
    score = contrast(FORMAL[32:], CASUAL[32:], name="casual")
    assert (score.name, score.better) == ("casual", "higher")
    formal, casual = score(FORMAL[:32]), score(CASUAL[:32])
    assert (formal < 0.5).mean() > 0.9
    assert (casual > 0.5).mean() > 0.9
    assert ((formal >= 0) & (casual <= 1)).all()
    assert score([]).shape == (0,)
    other_way = contrast(CASUAL[32:], FORMAL[32:])
    np.testing.assert_allclose(other_way(FORMAL[:5]), 1 - score(FORMAL[:5]), atol=1e-3)


def test_the_same_texts_give_the_same_scores_and_draw_nothing(random_state_stays):
    one, two = (contrast(FORMAL[:16], CASUAL[:16])(CASUAL[40:44]) for _ in range(2))
    assert (one == two).all()


def test_sets_of_different_sizes_count_the_same():
    score = contrast(FORMAL[:8], CASUAL[:56])
    assert (score(FORMAL[40:]) < 0.5).mean() > 0.7


def test_two_sets_that_cannot_be_told_apart_warn():
    with pytest.warns(UserWarning, match=r"mood: of texts that it was not shown, the classifier tells \d+% apart; exp"):
        contrast(CASUAL[:32], CASUAL[32:], name="mood")


def test_what_teaches_nothing_is_refused():
    with pytest.raises(ValueError, match="source: expected at least 8 texts, got 3"):
        contrast(FORMAL[:3], CASUAL)
    with pytest.raises(ValueError, match="target: expected at least 8 texts, got 7"):
        contrast(FORMAL, CASUAL[:7])
    with pytest.raises(TypeError, match="target: expected strings, got list"):
        contrast(FORMAL, [[{"role": "user", "content": text}] for text in CASUAL])
    with pytest.raises(TypeError, match="source: expected a list of strings, got one string"):
        contrast("formal", CASUAL)
