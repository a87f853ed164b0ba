"""The configuration of an experiment."""

from rcg.config.sections import *  # noqa: F403
