"""A grid search over learning rate and momentum, with scikit-learn.

You will see the accuracy of six pairs of learning rate and momentum in
cross-validation, and the test accuracy of the best pair.

The lesson: Keras's scikit-learn wrapper turns a model with SGDPlus into an
estimator. It works behind a scaler in a pipeline, and cross-validation chooses its
settings. The batch holds all examples here: each epoch is one compiled call, with one
update per example.

Run it with `python examples/sklearn_pipeline.py`; it takes about a minute.
"""

from __future__ import annotations

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
from sklearn.datasets import load_breast_cancer
from sklearn.model_selection import GridSearchCV, train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from keras_sgd_plus import SGDPlus


def make_model(X, y, learning_rate=0.01, momentum=0.0):
    """Called by the wrapper, which hands over the data and the arguments of a fit."""
    keras.utils.set_random_seed(0)
    layers = [
        keras.Input(X.shape[1:]),
        keras.layers.Dense(16, activation="tanh"),
        keras.layers.Dense(y.shape[1], activation="softmax"),
    ]
    model = keras.Sequential(layers)
    optimizer = SGDPlus(learning_rate, momentum=momentum, seed=0)
    model.compile(optimizer, "categorical_crossentropy")
    return model


def main():
    keras.config.disable_interactive_logging()  # the wrapper's predict shows a bar
    x, y = load_breast_cancer(return_X_y=True)
    # Each of three folds has 128 rows: whole batches of 32, in which the wrapper
    # predicts. TensorFlow would trace every model once more for a shorter batch.
    split = train_test_split(x, y, train_size=384, random_state=0, stratify=y)
    x_train, x_test, y_train, y_test = split
    classifier = keras.wrappers.SKLearnClassifier(
        make_model,
        model_kwargs={"learning_rate": 0.01, "momentum": 0.0},
        fit_kwargs={"epochs": 5, "batch_size": len(x_train), "verbose": 0},
    )
    pipeline = make_pipeline(StandardScaler(), classifier)
    # A tenth of the rate with momentum 0.9, which makes each step ten times as large.
    pairs = [(rate, 0.0) for rate in (0.001, 0.01, 0.05)]
    pairs += [(rate / 10, 0.9) for rate, _ in pairs]
    grid = [{"learning_rate": rate, "momentum": momentum} for rate, momentum in pairs]
    search = GridSearchCV(pipeline, {"sklearnclassifier__model_kwargs": grid}, cv=3)
    search.fit(x_train, y_train)
    results = zip(grid, search.cv_results_["mean_test_score"], strict=True)
    for settings, score in results:
        print(f"{settings}: {score:.1%} right in cross-validation")
    accuracy = search.score(x_test, y_test)
    print(f"the best of them: {accuracy:.1%} of the test examples right")
    assert accuracy > 0.92


if __name__ == "__main__":
    main()
