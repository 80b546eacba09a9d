"""Weights whose updates wait: the loop makes them later, with the same result.

`tables` are embedding tables, of which an example touches a few rows: all other rows
wait for the end of the batch. `blocks` are kernels of Dense layers, which wait for the
end of a block of examples.

Both go through a stretch of updates, a batch or a block of it, in the same steps:

    entered = ...                                    # once, before the first update
    for each update:
        shown = entered.show(values, state)
        values = shown.placed(values)                # the model sees placeholders
        ...forward, gradients; rows and products come from `shown`...
        ...the rule for all weights but `shown.weights`...
        shown = shown.step(gradients, rates, applies)
        values, state = shown.carried(values), shown.state
    values = entered.finish(values, state)           # every weight is up to date

A batch begins with `Tables.enter`, a block with `EnteredBlock.of`. In between the carry
holds values that are behind, or nothing, at `shown.positions`; `state` says by how
much. A weight that the model uses in another way than was planned is `misread`: then
the loop is traced again.
"""
