"""Weights whose updates wait: the loop makes them later, with the same result.

`tables` are embedding tables, of which an example touches a few rows: all other rows
wait for the end of the batch. `blocks` are kernels of Dense layers, which wait for the
end of a block of examples.

Both go through a stretch of updates in the same way:

    entered = tables.enter(num_updates, numbers)     # before some updates
    for each update:
        shown = entered.show(values, state)          # the model sees these
        ...forward, gradients, the rule for all other weights...
        shown = shown.step(gradients, rates, applies)
        values, state = shown.carried(values), shown.state
    values = entered.finish(values, state)           # every weight is up to date

In between the carry holds values that are behind; `state` says by how much. A weight
that the model uses in another way than was planned is `misread`: then the loop is
traced again.
"""
