"""How much accuracy each way of pruning keeps, on models trained on real data: see README.md."""
