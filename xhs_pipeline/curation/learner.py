"""A cheap learner on text: character TF-IDF and logistic regression. Knows no posts, no files and no policy.

label_issues questions labels with it, and the evaluation report judges the model beside it.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt


def character_features(learned: Sequence[str], others: Sequence[str]) -> tuple[Any, Any, int] | None:
    """TF-IDF (1-3 grams, sublinear, rows of length 1) of two sets of texts with the vocabulary of the first, and its min_df.

    Two sparse float32 matrices, (texts, n-grams). min_df is 2, and 1 where no n-gram occurs in two of the learned texts;
    None when those hold no character at all.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer

    texts = [text.strip() for text in learned]
    # decided before fitting: scikit-learn reports an empty vocabulary as a bare ValueError
    seen = Counter(character for text in texts for character in set(text.lower()))
    if not seen:
        return None
    min_df = 2 if max(seen.values()) > 1 else 1
    vectorizer = TfidfVectorizer(
        analyzer="char", ngram_range=(1, 3), min_df=min_df, sublinear_tf=True, dtype=np.float32
    )
    rows = vectorizer.fit_transform(texts)
    # scikit-learn refuses to transform nothing
    return rows, vectorizer.transform([text.strip() for text in others]) if others else rows[:0], min_df


def class_probabilities(
    learned: Any,
    others: Any,
    labels: Sequence[str],
    names: Sequence[str],
    seed: int,
    weights: npt.NDArray[np.float64] | None = None,
) -> npt.NDArray[np.float64]:
    """Logistic regression (C = 10, balanced classes) of `labels` on the rows of `learned`, asked about the rows of `others`.

    Probabilities of shape (others, names); a name that `labels` lacks gets 0. One class only is answered with certainty.
    `weights`, one per learned row, scale what it counts.
    """
    from sklearn.linear_model import LogisticRegression

    out = np.zeros((others.shape[0], len(names)))
    if len(set(labels)) == 1:
        out[:, names.index(labels[0])] = 1.0
        return out
    if not others.shape[0]:
        return out
    model = LogisticRegression(C=10, class_weight="balanced", max_iter=1000, random_state=seed)
    model.fit(learned, list(labels), sample_weight=weights)
    out[:, [names.index(name) for name in model.classes_]] = model.predict_proba(others)
    return out
