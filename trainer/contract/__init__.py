"""The language that platform, workers and trainer share: words, answers, prompts, records, exports, scores.

Standard library only: a machine that serves has no torch, one that trains has no Django, and both read this.
"""
