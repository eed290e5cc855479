"""Trainers: pre-training, heads, fine-tuning."""
