"""The room of embedding tables, whose rows wait for updates that they have missed."""
