"""Metrics of representations and images: functions of tensors."""
