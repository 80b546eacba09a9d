"""The walk over one batch: tensors in, tensors out, one update per group of examples.

    carry = tensors of model, optimizer, metric and seed variables
    while example_index < num_examples:
        carry = update(carry, example)      # forward, tape, update rule, metrics

*Walk*: to make one update after the other over a batch. *Carry*: the tensors that go
from one update to the next. *Group*: the examples of one update, one or more. Variables
are written at the end of a batch, by whoever asked for the walk (`Carry.commit`); only
*direct* ones are written in between (`DirectVariables`).
"""
