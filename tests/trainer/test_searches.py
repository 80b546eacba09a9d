"""Searches of scikit-learn and KerasTuner find what they find with Keras's SGD."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import keras_tuner
import numpy as np
import pytest
from sklearn.model_selection import GridSearchCV, cross_validate
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import StandardScaler

from keras_sgd_plus import SGDPlus
from tests.support.twins import (
    BATCH_SIZE,
    batch_size_of,
    dense_data,
    linear_model,
    optimizer_of,
)

N = 28
X, Y = dense_data(N)
SGD = keras.optimizers.SGD


def equal_model(*args: Any, **kwargs: Any) -> Any:
    """A linear model, equal at each call."""
    keras.utils.set_random_seed(1)
    return linear_model(*args, **kwargs)


def make_classifier(X: Any, y: Any, cls: type, learning_rate: float) -> Any:
    """A model for one fit; the wrapper hands over labels as one-hot rows."""
    model = equal_model(X.shape[1], y.shape[1], "softmax")
    model.compile(optimizer_of(cls, learning_rate, 0.9), "categorical_crossentropy")
    return model


def sklearn_fit(cls: type) -> dict[str, Any]:
    """Arguments of `Pipeline.fit`; a clone of Keras's wrapper forgets `fit_kwargs`."""
    return {
        "net__batch_size": batch_size_of(cls),
        "net__shuffle": False,
        "net__verbose": 0,
    }


def outputs(pipeline: Any) -> np.ndarray:
    """Outputs of the network in a fitted pipeline, not rounded to labels."""
    return pipeline[-1].model_.predict(pipeline[:-1].transform(X), verbose=0)


@pytest.mark.matrix
def test_search_of_a_pipeline(engagements: list[str]) -> None:
    """`GridSearchCV` finds what it finds with Keras one by one."""
    labels = (Y[:, 0] > 0).astype("int32")
    searches = []
    for cls in (SGDPlus, SGD):
        net = keras.wrappers.SKLearnClassifier(make_classifier, model_kwargs={})
        pipeline = Pipeline([("scale", StandardScaler()), ("net", net)])
        choices = [{"cls": cls, "learning_rate": rate} for rate in (0.0, 0.1)]
        search = GridSearchCV(
            pipeline, {"net__model_kwargs": choices}, cv=2, error_score="raise"
        )
        searches.append(search.fit(X, labels, **sklearn_fit(cls)))
    ours, theirs = searches
    for search in searches:
        assert search.best_params_["net__model_kwargs"]["learning_rate"] == 0.1
    scores = [search.cv_results_["mean_test_score"] for search in searches]
    np.testing.assert_array_equal(*scores)
    best, twin = ours.best_estimator_, theirs.best_estimator_
    np.testing.assert_allclose(outputs(best), outputs(twin), rtol=1e-5, atol=1e-6)
    assert int(best[-1].model_.optimizer.iterations) == N
    assert len(engagements) == 5  # two choices in two folds, and the best again


@pytest.mark.matrix
def test_cross_validation_of_a_compiled_model(engagements: list[str]) -> None:
    """Keras clones the model for each fold, and gives each clone an SGDPlus of its own.

    So does every caller of `keras.models.clone_model` on a compiled model.
    """
    target = Y[:, 0]
    scores, fitted = [], []
    for cls in (SGDPlus, SGD):
        model = equal_model(outputs=1)
        model.compile(optimizer_of(cls, 0.05, 0.9), "mse")
        net = keras.wrappers.SKLearnRegressor(model)
        keras.utils.set_random_seed(2)  # for the weights of the clones
        found = cross_validate(
            Pipeline([("scale", StandardScaler()), ("net", net)]),
            X,
            target,
            cv=2,
            params=sklearn_fit(cls),
            return_estimator=True,
            error_score="raise",
        )
        scores.append(found["test_score"])
        fitted.append([(pipe, pipe[-1].model_) for pipe in found["estimator"]])
        assert int(model.optimizer.iterations) == 0
        for _, clone in fitted[-1]:
            assert type(clone.optimizer) is cls
            assert clone.optimizer is not model.optimizer
            assert clone.optimizer.get_config() == model.optimizer.get_config()
            assert int(clone.optimizer.iterations) == N // 2
    np.testing.assert_allclose(*scores, rtol=1e-4)
    for (pipe, _), (twin, _) in zip(*fitted, strict=True):
        np.testing.assert_allclose(outputs(pipe), outputs(twin), rtol=1e-5, atol=1e-6)
    assert len(engagements) == 2


# It calls threading.currentThread().getName(), deprecated in Python 3.10.
@pytest.mark.filterwarnings("ignore:(currentThread|getName)\\(\\):DeprecationWarning")
@pytest.mark.matrix
@pytest.mark.usefixtures("few_objects")
def test_tuner(tmp_path: Path, engagements: list[str]) -> None:
    """Every trial has the score of Keras's SGD, and the best model loads."""

    def build(hp: Any, cls: type = SGDPlus) -> Any:
        rate, momentum = hp.Choice("rate", [0.001, 0.05]), hp.Choice("m", [0.0, 0.9])
        model = equal_model()
        model.compile(optimizer_of(cls, rate, momentum), "mse")
        return model

    tuner = keras_tuner.GridSearch(
        build,
        objective=keras_tuner.Objective("loss", "min"),
        directory=tmp_path,
        project_name="tuner",
    )
    fit: dict[str, Any] = {"x": X, "y": Y, "shuffle": False, "verbose": 0}
    tuner.search(**fit, batch_size=BATCH_SIZE)
    trials = tuner.oracle.get_best_trials(9)
    assert len(trials) == len(engagements) == 4
    twins = []
    for trial in trials:
        twins.append(build(trial.hyperparameters, SGD))
        (loss,) = twins[-1].fit(**fit, batch_size=1).history["loss"]
        assert trial.score == pytest.approx(loss, rel=1e-5)
    (best,) = tuner.get_best_models(1)
    for a, b in zip(best.get_weights(), twins[0].get_weights(), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    assert int(best.optimizer.iterations) == N
