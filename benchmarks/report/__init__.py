"""What did the studies find? Tables, figures and the marked regions of both READMEs.

Only this room writes tables and draws. `tables` and `figures` have a module per room of
studies; a function there is named like the subcommand whose findings it shows.
"""
