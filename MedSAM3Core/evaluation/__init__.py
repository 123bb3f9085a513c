"""Evaluation: how good a model is on patients that training never saw."""
